"""Figure 2: depth and scale of Table 1e, timed on this machine, beside the paper's points."""

from __future__ import annotations

import csv
import io
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ..data.catalog import class_names
from ..data.shapes import draw_picture
from ..engine.config_file import load_config
from ..engine.safe_weights import SafeCheckpointer
from .figures import new_axes
from .report import measured
from .runs import Options, Run, plan_table, row_config, with_runs_of_before
from .tables import Row, compared_detectors, load_tables

TABLE = "table1e"

_LONGER_TO_SHORTER = 4 / 3  # COCO's pictures are mostly 640 x 480


class Timing(NamedTuple):
    """One model on this machine.

    depth: of the ResNet.
    ms: median of a picture of `height` x `width`, from the input to the detections.
    ap: mean over the finished trainings, else None.
    trained: whether their weights were timed; without them nothing is detected, which spares the suppression.
    """

    row: Row
    depth: int
    height: int
    width: int
    ms: float
    ap: float | None
    trained: bool


def time_models(options: Options, *, repeats: int) -> Iterator[Timing]:
    """Time every row of Table 1e at a scale, one picture at a time after a first that does not count.

    Args:
        options: where `focal-det reproduce table1e` has put its runs, for their AP and weights.
        repeats: pictures of each, >= 1.
    """
    table = load_tables()[TABLE]
    rows = list(table.rows.values())
    plan = with_runs_of_before(plan_table(table, rows, options))
    for row in rows:
        runs = plan.rows[row.name]
        ap = measured(runs, "AP")
        cfg = _trained_config(runs.values()) or _untrained_config(row, options)
        height = int(cfg.INPUT.MIN_SIZE_TEST)
        width = min(round(height * _LONGER_TO_SHORTER), int(cfg.INPUT.MAX_SIZE_TEST))
        ms = _milliseconds(cfg, (height, width), repeats)
        depth = int(cfg.MODEL.RESNETS.DEPTH)
        yield Timing(row, depth, height, width, ms, ap.mean if ap else None, trained=bool(cfg.MODEL.WEIGHTS))


def _trained_config(runs: Iterable[Run]) -> CfgNode | None:
    """The configuration and weights that a finished run left; None if there is none."""
    for run in runs:
        if run.metrics() and (run.folder / "model_final.pth").is_file():
            return load_config(run.folder / "config.yaml", ["MODEL.WEIGHTS", str(run.folder / "model_final.pth")])
    return None


def _untrained_config(row: Row, options: Options) -> CfgNode:
    cfg = row_config(row, options.scale)
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RETINANET.NUM_CLASSES = len(class_names(cfg.DATASETS.TEST[0]) or ())
    return cfg


def _milliseconds(cfg: CfgNode, size: tuple[int, int], repeats: int) -> float:
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(cfg).eval()
    if cfg.MODEL.WEIGHTS:
        SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    drawn, _, _ = draw_picture("val", 0, max(size))  # with objects to find, for a model that has learned them
    picture = torch.from_numpy(cv2.resize(drawn, size[::-1])).permute(2, 0, 1)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.inference_mode():
            model([{"image": picture}])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times[1:])


def envelope(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of (ms, AP) that none beats in both, fastest first."""
    best: list[tuple[float, float]] = []
    for ms, ap in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or ap > best[-1][1]:
            best.append((ms, ap))
    return best


def draw_speed_accuracy(timings: Sequence[Timing], machine: str, scale: str) -> Figure:
    """The paper's points with their envelope, its competitors, and this machine's times.

    At the full scale a row that was not trained here is drawn as a ring at its published AP.
    """
    figure, axes = new_axes("ms per image", "AP", size=(7, 5))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    published = {timing.row: (timing.row.published["ms"], timing.row.published["AP"]) for timing in timings}
    for color, (depth, own) in zip(("C0", "C3"), _by_depth(timings).items(), strict=True):
        points = [published[timing.row] for timing in own]
        axes.plot(*zip(*points, strict=True), "o-", color=color, label=f"RetinaNet-{depth}, published (M40, test-dev)")
        here = [(t.ms, t.ap if t.ap is not None else t.row.published["AP"]) for t in own if _is_drawn(t, scale)]
        if here:
            label = f"R-{own[0].depth} ({scale}), timed here"
            axes.plot(*zip(*here, strict=True), ":", color=color, label=label)
        for timing in own:
            if _is_drawn(timing, scale):
                ap = timing.ap if timing.ap is not None else timing.row.published["AP"]
                axes.plot(timing.ms, ap, "s", color=color, fillstyle="none" if timing.ap is None else "full")
    axes.plot(*zip(*envelope(published.values()), strict=True), color="0.6", linewidth=5, alpha=0.4, label="envelope")
    _draw_compared(axes)
    title = f"timed on {machine}; ring: AP published, not measured"
    if not any(_is_drawn(timing, scale) for timing in timings):
        title = f"no row of {TABLE} is trained in the scale {scale}, so none is drawn"
    axes.set_title(title, fontsize="small", loc="left")
    axes.legend(frameon=False, fontsize="small")
    return figure


def _is_drawn(timing: Timing, scale: str) -> bool:
    """A miniature has no published AP to stand in for one that was not measured."""
    return timing.ap is not None or scale == "full"


def _by_depth(timings: Sequence[Timing]) -> dict[str, list[Timing]]:
    groups: dict[str, list[Timing]] = {}
    for timing in timings:
        groups.setdefault(timing.row.name.split("_")[1], []).append(timing)
    return groups


def _draw_compared(axes: Axes) -> None:
    for name, figures in compared_detectors().items():
        if "ms" in figures:
            axes.plot(figures["ms"], figures["AP"], "D", color="0.4", markersize=4)
            at = figures["ms"], figures["AP"]
            axes.annotate(name, at, (0, 5), textcoords="offset points", ha="center", fontsize=5.5)


def timings_as_csv(timings: Sequence[Timing]) -> str:
    """A line for each model."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "height", "width", "ms", "ap", "trained", "published_ms_m40", "published_ap"])
    for t in timings:
        ap = "" if t.ap is None else round(t.ap, 2)
        figures = t.row.published
        writer.writerow([t.row.name, t.height, t.width, round(t.ms, 2), ap, t.trained, figures["ms"], figures["AP"]])
    return text.getvalue()
