"""Where tiles lie in an image, and what they show of its objects; boxes and tiles are XYXY in pixels of the image.

Detecting, training and the checks before it cut images by the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..defaults import check_overlap, check_tile
from ..errors import Findings

# From this share of an object's area on, what a tile shows of it stands for the object. The share is the IoU of the two
# boxes, and .5 the one from which on an anchor, or a detection, is that object's.
VISIBLE = 0.5
MOST_TILES = 10_000  # of an image that is trained on
_TOGETHER = 64  # tiles whose objects are looked for at once, which bounds the memory


class Tiles(NamedTuple):
    """The side of square tiles in pixels, 0 for whole images, and the share of it by which neighbours overlap."""

    size: int = 0
    overlap: float = 0.2

    def replaced(self, size: int | None, overlap: float | None) -> Tiles:
        """Return tiles with the values that are given, where None is for these ones.

        Raises:
            InputError: of every value that no tile can have, and for an overlap of no tiles.
        """
        Findings(tile_problems(size, overlap)).raise_if_errors()
        tiles = Tiles(self.size if size is None else int(size), self.overlap if overlap is None else float(overlap))
        if overlap is not None and not tiles.size:
            Findings([f"overlap is {overlap}, but there are no tiles: give their size too"]).raise_if_errors()
        return tiles


def tile_problems(size: object, overlap: object, names: tuple[str, str] = ("tile", "overlap")) -> list[str]:
    """Return what is wrong with values that a caller may leave out, as None, by their names there."""
    problems = []
    for name, value, check in zip(names, (size, overlap), (check_tile, check_overlap), strict=True):
        try:
            if value is not None:
                check(value)
        except ValueError as error:
            problems.append(f"{name} is {value!r}: {error}")
    return problems


def tile_corners(height: int, width: int, tiles: Tiles) -> np.ndarray:
    """Return the tiles that cover an image, (T, 4) int64, row by row.

    The last of a row or column is shifted inward, so that all have one size. A side of the image that is no longer than
    a tile is taken whole, and so is every image for a size of 0.
    """
    (tops, bottoms), (lefts, rights) = (_spans(side, tiles) for side in (height, width))
    rows, columns = np.indices((len(tops), len(lefts))).reshape(2, -1)
    return np.stack([lefts[columns], tops[rows], rights[columns], bottoms[rows]], axis=1)


def number_of_tiles(height: int, width: int, tiles: Tiles) -> int:
    """Return how many `tile_corners` are."""
    return math.prod(int(_grid(side, tiles)[2]) + 1 for side in (height, width))


def _spans(side: int, tiles: Tiles) -> tuple[np.ndarray, np.ndarray]:
    """Return where tiles begin and end along a side of the image."""
    size, step, last = _grid(side, tiles)
    starts = np.minimum(np.arange(last + 1) * step, side - size).astype(np.int64)
    return starts, starts + int(size)


def _grid(sides: Any, tiles: Tiles) -> tuple[Any, Any, Any]:
    """Return, for one side of an image or several, that of its tiles, the step between them, and the last one's number.

    The last one is shifted inward, where it would reach beyond the image.
    """
    size = np.minimum(tiles.size or np.inf, sides)
    step = np.maximum(1, np.round(size * (1 - tiles.overlap)))
    return size, step, np.ceil((sides - size) / step)


class Shown(NamedTuple):
    """What a tile shows of an image's objects.

    objects: (M,) int64, which ones it shows enough of, see `VISIBLE`.
    boxes: (M, 4), their visible parts in pixels of the tile.
    parts: (P, 4), likewise of the others: neither objects nor background.
    """

    objects: np.ndarray
    boxes: np.ndarray
    parts: np.ndarray


def shown_in(boxes: np.ndarray, corners: np.ndarray) -> Iterator[Shown]:
    """Yield what each tile (T, 4) shows of the objects of an image, (N, 4) float64 within it."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for some in np.split(corners, range(_TOGETHER, len(corners), _TOGETHER)):
        low, high = np.tile(some[:, None, :2], 2), np.tile(some[:, None, 2:], 2)
        clipped = np.clip(boxes, low, high)  # (t, N, 4)
        sides = clipped[..., 2:] - clipped[..., :2]
        is_seen = (sides > 0).all(axis=2)
        is_object = is_seen & (sides.prod(axis=2) >= VISIBLE * areas)
        for shown, seen, chosen in zip(clipped - low, is_seen, is_object, strict=True):
            yield Shown(chosen.nonzero()[0], shown[chosen], shown[seen & ~chosen])


def best_views(boxes: np.ndarray, sizes: np.ndarray, tiles: Tiles) -> np.ndarray:
    """Return in which tile most of each object is visible, (N, 4) float64; the whole image if that shows too little.

    Args:
        boxes: (N, 4), within their images.
        sizes: (N, 2), width and height of each one's image.
    """
    starts, ends = np.empty_like(sizes), np.empty_like(sizes)
    for axis in (0, 1):
        size, step, last = _grid(sizes[:, axis], tiles)
        # All are of one size, so it is the one whose middle is nearest to the object's.
        ideal = (boxes[:, axis] + boxes[:, axis + 2] - size) / 2
        before = np.clip(np.floor(ideal / step), 0, last)
        near, next_one = (np.minimum(n * step, sizes[:, axis] - size) for n in (before, before + 1))
        starts[:, axis] = np.where(np.abs(near - ideal) <= np.abs(next_one - ideal), near, next_one)
        ends[:, axis] = starts[:, axis] + size
    visible = (np.minimum(boxes[:, 2:], ends) - np.maximum(boxes[:, :2], starts)).clip(min=0).prod(axis=1)
    is_enough = visible >= VISIBLE * (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    views = np.hstack([starts, ends])
    return np.where(is_enough[:, None], views, np.hstack([np.zeros_like(sizes), sizes]))
