"""What a data set holds: how many of what, how large, how long and narrow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from .statistics import SIZE_LIMITS, statistics

_QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}
_SHOWN_SIZES = 5


def inspect_set(coco: Mapping[str, Any]) -> dict[str, Any]:
    """Count a checked set.

    Args:
        coco: of a `CocoFile`.

    Returns:
        Plain data for JSON: "pictures", those "without_objects", "boxes", "ignored" (crowds, and VOC's difficult
        objects; all that follows is without them); "classes" in the order of the labels; "sizes" by COCO's bounds of
        the area; quantiles of the "side", the square root of width times height, of the "aspect_ratio", width over
        height, and of "boxes_a_picture"; None for those of nothing; "picture_sizes", the most common first.
    """
    objects = [a for a in coco["annotations"] if not a["iscrowd"]]
    a_picture = Counter(a["image_id"] for a in objects)
    counts = [a_picture[image["id"]] for image in coco["images"]]
    areas = np.array([a["area"] for a in objects], dtype=float)
    small, large = int((areas < SIZE_LIMITS[0]).sum()), int((areas >= SIZE_LIMITS[1]).sum())
    sizes = Counter((image["width"], image["height"]) for image in coco["images"])
    return {
        "pictures": len(counts),
        "without_objects": counts.count(0),
        "boxes": len(objects),
        "ignored": len(coco["annotations"]) - len(objects),
        "classes": _classes(coco, objects),
        "sizes": {"small": small, "medium": len(objects) - small - large, "large": large},
        "side": _quantiles(sides(coco)),
        "aspect_ratio": _quantiles(aspect_ratios(coco)),
        "boxes_a_picture": _quantiles(np.array(counts)),
        "picture_sizes": [{"width": w, "height": h, "pictures": n} for (w, h), n in sizes.most_common()],
    }


def sides(coco: Mapping[str, Any]) -> np.ndarray:
    """The square root of width times height of each object, (D,), in pixels of the picture as it is."""
    return np.sqrt(_extents(coco).prod(axis=1))


def aspect_ratios(coco: Mapping[str, Any]) -> np.ndarray:
    """Width over height of each object, (D,)."""
    width, height = _extents(coco).T
    return width / height


def describe(found: Mapping[str, Any], *, is_trained_on: bool) -> str:
    """Statistics as lines of text.

    Args:
        found: by `inspect_set`.
        is_trained_on: or evaluated on.
    """
    filtered = ", which are not trained on while DATALOADER.FILTER_EMPTY_ANNOTATIONS"
    lines = [
        f"{found['pictures']} pictures, {found['without_objects']} of them without objects"
        + (filtered if found["without_objects"] and is_trained_on else ""),
        f"{found['boxes']} boxes" + (f", and {found['ignored']} that are ignored" if found["ignored"] else ""),
        *_class_table(found["classes"]),
    ]
    if found["boxes"]:
        shares = (f"{count} {name} ({count / found['boxes']:.0%})" for name, count in found["sizes"].items())
        lines.append(f"sizes as COCO has them (bounds 32 and 96 px squared): {', '.join(shares)}")
        for name, what in (("side", "side in px"), ("aspect_ratio", "width / height")):
            lines.append(f"{what}: {_in_words(found[name])}")
    lines.append(f"boxes a picture: {_in_words(found['boxes_a_picture'])}")
    shown = found["picture_sizes"][:_SHOWN_SIZES]
    more = len(found["picture_sizes"]) - len(shown)
    lines.append(
        "picture sizes: "
        + ", ".join(f"{size['width']}x{size['height']} ({size['pictures']})" for size in shown)
        + (f" and {more} others" if more else "")
    )
    return "\n".join(lines)


def _classes(coco: Mapping[str, Any], objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    boxes = Counter(a["category_id"] for a in objects)
    pictures = Counter(category for category, _ in {(a["category_id"], a["image_id"]) for a in objects})
    categories = sorted(coco["categories"], key=lambda category: category["id"])
    return [
        {
            "label": label,
            "id": category["id"],
            "name": category["name"],
            "boxes": boxes[category["id"]],
            "pictures": pictures[category["id"]],
        }
        for label, category in enumerate(categories)
    ]


def _class_table(classes: list[dict[str, Any]]) -> list[str]:
    width = max(len("class"), *(len(entry["name"]) for entry in classes))
    rows = [f"  {'label':>5} {'id':>6}  {'class':<{width}} {'boxes':>8} {'pictures':>8}"]
    rows += [
        f"  {e['label']:>5} {e['id']:>6}  {e['name']:<{width}} {e['boxes']:>8} {e['pictures']:>8}" for e in classes
    ]
    return rows


def _extents(coco: Mapping[str, Any]) -> np.ndarray:
    """(D, 2) width and height of the objects, as far as they lie in their pictures."""
    boxes = statistics(coco).objects.boxes
    return boxes[:, 2:] - boxes[:, :2]


def _quantiles(values: np.ndarray) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys(_QUANTILES)
    found = np.quantile(values, list(_QUANTILES.values()))
    return {name: round(float(value), 3) for name, value in zip(_QUANTILES, found, strict=True)}


def _in_words(quantiles: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in quantiles.items() if value is not None)
