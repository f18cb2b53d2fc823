"""Figure 2: depth and scale of Table 1e, timed on this machine, beside the paper's points."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ..checkpoint.safe_load import SafeCheckpointer
from ..config.load import load_config
from ..data.catalog import class_names
from ..data.shapes import draw_image
from ..output_layout import CONFIG, FINAL_CHECKPOINT
from .comparison import measured
from .figures import as_csv, new_axes
from .runs import SweepOptions, SweepRun, plan_table, row_config, with_runs_of_before
from .tables import TableRow, compared_detectors, load_tables

TABLE = "table1e"

_LONGER_TO_SHORTER = 4 / 3  # COCO's images are mostly 640 x 480


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


def time_models(options: SweepOptions, *, repeats: int) -> Iterator[Timing]:
    """Time every row of Table 1e at a scale, one image at a time after a first that does not count.

    Args:
        options: where `focal-det reproduce table1e` has put its runs, for their AP and weights.
        repeats: images of each, >= 1.
    """
    table = load_tables()[TABLE]
    plan = with_runs_of_before(plan_table(table, list(table.rows.values()), options))
    for name, runs in plan.rows.items():
        row, ap = table.rows[name], measured(runs, "AP")
        cfg = _config(row, runs.values(), options)
        height = int(cfg.INPUT.MIN_SIZE_TEST)
        width = min(round(height * _LONGER_TO_SHORTER), int(cfg.INPUT.MAX_SIZE_TEST))
        ms = _milliseconds(cfg, (height, width), repeats)
        depth, mean_ap = int(cfg.MODEL.RESNETS.DEPTH), statistics.mean(ap) if ap else None
        yield Timing(row, depth, height, width, ms, mean_ap, trained=bool(cfg.MODEL.WEIGHTS))


def _config(row: TableRow, runs: Iterable[SweepRun], options: SweepOptions) -> CfgNode:
    """Return the configuration of a finished run with its weights, else the row's without any."""
    for run in runs:
        weights = run.folder / FINAL_CHECKPOINT
        if run.metrics() and weights.is_file():
            return load_config(run.folder / CONFIG, ["MODEL.WEIGHTS", str(weights)])
    cfg = row_config(row, options.scale)
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RETINANET.NUM_CLASSES = len(class_names(cfg.DATASETS.TEST[0]) or ())
    return cfg


def _milliseconds(cfg: CfgNode, size: tuple[int, int], repeats: int) -> float:
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(cfg).eval()
    if cfg.MODEL.WEIGHTS:
        SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    drawn, _, _ = draw_image("val", 0, max(size))  # with objects to find, for a model that has learned them
    image = torch.from_numpy(cv2.resize(drawn, size[::-1])).permute(2, 0, 1)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.inference_mode():
            model([{"image": image}])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times[1:])


def envelope(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return those of (ms, AP) that no other beats in both, fastest first."""
    best: list[tuple[float, float]] = []
    for ms, ap in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or ap > best[-1][1]:
            best.append((ms, ap))
    return best


def draw_speed_accuracy(timings: Sequence[Timing], machine: str, scale: str) -> Figure:
    """Draw the paper's points with their envelope, its competitors, and this machine's times.

    At the full scale a row that was not trained here is drawn as a ring at its published AP.
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
    axes.plot(*zip(*envelope(published.values()), strict=True), color="0.6", linewidth=5, alpha=0.4, label="envelope")
    for name, figures in compared_detectors().items():
        if "ms" in figures:
            at = figures["ms"], figures["AP"]
            axes.plot(*at, "D", color="0.4", markersize=4)
            axes.annotate(name, at, (0, 5), textcoords="offset points", ha="center", fontsize=5.5)
    title = f"timed on {machine}; ring: AP published, not measured"
    if scale != "full" and all(timing.ap is None for timing in timings):
        title = f"no row of {TABLE} is trained in the scale {scale}, so none is drawn"
    axes.set_title(title, fontsize="small", loc="left")
    axes.legend(frameon=False, fontsize="small")
    return figure


def timings_as_csv(timings: Sequence[Timing]) -> str:
    """Return the timings as CSV, a line for each model."""
    rows = []
    for t in timings:
        ap = "" if t.ap is None else round(t.ap, 2)
        published = t.row.published["ms"], t.row.published["AP"]
        rows.append((t.row.name, t.height, t.width, round(t.ms, 2), ap, t.trained, *published))
    return as_csv(["row", "height", "width", "ms", "ap", "trained", "published_ms_m40", "published_ap"], rows)
