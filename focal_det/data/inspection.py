"""Statistics of a data set for people: how many objects of each class, their sizes and their shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from .coco_index import CocoIndex
from .statistics import SIZE_LIMITS, statistics

_QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}
_SHOWN_SIZES = 5


def inspect_set(coco: Mapping[str, Any]) -> dict[str, Any]:
    """Count what the `coco` of a `CocoFile` holds.

    Returns:
        Plain data for JSON: "images", those "without_objects", "boxes", "ignored" (crowds, and VOC's difficult
        objects; all that follows is without them); "classes" in the order of the labels; "sizes" by COCO's bounds of
        the area; quantiles of the "side", the square root of width times height, of the "aspect_ratio", width over
        height, and of "boxes_per_image"; None where there are no values; "image_sizes", the most common first.
    """
    index, objects = CocoIndex(coco), statistics(coco).objects
    boxes_by_image = Counter(a["image_id"] for a in index.objects)
    counts = [boxes_by_image[image_id] for image_id in index.images]
    by_size = np.bincount(np.searchsorted(SIZE_LIMITS, objects.areas, side="right"), minlength=3).tolist()
    sizes = Counter((image["width"], image["height"]) for image in coco["images"])
    return {
        "images": len(counts),
        "without_objects": counts.count(0),
        "boxes": len(index.objects),
        "ignored": len(coco["annotations"]) - len(index.objects),
        "classes": _classes(index),
        "sizes": dict(zip(("small", "medium", "large"), by_size, strict=True)),
        "side": _quantiles(objects.sides),
        "aspect_ratio": _quantiles(objects.aspect_ratios),
        "boxes_per_image": _quantiles(np.array(counts)),
        "image_sizes": [{"width": w, "height": h, "images": n} for (w, h), n in sizes.most_common()],
    }


def describe(found: Mapping[str, Any], *, is_trained_on: bool) -> str:
    """Return what `inspect_set` found as lines of text, for a set that is trained on or evaluated on."""
    filtered = ", which are not trained on while DATALOADER.FILTER_EMPTY_ANNOTATIONS"
    lines = [
        f"{found['images']} images, {found['without_objects']} of them without objects"
        + (filtered if found["without_objects"] and is_trained_on else ""),
        f"{found['boxes']} boxes" + (f", and {found['ignored']} that are ignored" if found["ignored"] else ""),
    ]
    width = max(len("class"), *(len(entry["name"]) for entry in found["classes"]))
    lines.append(f"  {'label':>5} {'id':>6}  {'class':<{width}} {'boxes':>8} {'images':>8}")
    for e in found["classes"]:
        lines.append(f"  {e['label']:>5} {e['id']:>6}  {e['name']:<{width}} {e['boxes']:>8} {e['images']:>8}")
    if found["boxes"]:
        shares = (f"{count} {name} ({count / found['boxes']:.0%})" for name, count in found["sizes"].items())
        lines.append(f"sizes as COCO has them (bounds 32 and 96 px squared): {', '.join(shares)}")
        for name, title in (("side", "side in px"), ("aspect_ratio", "width / height")):
            lines.append(f"{title}: {_listed(found[name])}")
    lines.append(f"boxes per image: {_listed(found['boxes_per_image'])}")
    sizes = [f"{size['width']}x{size['height']} ({size['images']})" for size in found["image_sizes"]]
    more = len(sizes) - _SHOWN_SIZES
    lines.append(f"image sizes: {', '.join(sizes[:_SHOWN_SIZES])}" + (f" and {more} others" if more > 0 else ""))
    return "\n".join(lines)


def _classes(index: CocoIndex) -> list[dict[str, Any]]:
    boxes = Counter(a["category_id"] for a in index.objects)
    images = Counter(category_id for category_id, _ in {(a["category_id"], a["image_id"]) for a in index.objects})
    return [
        {"label": label, "id": category_id, "name": name, "boxes": boxes[category_id], "images": images[category_id]}
        for label, (category_id, name) in enumerate(zip(index.category_ids, index.names, strict=True))
    ]


def _quantiles(values: np.ndarray) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys(_QUANTILES)
    found = np.quantile(values, list(_QUANTILES.values()))
    return {name: round(float(value), 3) for name, value in zip(_QUANTILES, found, strict=True)}


def _listed(quantiles: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in quantiles.items() if value is not None)
