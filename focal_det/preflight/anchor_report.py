"""Which objects the anchors reach (section 4, "Anchors"), by the best IoU of each object with any anchor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode

from ..config.read_when import ARCHITECTURES
from ..data.statistics import AnchorFit, Objects, iou_text, sample
from ..data.tile_records import tiles_of
from ..data.tiling import Tiles, best_views, number_of_tiles
from ..modeling.anchors import cell_anchors
from .anchor_fit import FEW, AnchorGrid, AnchorSetup, FitRows, at_size, best_ious, fit_objects, group_fit, resized

_MOST = 100_000  # objects that are looked at, spread evenly over the set
_FOR_CANDIDATES = 10_000  # likewise, for each of the other anchors that are tried
_WORTH = 0.03  # share of all objects that other anchors must reach in addition to be suggested
_UNREACHED = 0.25  # share of objects without an anchor from which on it is a warning
# An object is small below this many cells of the finest level; tiles are proposed if so large a share is, and if they
# leave so little of it. They enlarge an image this much at most, and are at most so many.
_SMALL, _MOSTLY, _LEFT = 1.5, 0.5, 0.1
_ENLARGED, _MOST_TILES = 2, 100
_LOCATIONS = 9  # of an object's candidates on each level in ATSS's paper
_TILES = (2048, 1536, 1280, 1024, 800, 640, 512, 400, 320, 256, 192, 128, 96, 64)  # sides in pixels that are tried


class Proposal(NamedTuple):
    """Tiles in which fewer objects are small."""

    tile: int  # side in px
    limit: float  # side in px of the network's input below which an object is small
    now: float  # share of the objects that are
    then: float  # likewise, in tiles


class AnchorReport(NamedTuple):
    """The result of `report_anchors`."""

    fit: AnchorFit  # of each object
    decides: bool  # whether the thresholds of the IoU say which objects have an anchor, as they do by IoUAssigner
    rows: FitRows  # of groups of them
    better: list[tuple[str, float]]  # overrides, and the share of objects that they reach
    tiles: Proposal | None


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
    """Compare the anchors with the objects of the training sets, in tiles each where most of it is visible.

    The model is the configuration's, on any device. Returns None without objects, or where its anchors are not known.
    """
    grid = _grid(cfg, model)
    if grid is None or not len(objects.boxes):
        return None
    tiles = tiles_of(cfg)
    objects = _in_tiles(sample(objects, _MOST), tiles)
    shorts, longest = sorted(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN
    is_range = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"
    shorter = sum(shorts) / len(shorts) if is_range else shorts[len(shorts) // 2]  # the median
    setup = AnchorSetup(grid, tuple(cfg.MODEL.RETINANET.IOU_THRESHOLDS), shorter, longest)
    fit = fit_objects(objects, setup)
    if tiles.size:
        fit = fit._replace(size=f"{fit.size} in tiles of {tiles.size} px")
    decides = cfg.MODEL.META_ARCHITECTURE == "RetinaNet" or cfg.MODEL.FOCAL_DET.ASSIGNER.NAME == "IoUAssigner"
    better = _better(cfg, grid, sample(objects, _FOR_CANDIDATES), shorter) if decides else []
    proposal = None if tiles.size else _proposal(cfg, objects, shorter, _SMALL * grid.strides[0])
    return AnchorReport(fit, decides, group_fit(objects, fit, class_names), better, proposal)


def anchor_warnings(report: AnchorReport) -> list[str]:
    """Warn if many objects have no anchor, or most are small, and name what would change it."""
    whole = report.rows.whole
    unreached, warnings = 1 - whole.reached, []
    if whole.number < FEW:
        return []
    if report.decides and unreached >= _UNREACHED:
        better = "".join(f"; {overrides} would leave {1 - share:.0%}" for overrides, share in report.better)
        warnings.append(
            f"{unreached:.0%} of boxes have no anchor with IoU >= {iou_text(report.fit.thresholds[1])} at this size, "
            f"{report.fit.size}; median side {whole.side:.0f} px{better}"
        )
    if report.tiles:
        tile, limit, now, then = report.tiles
        warnings.append(
            f"{now:.0%} of {whole.number:,} objects are below {limit:g} px in the network's input, {report.fit.size}; "
            f"--tile {tile} makes it {then:.0%}, in training, evaluations and predictions"
        )
    return warnings


def candidate_warnings(cfg: CfgNode, model: torch.nn.Module) -> list[str]:
    """Warn if several anchors share a location and ATSS's candidates therefore lie at fewer than in its paper."""
    assigner = cfg.MODEL.FOCAL_DET.ASSIGNER
    if assigner.NAME != "ATSSAssigner":
        return []
    generator: Any = model.anchor_generator
    sharing = max(map(len, generator.cell_anchors))
    locations = math.ceil(assigner.TOPK / sharing)
    if sharing == 1 or locations >= _LOCATIONS:
        return []
    return [
        f"MODEL.FOCAL_DET.ASSIGNER.TOPK is {assigner.TOPK}, and {sharing} anchors share each location: an object's "
        f"candidates on a level lie at {locations} {'location' if locations == 1 else 'locations'}, {_LOCATIONS} in "
        f"ATSS's paper; set TOPK to {_LOCATIONS * sharing}, or have one anchor per location, as "
        "focal_det://heirs/Base-ATSS.yaml does"
    ]


def _grid(cfg: CfgNode, model: torch.nn.Module) -> AnchorGrid | None:
    """Return the anchors of FocalRetinaNet and Detectron2's RetinaNet; None for other models."""
    if cfg.MODEL.META_ARCHITECTURE not in ARCHITECTURES:
        return None
    generator: Any = model.anchor_generator
    backbone: Any = model.backbone
    cells = [level.detach().cpu().double().numpy() for level in generator.cell_anchors]
    return AnchorGrid(cells, generator.strides, generator.offset, max(1, backbone.size_divisibility))


def _in_tiles(objects: Objects, tiles: Tiles) -> Objects:
    """Return the objects as they are in the tile that shows most of each, or in the whole image."""
    if not tiles.size:
        return objects
    views = best_views(objects.boxes, objects.sizes, tiles)
    boxes = np.clip(objects.boxes, np.tile(views[:, :2], 2), np.tile(views[:, 2:], 2)) - np.tile(views[:, :2], 2)
    return objects._replace(boxes=boxes, sizes=views[:, 2:] - views[:, :2])


def _proposal(cfg: CfgNode, objects: Objects, shorter: float, limit: float) -> Proposal | None:
    """Return the largest tiles with which few objects are small, where most are since their images are reduced."""

    def share(tiles: Tiles) -> float:
        boxes, _ = at_size(_in_tiles(objects, tiles), shorter, cfg.INPUT.MAX_SIZE_TRAIN)
        return float((np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)) < limit).mean())

    now, (width, height) = share(Tiles()), np.median(objects.sizes, axis=0).astype(int).tolist()
    is_reduced = resized(np.array([[width, height]]), shorter, cfg.INPUT.MAX_SIZE_TRAIN).max() < max(width, height)
    if now < _MOSTLY or not is_reduced or cfg.TEST.AUG.ENABLED:  # which is of whole images
        return None
    for size in _TILES:
        tiles = Tiles(size, cfg.MODEL.FOCAL_DET.TILES.OVERLAP)
        if size * _ENLARGED < shorter or number_of_tiles(height, width, tiles) > _MOST_TILES:
            break
        if (then := share(tiles)) <= _LEFT:
            return Proposal(size, limit, now, then)
    return None


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
