"""The figure of `focal-det data inspect`: objects by class, and the distribution of their sizes and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from .inspection import inspect_set
from .statistics import SIZE_LIMITS, statistics

_SHOWN_CLASSES = 30  # bars that can be read; of more classes the most frequent
_BINS = 40


def inspection_figure(sets: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw a row for each set: objects by class, histograms of the side and of width / height, on logarithmic axes.

    Args:
        sets: the `coco` of a `CocoFile` by the set's name.
    """
    most = max(min(len(coco["categories"]), _SHOWN_CLASSES) for coco in sets.values())
    height = max(3.2, 0.8 + 0.22 * most)
    figure = Figure(figsize=(13, height * len(sets)), layout="constrained")
    for (name, coco), axes in zip(sets.items(), figure.subplots(len(sets), 3, squeeze=False), strict=True):
        _draw_classes(axes[0], name, inspect_set(coco)["classes"])
        objects = statistics(coco).objects
        _draw_histogram(axes[1], objects.sides, "side in px: square root of width x height")
        for area in SIZE_LIMITS:
            axes[1].axvline(area**0.5, color="0.4", linestyle=":", linewidth=1)
        _draw_histogram(axes[2], objects.aspect_ratios, "width / height")
    return figure


def _draw_classes(axes: Axes, name: str, classes: list[dict[str, Any]]) -> None:
    shown = sorted(classes, key=lambda entry: -entry["boxes"])[:_SHOWN_CLASSES]
    bars = axes.barh(range(len(shown)), [entry["boxes"] for entry in shown])
    axes.bar_label(bars, padding=3)
    axes.set_yticks(range(len(shown)), [f"{entry['name']} ({entry['label']})" for entry in shown], parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(name, parse_math=False)
    hidden = len(classes) - len(shown)
    axes.set_xlabel("objects by class (label)" + (f"; {hidden} rarer classes not shown" if hidden else ""))


def _draw_histogram(axes: Axes, values: np.ndarray, label: str) -> None:
    axes.set(xlabel=label, ylabel="objects")
    if not len(values):
        return
    edges = np.geomspace(values.min() / 1.05, values.max() * 1.05, _BINS + 1)
    axes.hist(values, bins=edges.tolist())
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
