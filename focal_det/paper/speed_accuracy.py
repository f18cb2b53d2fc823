"""Figure 2: depth and scale of Table 1e, timed on this machine, beside the paper's points."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ..data.catalog import class_names
from .comparison import measured
from .competitors import envelope, load_competitors, published_speeds
from .cost import image_size, milliseconds, trained_config
from .figures import as_csv, new_axes
from .runs import SweepOptions, SweepPlan, SweepRun, plan_table, row_config, with_runs_of_before
from .tables import TableRow, load_tables

TABLE = "table1e"


class Timing(NamedTuple):
    """One model, with a ResNet of some depth, on this machine.

    ms: median for an image of `height` x `width`, from the input to the detections.
    ap: mean over the finished trainings, else None.
    trained: whether their weights were timed; without them nothing is detected and the suppression has no work.
    """

    row: TableRow
    depth: int
    height: int
    width: int
    ms: float
    ap: float | None
    trained: bool


def plan_models(options: SweepOptions) -> SweepPlan:
    """Plan every row of Table 1e at a scale."""
    table = load_tables()[TABLE]
    return plan_table(table, list(table.rows.values()), options)


def time_models(options: SweepOptions, *, repeats: int) -> Iterator[Timing]:
    """Time every row of Table 1e at a scale, one image at a time after a first that does not count.

    Args:
        options: where `focal-det reproduce table1e` has put its runs, for their AP and weights.
        repeats: images of each, >= 1.
    """
    plan = with_runs_of_before(plan_models(options))
    for name, runs in plan.rows.items():
        row, ap = plan.table.rows[name], measured(runs, "AP")
        cfg = _config(row, runs.values(), options)
        height, width = image_size(cfg)
        ms = milliseconds(cfg, repeats)
        depth, mean_ap = int(cfg.MODEL.RESNETS.DEPTH), statistics.mean(ap) if ap else None
        yield Timing(row, depth, height, width, ms, mean_ap, trained=bool(cfg.MODEL.WEIGHTS))


def _config(row: TableRow, runs: Iterable[SweepRun], options: SweepOptions) -> CfgNode:
    """Return the configuration of a finished run with its weights, else the row's without any; on the GPU if any."""
    cfg = next((cfg for run in runs if (cfg := trained_config(run))), None)
    if cfg is None:
        cfg = row_config(row, options.scale)
        cfg.MODEL.WEIGHTS = ""
        cfg.MODEL.RETINANET.NUM_CLASSES = len(class_names(cfg.DATASETS.TEST[0]) or ())
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    return cfg


def draw_speed_accuracy(timings: Sequence[Timing], machine: str, scale: str) -> Figure:
    """Draw the paper's points and its competitors' with the envelope of all, and this machine's times.

    At the full scale a row that was not trained here is drawn hollow at its published AP.
    """
    figure, axes = new_axes("ms per image", "AP", size=(7, 5))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    published = {timing.row: (timing.row.published["ms"], timing.row.published["AP"]) for timing in timings}
    by_depth = itertools.groupby(
        timings, lambda timing: timing.row.name.split("_")[1]
    )  # the paper's, not a miniature's
    for color, (depth, group) in zip(("C0", "C3"), by_depth, strict=True):
        of_depth = list(group)
        points = [published[timing.row] for timing in of_depth]
        axes.plot(*zip(*points, strict=True), "o-", color=color, label=f"RetinaNet-{depth}, published (M40, test-dev)")
        # A miniature has no published AP to stand in for one that was not measured.
        here = [
            (t.ms, t.row.published["AP"], "none") if t.ap is None else (t.ms, t.ap, "full")
            for t in of_depth
            if t.ap is not None or scale == "full"
        ]
        if here:
            ms, aps, _ = zip(*here, strict=True)
            axes.plot(ms, aps, ":", color=color, label=f"R-{of_depth[0].depth} ({scale}), timed here")
        for x, y, fill in here:
            axes.plot(x, y, "s", color=color, fillstyle=fill)
    speeds = published_speeds()
    best = envelope(speeds.values())
    label = "envelope of all, published: none is faster and better"
    axes.step(*zip(*best, strict=True), where="post", color="0.6", linewidth=5, alpha=0.4, label=label)
    for name, at in speeds.items():
        if name in load_competitors():
            axes.plot(*at, "D", color="0.4", markersize=4)
            axes.annotate(name, at, (4, -3), textcoords="offset points", va="top", fontsize=6)
    title = f"timed on {machine}; hollow: AP published, not measured"
    if scale != "full" and all(timing.ap is None for timing in timings):
        title = f"no row of {TABLE} is trained in miniature, so none is drawn"
    axes.set_title(title, fontsize="small", loc="left")
    axes.legend(frameon=False, fontsize="small")
    return figure


def describe_envelope() -> str:
    """Return which published detectors lie on the envelope of figure 2, fastest first."""
    names = {point: name for name, point in published_speeds().items()}
    found = ", ".join(f"{names[ms, ap]} ({ms:g} ms, AP {ap:.1f})" for ms, ap in envelope(names))
    return f"on the envelope of all published: {found}"


def timings_as_csv(timings: Sequence[Timing]) -> str:
    """Return the timings as CSV, a line for each model."""
    rows = []
    for t in timings:
        ap = "" if t.ap is None else round(t.ap, 2)
        published = t.row.published["ms"], t.row.published["AP"]
        rows.append((t.row.name, t.height, t.width, round(t.ms, 2), ap, t.trained, *published))
    return as_csv(["row", "height", "width", "ms", "ap", "trained", "published_ms_m40", "published_ap"], rows)
