"""How many objects the anchors reach at the size that they are trained at, and which anchors would reach more."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode

from ..data.coverage import AnchorGrid, best_ious, resized
from ..data.statistics import SIZE_LIMITS, Objects, sample
from ..modeling.anchors import cell_anchors

_MOST = 100_000  # objects that are looked at, evenly through the set
_FOR_CANDIDATES = 10_000  # and for each of the other anchors
_WORTH = 0.03  # what other anchors must reach more, of all objects, to be named
_FEW = 10  # objects; of a class of fewer no share is told, and of a set of fewer no warning given
_UNREACHED = 0.25  # share of the objects from which on it is a warning


class Row(NamedTuple):
    """A part of the objects: how many; shares whose best IoU makes them objects, neither, background; median side, px.

    The bounds are those of MODEL.RETINANET.IOU_THRESHOLDS.
    """

    name: str
    number: int
    reached: float
    near: float
    missed: float
    side: float


class AnchorReport(NamedTuple):
    """What `report_anchors` finds.

    shorter: side in px of the training pictures that it holds for.
    thresholds: MODEL.RETINANET.IOU_THRESHOLDS, of background and objects.
    better: overrides, and the share that they reach.
    """

    shorter: int
    thresholds: tuple[float, float]
    whole: Row
    by_size: list[Row]
    by_shape: list[Row]
    worst_classes: list[Row]
    better: list[tuple[str, float]]


class _Candidate(NamedTuple):
    """Anchors, or a size of pictures, to try: the keys that they change, and what these are changed to."""

    changes: dict[str, str]
    base_sizes: list[float]
    scales: int
    ratios: list[float]
    shorter: float
    longest: float


def report_anchors(
    cfg: CfgNode, model: torch.nn.Module, objects: Objects, class_names: Sequence[str]
) -> AnchorReport | None:
    """Of the objects of the training sets; None without objects, or for a model whose anchors are not known.

    Args:
        model: of the configuration, wherever it is.
    """
    grid = _grid(cfg, model)
    if grid is None or not len(objects.boxes):
        return None
    objects = sample(objects, _MOST)
    shorter, longest = _middle(cfg), cfg.INPUT.MAX_SIZE_TRAIN
    background, reach = cfg.MODEL.RETINANET.IOU_THRESHOLDS
    boxes, sizes = _at(objects, shorter, longest)
    ious, sides = best_ious(boxes, sizes, grid), np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    width, height = (objects.boxes[:, 2:] - objects.boxes[:, :2]).T

    def row(name: str, chosen: np.ndarray) -> Row:
        found = ious[chosen]
        reached, missed = float((found >= reach).mean()), float((found < background).mean())
        return Row(name, len(found), reached, 1 - reached - missed, missed, float(np.median(sides[chosen])))

    def rows(parts: list[tuple[str, np.ndarray]], least: int = 1) -> list[Row]:
        return [row(name, chosen) for name, chosen in parts if chosen.sum() >= least]

    areas, (medium_from, large_from) = objects.areas, SIZE_LIMITS
    whole = row("all", np.ones(len(ious), bool))
    classes = rows([(name, objects.classes == label) for label, name in enumerate(class_names)], _FEW)
    return AnchorReport(
        shorter=round(shorter),
        thresholds=(background, reach),
        whole=whole,
        by_size=rows(
            [
                ("small", areas < medium_from),
                ("medium", (areas >= medium_from) & (areas < large_from)),
                ("large", areas >= large_from),
            ]
        ),
        by_shape=rows(
            [
                ("tall", height > 2 * width),
                ("middle", (height <= 2 * width) & (width <= 2 * height)),
                ("wide", width > 2 * height),
            ]
        ),
        worst_classes=sorted((r for r in classes if r.reached < whole.reached), key=lambda r: r.reached)[:3],
        better=_better(cfg, grid, sample(objects, _FOR_CANDIDATES), shorter),
    )


def anchor_warnings(report: AnchorReport) -> list[str]:
    """That many objects have no anchor, and what would give them one."""
    lacking = 1 - report.whole.reached
    if lacking < _UNREACHED or report.whole.number < _FEW:
        return []
    better = "".join(f"; {overrides} would leave {1 - share:.0%}" for overrides, share in report.better)
    return [
        f"{lacking:.0%} of boxes have no anchor with IoU >= {iou_words(report.thresholds[1])} at this size, "
        f"{report.shorter} px; median side {report.whole.side:.0f} px{better}"
    ]


def iou_words(iou: float) -> str:
    """Such as ".5"."""
    return f"{iou:g}".removeprefix("0")


def _grid(cfg: CfgNode, model: torch.nn.Module) -> AnchorGrid | None:
    """Where the model's anchors stand, for FocalRetinaNet and Detectron2's RetinaNet."""
    if cfg.MODEL.META_ARCHITECTURE not in ("FocalRetinaNet", "RetinaNet"):
        return None
    generator: Any = model.anchor_generator
    backbone: Any = model.backbone
    cells = [level.detach().cpu().double().numpy() for level in generator.cell_anchors]
    return AnchorGrid(cells, generator.strides, generator.offset, max(1, backbone.size_divisibility))


def _middle(cfg: CfgNode) -> float:
    sizes = sorted(cfg.INPUT.MIN_SIZE_TRAIN)
    return sum(sizes) / len(sizes) if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" else sizes[len(sizes) // 2]


def _at(objects: Objects, shorter: float, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) and sizes (N, 2) after resizing."""
    sizes = resized(objects.sizes, shorter, longest)
    return objects.boxes * np.tile(sizes / objects.sizes, 2), sizes


def _better(cfg: CfgNode, grid: AnchorGrid, objects: Objects, shorter: float) -> list[tuple[str, float]]:
    """The best other anchors, and then the best larger picture, where they reach clearly more."""
    if cfg.MODEL.ANCHOR_GENERATOR.NAME != "OctaveAnchorGenerator":
        return []
    reach = cfg.MODEL.RETINANET.IOU_THRESHOLDS[1]

    def share(candidate: _Candidate) -> float:
        cells = [cell_anchors(s, candidate.scales, candidate.ratios).double().numpy() for s in candidate.base_sizes]
        boxes, sizes = _at(objects, candidate.shorter, candidate.longest)
        return float((best_ious(boxes, sizes, grid._replace(cells=cells)) >= reach).mean())

    now, *others = _candidates(cfg, shorter, (objects.sizes.max(axis=1) / objects.sizes.min(axis=1)).max())
    least = share(now) + _WORTH
    found = []
    for of_anchors in (True, False):
        group = [(c, share(c)) for c in others if (c.shorter == now.shorter) == of_anchors]
        # The first of those that are as good to a hundredth: the list goes from small changes to large ones.
        best = max(group, key=lambda pair: round(pair[1], 2))
        if best[1] >= least:
            found.append((" ".join(f'{key} "{value}"' for key, value in best[0].changes.items()), best[1]))
    return sorted(found, key=lambda pair: -round(pair[1], 2))


def _candidates(cfg: CfgNode, shorter: float, longest_shape: float) -> Iterator[_Candidate]:
    """What is there first; then sizes an octave or two away, more ratios, more scales, both; then larger pictures."""
    sizes = [float(level[0]) for level in cfg.MODEL.ANCHOR_GENERATOR.SIZES]
    ratios = [float(ratio) for ratio in cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0]]
    scales, longest = cfg.MODEL.FOCAL_DET.SCALES_PER_OCTAVE, cfg.INPUT.MAX_SIZE_TRAIN
    more_ratios = sorted({*ratios, *(r for r in (0.33, 3.0) if not min(ratios) <= r <= max(ratios))})
    yield _Candidate({}, sizes, scales, ratios, shorter, longest)
    shapes = [(scales, ratios), (scales, more_ratios), *([(4, ratios)] if scales < 4 else [])]
    for new_scales, new_ratios in shapes:
        for factor in (1, 0.5, 2, 0.25):
            new_sizes = [size * factor for size in sizes]
            changes = {}
            if factor != 1:
                changes["MODEL.ANCHOR_GENERATOR.SIZES"] = "[" + ", ".join(f"[{size:g}]" for size in new_sizes) + "]"
            if new_ratios != ratios:
                changes["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"] = f"[{new_ratios}]"
            if new_scales != scales:
                changes["MODEL.FOCAL_DET.SCALES_PER_OCTAVE"] = str(new_scales)
            if changes:
                yield _Candidate(changes, new_sizes, new_scales, new_ratios, shorter, longest)
    for factor in (1.5, 2):
        changes = {
            "INPUT.MIN_SIZE_TRAIN": str(tuple(round(size * factor) for size in cfg.INPUT.MIN_SIZE_TRAIN)),
            "INPUT.MIN_SIZE_TEST": str(round(cfg.INPUT.MIN_SIZE_TEST * factor)),
        }
        if shorter * factor * longest_shape > longest:
            changes["INPUT.MAX_SIZE_TRAIN"] = str(math.ceil(longest * factor))
            changes["INPUT.MAX_SIZE_TEST"] = str(math.ceil(cfg.INPUT.MAX_SIZE_TEST * factor))
        yield _Candidate(changes, sizes, scales, ratios, shorter * factor, longest * factor)
