"""Statistics of a data set for people, as text and as a figure: objects by class, their sizes and their shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ..errors import some
from ..formats.coco_index import CocoIndex
from ..formats.drawn_names import drawable
from .statistics import SIZE_LIMITS, AnchorFit, iou_text, statistics

_QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}
_SHOWN_SIZES = 5
_SHOWN_CLASSES = 30  # bars that can be read; of more classes the most frequent
_BINS = 40
_FIT_COLOURS = ("tab:red", "tab:orange", "tab:green")  # of objects that are missed, near and reached


def inspect_set(coco: Mapping[str, Any]) -> dict[str, Any]:
    """Count what the `coco` of a `CocoFile` holds.

    Returns:
        Plain data for JSON: "images", those "without_objects", "boxes", "ignored" (crowds, and VOC's difficult
        objects; all that follows is without them); "classes" in the order of the labels, with their "share" of the
        boxes; "sizes" by COCO's bounds of the area; quantiles of the "side", the square root of width times height, of
        the "aspect_ratio", width over height, and of "boxes_per_image"; None where there are no values; "image_sizes",
        the most common first.
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
    lines.append(f"  {'label':>5} {'id':>6}  {'class':<{width}} {'boxes':>8} {'share':>7} {'images':>8}")
    for e in found["classes"]:
        name = f"  {e['label']:>5} {e['id']:>6}  {e['name']:<{width}}"
        lines.append(f"{name} {e['boxes']:>8} {e['share']:>7.1%} {e['images']:>8}")
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


def describe_balance(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return lines on the classes of sets, by what `inspect_set` found: the rarest, and those not everywhere."""
    boxes = {name: {e["name"]: e["boxes"] for e in entry["classes"]} for name, entry in found.items()}
    names = list(dict.fromkeys(name for of_set in boxes.values() for name in of_set))
    lines = []
    if nowhere := [name for name in names if not any(of_set.get(name) for of_set in boxes.values())]:
        lines.append(f"no object of {some('class', nowhere)} in any set: it can be neither learnt nor tested")
    for one in boxes if len(boxes) > 1 else ():
        others = [of_set for name, of_set in boxes.items() if name != one]
        alone = [name for name in names if boxes[one].get(name) and not any(of_set.get(name) for of_set in others)]
        lines += [f"in {one} alone: {some('class', alone)}"] if alone else []
    for name, of_set in boxes.items():
        there = {class_name: number for class_name, number in of_set.items() if number}
        if len(there) > 1:
            rarest, most = min(there, key=lambda c: there[c]), max(there, key=lambda c: there[c])
            share, times = there[rarest] / sum(there.values()), there[most] / there[rarest]
            text = f"{name}: the rarest class is {rarest}, {there[rarest]} of {sum(there.values())} boxes ({share:.1%})"
            lines.append(f"{text}; {most} has {times:.3g} times as many")
    return lines


def inspection_figure(sets: Mapping[str, Mapping[str, Any]], fits: Mapping[str, AnchorFit]) -> Figure:
    """Draw a row for each set: objects by class, and histograms on logarithmic axes.

    They are of the side, of width / height, and of the side in the network's input by how well anchors fit.

    Args:
        sets: the `coco` of a `CocoFile` by the set's name.
        fits: likewise; of a set without, the last histogram is left empty.
    """
    most = max(min(len(coco["categories"]), _SHOWN_CLASSES) for coco in sets.values())
    height = max(3.2, 0.8 + 0.22 * most)
    figure = Figure(figsize=(17, height * len(sets)), layout="constrained")
    for (name, coco), axes in zip(sets.items(), figure.subplots(len(sets), 4, squeeze=False), strict=True):
        _draw_classes(axes[0], name, inspect_set(coco)["classes"])
        objects = statistics(coco).objects
        _draw_histogram(axes[1], objects.sides, "side in px: square root of width x height")
        for area in SIZE_LIMITS:
            axes[1].axvline(area**0.5, color="0.4", linestyle=":", linewidth=1)
        _draw_histogram(axes[2], objects.aspect_ratios, "width / height")
        _draw_fit(axes[3], fits.get(name))
    return figure


def _classes(index: CocoIndex) -> list[dict[str, Any]]:
    boxes = Counter(a["category_id"] for a in index.objects)
    images = Counter(category_id for category_id, _ in {(a["category_id"], a["image_id"]) for a in index.objects})
    return [
        {
            **{"label": label, "id": category_id, "name": name, "boxes": boxes[category_id]},
            **{"share": round(boxes[category_id] / max(1, boxes.total()), 5), "images": images[category_id]},
        }
        for label, (category_id, name) in enumerate(zip(index.category_ids, index.names, strict=True))
    ]


def _quantiles(values: np.ndarray) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys(_QUANTILES)
    found = np.quantile(values, list(_QUANTILES.values()))
    return {name: round(float(value), 3) for name, value in zip(_QUANTILES, found, strict=True)}


def _listed(quantiles: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in quantiles.items() if value is not None)


def _draw_classes(axes: Axes, name: str, classes: list[dict[str, Any]]) -> None:
    shown = sorted(classes, key=lambda entry: -entry["boxes"])[:_SHOWN_CLASSES]
    bars = axes.barh(range(len(shown)), [entry["boxes"] for entry in shown])
    axes.bar_label(bars, padding=3)
    axes.set_yticks(
        range(len(shown)),
        [f"{drawable(entry['name'], entry['label'])} ({entry['label']})" for entry in shown],
        parse_math=False,
    )
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(name, parse_math=False)
    hidden = len(classes) - len(shown)
    axes.set_xlabel("objects by class (label)" + (f"; {hidden} rarer classes not shown" if hidden else ""))


def _draw_histogram(axes: Axes, values: np.ndarray, label: str) -> None:
    axes.set(xlabel=label, ylabel="objects")
    if len(values):
        axes.hist(values, bins=_edges(values))
        _make_logarithmic(axes)


def _draw_fit(axes: Axes, fit: AnchorFit | None) -> None:
    if fit is None or not len(fit.sides):
        axes.set_axis_off()
        return
    axes.set(xlabel="side in px of the network's input", ylabel="objects", title=f"images of {fit.size}")
    low, high = map(iou_text, fit.thresholds)
    group = np.searchsorted(fit.thresholds, fit.ious, side="right")
    names = [f"< {low}", f"{low} to {high}", f">= {high}"]
    parts = [fit.sides[group == number] for number in range(len(names))]
    texts = [f"{name} ({len(part) / len(group):.1%})" for name, part in zip(names, parts, strict=True)]
    axes.hist(parts, bins=_edges(fit.sides), stacked=True, color=_FIT_COLOURS, label=texts)
    axes.legend(title="IoU with the best anchor", fontsize="small", title_fontsize="small")
    _make_logarithmic(axes)


def _edges(values: np.ndarray) -> list[float]:
    low, high = values.min(), values.max()
    margin = max(1.05, 2 / np.sqrt(high / low))  # bars of values that are all alike would be too thin to see
    return list(np.geomspace(low / margin, high * margin, _BINS + 1).tolist())


def _make_logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
