"""Which objects the anchors reach (section 4, "Anchors"), by the best IoU of each object with any anchor.

Shapes
    boxes: (N, 4)  XYXY float64 in pixels of the network's input, with x2 > x1 and y2 > y1
    sizes: (N, 2)  width and height of each box's image, in the same pixels
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode

from ..data.statistics import SIZE_LIMITS, Objects, sample
from ..data.tile_records import tiles_of
from ..data.tiling import Tiles, best_views, tile_corners
from ..modeling.anchors import cell_anchors

_MOST = 100_000  # objects that are looked at, spread evenly over the set
_FOR_CANDIDATES = 10_000  # likewise, for each of the other anchors that are tried
_WORTH = 0.03  # share of all objects that other anchors must reach in addition to be suggested
_FEW = 10  # objects; a class of fewer is not listed, and a set of fewer not warned about
_UNREACHED = 0.25  # share of objects without an anchor from which on it is a warning
# An object is small below this many cells of the finest level; tiles are proposed if so large a share is, and if they
# leave so little of it. They enlarge an image this much at most, and are at most so many.
_SMALL, _MOSTLY, _LEFT = 1.5, 0.5, 0.1
_ENLARGED, _MOST_TILES = 2, 100
_TILES = (2048, 1536, 1280, 1024, 800, 640, 512, 400, 320, 256, 192, 128, 96, 64)  # sides in pixels that are tried


class AnchorGrid(NamedTuple):
    """The positions of a model's anchors."""

    cells: Sequence[np.ndarray]  # for each level (A, 4) XYXY around (0, 0)
    strides: Sequence[int]  # for each level, in pixels
    offset: float  # of the first location from the image's corner, in strides, in [0, 1)
    divisor: int  # the image is padded to a multiple of it, in pixels, before the levels are made


def resized(sizes: np.ndarray, shorter: float, longest: float) -> np.ndarray:
    """Return the sizes (N, 2) of images after Detectron2's ResizeShortestEdge.

    The shorter side becomes `shorter` pixels, unless the longer one would be beyond `longest`; then that becomes it.
    """
    scale = np.minimum(shorter / sizes.min(axis=1), longest / sizes.max(axis=1))
    rounded: np.ndarray = np.maximum(np.floor(sizes * scale[:, None] + 0.5), 1)
    return rounded


def best_ious(boxes: np.ndarray, sizes: np.ndarray, grid: AnchorGrid) -> np.ndarray:
    """Return the highest IoU of each box with any anchor of its image, (N,).

    It is exact without trying every location: the overlap of two boxes is a product of one factor for x and one for y,
    and each decreases with the distance of the centres in its direction. So the best of all anchors of one shape is the
    one with the nearest centre in x and in y, and one IoU for each shape is enough.
    """
    boxes, sizes = np.asarray(boxes, np.float64), np.asarray(sizes, np.float64)
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    areas, best = sides.prod(axis=1), np.zeros(len(boxes))
    padded = np.ceil(sizes / grid.divisor) * grid.divisor
    for cells, stride in zip(grid.cells, grid.strides, strict=True):
        last = np.ceil(padded / stride) - 1  # of the locations 0, 1, ... in x and y
        nearest = np.clip(np.rint(centres / stride - grid.offset), 0, last)
        x1, y1, x2, y2 = (boxes - np.tile((nearest + grid.offset) * stride, 2)).T  # relative to the location
        for left, top, right, bottom in np.asarray(cells, np.float64):
            width = np.minimum(x2, right) - np.maximum(x1, left)
            height = np.minimum(y2, bottom) - np.maximum(y1, top)
            shared = np.maximum(width, 0) * np.maximum(height, 0)
            np.maximum(best, shared / (areas + (right - left) * (bottom - top) - shared), out=best)
    return best


class Row(NamedTuple):
    """A group of the objects."""

    name: str
    number: int  # of objects
    reached: float  # share whose best IoU is at least the upper of MODEL.RETINANET.IOU_THRESHOLDS
    near: float  # share between the two
    missed: float  # share below the lower
    side: float  # median square root of the area, in px


class Proposal(NamedTuple):
    """Tiles in which fewer objects are small."""

    tile: int  # side in px
    limit: float  # side in px of the network's input below which an object is small
    now: float  # share of the objects that are
    then: float  # likewise, in tiles


class AnchorReport(NamedTuple):
    """The result of `report_anchors`."""

    size: str  # of the training images that it holds for
    thresholds: tuple[float, float]  # MODEL.RETINANET.IOU_THRESHOLDS, of background and objects
    whole: Row  # all objects
    by_size: list[Row]
    by_shape: list[Row]
    worst_classes: list[Row]
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

    areas, (low, high) = objects.areas, SIZE_LIMITS
    tall, wide = height > 2 * width, width > 2 * height
    whole = row("all", np.ones(len(ious), bool))
    classes = rows([(name, objects.classes == label) for label, name in enumerate(class_names)], _FEW)
    return AnchorReport(
        size=f"{round(shorter)} px" + (f" in tiles of {tiles.size} px" if tiles.size else ""),
        thresholds=(background, reach),
        whole=whole,
        by_size=rows([("small", areas < low), ("medium", (areas >= low) & (areas < high)), ("large", areas >= high)]),
        by_shape=rows([("tall", tall), ("middle", ~tall & ~wide), ("wide", wide)]),
        worst_classes=sorted((r for r in classes if r.reached < whole.reached), key=lambda r: r.reached)[:3],
        better=_better(cfg, grid, sample(objects, _FOR_CANDIDATES), shorter),
        tiles=None if tiles.size else _proposal(cfg, objects, shorter, _SMALL * grid.strides[0]),
    )


def anchor_warnings(report: AnchorReport) -> list[str]:
    """Warn if many objects have no anchor, or most are small, and name what would change it."""
    unreached, number = 1 - report.whole.reached, report.whole.number
    if number < _FEW:
        return []
    warnings = []
    if unreached >= _UNREACHED:
        better = "".join(f"; {overrides} would leave {1 - share:.0%}" for overrides, share in report.better)
        warnings.append(
            f"{unreached:.0%} of boxes have no anchor with IoU >= {iou_text(report.thresholds[1])} at this size, "
            f"{report.size}; median side {report.whole.side:.0f} px{better}"
        )
    if report.tiles:
        tile, limit, now, then = report.tiles
        warnings.append(
            f"{now:.0%} of {number:,} objects are below {limit:g} px in the network's input, {report.size}; "
            f"--tile {tile} makes it {then:.0%}, in training, evaluations and predictions"
        )
    return warnings


def iou_text(iou: float) -> str:
    """Return an IoU as text, such as ".5"."""
    return f"{iou:g}".removeprefix("0")


def _grid(cfg: CfgNode, model: torch.nn.Module) -> AnchorGrid | None:
    """Return the anchors of FocalRetinaNet and Detectron2's RetinaNet; None for other models."""
    if cfg.MODEL.META_ARCHITECTURE not in ("FocalRetinaNet", "RetinaNet"):
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
        boxes, _ = _at(_in_tiles(objects, tiles), shorter, cfg.INPUT.MAX_SIZE_TRAIN)
        return float((np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)) < limit).mean())

    now, (width, height) = share(Tiles()), np.median(objects.sizes, axis=0).astype(int).tolist()
    is_reduced = resized(np.array([[width, height]]), shorter, cfg.INPUT.MAX_SIZE_TRAIN).max() < max(width, height)
    if now < _MOSTLY or not is_reduced or cfg.TEST.AUG.ENABLED:  # which is of whole images
        return None
    for size in _TILES:
        tiles = Tiles(size, cfg.MODEL.FOCAL_DET.TILES.OVERLAP)
        if size * _ENLARGED < shorter or len(tile_corners(height, width, tiles)) > _MOST_TILES:
            break
        if (then := share(tiles)) <= _LEFT:
            return Proposal(size, limit, now, then)
    return None


def _at(objects: Objects, shorter: float, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (N, 4) and sizes (N, 2) after resizing."""
    sizes = resized(objects.sizes, shorter, longest)
    return objects.boxes * np.tile(sizes / objects.sizes, 2), sizes


def _better(cfg: CfgNode, grid: AnchorGrid, objects: Objects, shorter: float) -> list[tuple[str, float]]:
    """Return the best other anchors, and the best larger image, if they reach clearly more objects."""
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
