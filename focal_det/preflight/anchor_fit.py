"""How well anchors fit objects, by the highest IoU of each with any anchor; by NumPy alone.

Shapes
    boxes: (N, 4)  XYXY float64 in pixels of the network's input, with x2 > x1 and y2 > y1
    sizes: (N, 2)  width and height of each box's image, in the same pixels
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..data.statistics import SIZE_LIMITS, AnchorFit, Objects, iou_text

FEW = 10  # objects; a class of fewer is not listed, and a set of fewer not warned about


class AnchorGrid(NamedTuple):
    """The positions of a model's anchors."""

    cells: Sequence[np.ndarray]  # for each level (A, 4) XYXY around (0, 0)
    strides: Sequence[int]  # for each level, in pixels
    offset: float  # of the first location from the image's corner, in strides, in [0, 1)
    divisor: int  # the image is padded to a multiple of it, in pixels, before the levels are made


class AnchorSetup(NamedTuple):
    """A detector's anchors, and the size of the images that they lie on."""

    grid: AnchorGrid
    thresholds: tuple[float, float]  # MODEL.RETINANET.IOU_THRESHOLDS, of background and objects
    shorter: float  # side of the training images in px, unless the longer one would be beyond `longest`
    longest: float

    @classmethod
    def of_paper(cls) -> AnchorSetup:
        """Return the paper's: 9 anchors of 32 to 813 px on P3 to P7, images of 800 px."""
        strides = [8, 16, 32, 64, 128]
        scales, ratios = 2 ** (np.arange(3)[:, None] / 3), np.array([0.5, 1, 2])  # height / width
        half = np.stack([scales * ratios**-0.5, scales * ratios**0.5], axis=2).reshape(-1, 2) / 2
        cells = [4 * stride * np.hstack([-half, half]) for stride in strides]
        return cls(AnchorGrid(cells, strides, offset=0.0, divisor=32), (0.4, 0.5), 800, 1333)


class Row(NamedTuple):
    """A group of the objects."""

    name: str
    number: int  # of objects
    reached: float  # share whose best IoU is at least the upper of MODEL.RETINANET.IOU_THRESHOLDS
    near: float  # share between the two
    missed: float  # share below the lower
    side: float  # median square root of the area, in px


class FitRows(NamedTuple):
    """Groups of the objects."""

    whole: Row  # all of them
    by_size: list[Row]
    by_shape: list[Row]
    worst_classes: list[Row]

    def as_json(self) -> list[dict[str, Any]]:
        """Return plain data: the fields of `Row` for each group."""
        rows = (self.whole, *self.by_size, *self.by_shape, *self.worst_classes)
        return [
            {
                "name": name,
                "objects": number,
                "reached": reached,
                "near": near,
                "missed": missed,
                "side": round(side, 1),
            }
            for name, number, reached, near, missed, side in rows
        ]


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


def at_size(objects: Objects, shorter: float, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (N, 4) and sizes (N, 2) after resizing."""
    sizes = resized(objects.sizes, shorter, longest)
    return objects.boxes * np.tile(sizes / objects.sizes, 2), sizes


def fit_objects(objects: Objects, setup: AnchorSetup) -> AnchorFit:
    """Return how anchors fit objects, in the order of these."""
    boxes, sizes = at_size(objects, setup.shorter, setup.longest)
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    return AnchorFit(sides, best_ious(boxes, sizes, setup.grid), setup.thresholds, f"{round(setup.shorter)} px")


def group_fit(objects: Objects, fit: AnchorFit, class_names: Sequence[str]) -> FitRows:
    """Group objects, of which there is at least one, by COCO's bounds of the area, by shape and by class."""
    background, reach = fit.thresholds
    width, height = (objects.boxes[:, 2:] - objects.boxes[:, :2]).T

    def row(name: str, chosen: np.ndarray) -> Row:
        found = fit.ious[chosen]
        reached, missed = float((found >= reach).mean()), float((found < background).mean())
        return Row(name, len(found), reached, 1 - reached - missed, missed, float(np.median(fit.sides[chosen])))

    def rows(parts: list[tuple[str, np.ndarray]], least: int = 1) -> list[Row]:
        return [row(name, chosen) for name, chosen in parts if chosen.sum() >= least]

    areas, (low, high) = objects.areas, SIZE_LIMITS
    tall, wide = height > 2 * width, width > 2 * height
    whole = row("all", np.ones(len(fit.ious), bool))
    classes = rows([(name, objects.classes == label) for label, name in enumerate(class_names)], FEW)
    return FitRows(
        whole=whole,
        by_size=rows([("small", areas < low), ("medium", (areas >= low) & (areas < high)), ("large", areas >= high)]),
        by_shape=rows([("tall", tall), ("middle", ~tall & ~wide), ("wide", wide)]),
        worst_classes=sorted((r for r in classes if r.reached < whole.reached), key=lambda r: r.reached)[:3],
    )


def fit_lines(rows: FitRows, fit: AnchorFit, *, full: bool) -> Iterator[str]:
    """Yield lines of text: the first says it all, and if `full`, a table by size, shape and class follows."""
    whole, (low, high) = rows.whole, map(iou_text, fit.thresholds)
    yield (
        f"anchors: {whole.reached:.1%} of {whole.number} objects have one with IoU >= {high} at {fit.size}, "
        f"{whole.near:.1%} one of {low} to {high}, {whole.missed:.1%} none of {low}; median side {whole.side:.0f} px"
    )
    if not full:
        return
    yield f"  {'':14}{'objects':>9}{'>= ' + high:>9}{f'{low} to {high}':>10}{'< ' + low:>8}{'median side':>15}"
    classes = [row._replace(name=f"class {row.name}") for row in rows.worst_classes]
    for row in (*rows.by_size, *rows.by_shape, *classes):
        numbers = f"{row.number:9}{row.reached:9.1%}{row.near:10.1%}{row.missed:8.1%}{row.side:12.0f} px"
        yield f"  {row.name:14}{numbers}"
