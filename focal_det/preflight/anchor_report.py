"""Which objects the anchors reach (section 4, "Anchors"), by the best IoU of each object with any anchor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode

from ..data.statistics import AnchorFit, Objects, iou_text, sample
from ..modeling.anchors import cell_anchors
from .anchor_fit import FEW, AnchorGrid, AnchorSetup, FitRows, at_size, best_ious, fit_objects, group_fit

_MOST = 100_000  # objects that are looked at, spread evenly over the set
_FOR_CANDIDATES = 10_000  # likewise, for each of the other anchors that are tried
_WORTH = 0.03  # share of all objects that other anchors must reach in addition to be suggested
_UNREACHED = 0.25  # share of objects without an anchor from which on it is a warning


class AnchorReport(NamedTuple):
    """The result of `report_anchors`."""

    fit: AnchorFit  # of each object
    rows: FitRows  # of groups of them
    better: list[tuple[str, float]]  # overrides, and the share of objects that they reach


class _Candidate(NamedTuple):
    """Anchors, or a size of images, to try, and the values of the keys that make them."""

    changes: dict[str, str]
    base_sizes: list[float]
    scales: int
    ratios: list[float]
    shorter: float
    longest: float


def report_anchors(
    cfg: CfgNode, model: torch.nn.Module, objects: Objects, class_names: Sequence[str]
) -> AnchorReport | None:
    """Compare the anchors with the objects of the training sets.

    The model is the configuration's, on any device. Returns None without objects, or where its anchors are not known.
    """
    grid = _grid(cfg, model)
    if grid is None or not len(objects.boxes):
        return None
    objects = sample(objects, _MOST)
    shorts, longest = sorted(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN
    is_range = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"
    shorter = sum(shorts) / len(shorts) if is_range else shorts[len(shorts) // 2]  # the median
    fit = fit_objects(objects, AnchorSetup(grid, tuple(cfg.MODEL.RETINANET.IOU_THRESHOLDS), shorter, longest))
    better = _better(cfg, grid, sample(objects, _FOR_CANDIDATES), shorter)
    return AnchorReport(fit, group_fit(objects, fit, class_names), better)


def anchor_warnings(report: AnchorReport) -> list[str]:
    """Warn if many objects have no anchor, and name what would give them one."""
    whole = report.rows.whole
    unreached = 1 - whole.reached
    if unreached < _UNREACHED or whole.number < FEW:
        return []
    better = "".join(f"; {overrides} would leave {1 - share:.0%}" for overrides, share in report.better)
    return [
        f"{unreached:.0%} of boxes have no anchor with IoU >= {iou_text(report.fit.thresholds[1])} at this size, "
        f"{report.fit.size}; median side {whole.side:.0f} px{better}"
    ]


def _grid(cfg: CfgNode, model: torch.nn.Module) -> AnchorGrid | None:
    """Return the anchors of FocalRetinaNet and Detectron2's RetinaNet; None for other models."""
    if cfg.MODEL.META_ARCHITECTURE not in ("FocalRetinaNet", "RetinaNet"):
        return None
    generator: Any = model.anchor_generator
    backbone: Any = model.backbone
    cells = [level.detach().cpu().double().numpy() for level in generator.cell_anchors]
    return AnchorGrid(cells, generator.strides, generator.offset, max(1, backbone.size_divisibility))


def _better(cfg: CfgNode, grid: AnchorGrid, objects: Objects, shorter: float) -> list[tuple[str, float]]:
    """Return the best other anchors, and the best larger image, if they reach clearly more objects."""
    if cfg.MODEL.ANCHOR_GENERATOR.NAME != "OctaveAnchorGenerator":
        return []
    reach = cfg.MODEL.RETINANET.IOU_THRESHOLDS[1]

    def share(candidate: _Candidate) -> float:
        cells = [cell_anchors(s, candidate.scales, candidate.ratios).double().numpy() for s in candidate.base_sizes]
        boxes, sizes = at_size(objects, candidate.shorter, candidate.longest)
        return float((best_ious(boxes, sizes, grid._replace(cells=cells)) >= reach).mean())

    now, *others = _candidates(cfg, shorter, (objects.sizes.max(axis=1) / objects.sizes.min(axis=1)).max())
    least = share(now) + _WORTH
    found = []
    for of_anchors in (True, False):
        group = [(c, share(c)) for c in others if (c.shorter == now.shorter) == of_anchors]
        # The first of those that are equally good to a hundredth: the list goes from small changes to large ones.
        best = max(group, key=lambda pair: round(pair[1], 2))
        if best[1] >= least:
            found.append((" ".join(f'{key} "{value}"' for key, value in best[0].changes.items()), best[1]))
    return sorted(found, key=lambda pair: -round(pair[1], 2))


def _candidates(cfg: CfgNode, shorter: float, longest_shape: float) -> Iterator[_Candidate]:
    """Yield the configuration's own; then sizes an octave or two away, more ratios, more scales; then larger images."""
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
