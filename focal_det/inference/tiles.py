"""Large images in tiles: how what was found in each of them becomes what is in the image.

Resized to the network's input as a whole, a large image loses its small objects. A tile keeps them: it is resized and
detected in as an image of its own is. Boxes and tiles are XYXY in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..data.tiling import Tiles, tile_corners
from .detections import Detections

# Where boxes of one class overlap more in different tiles, they are one object.
_SAME_OBJECT_IOU = 0.5
# A box that lies with a larger share of its area in another one is a part of that object, if a border cuts it. It is
# cut if it ends at a border up to the detector's error, for which this share of its own side is allowed.
_PART_OF_OBJECT, _BORDER = 0.5, 0.2
# By what its score counts beside others. At 0 a weak false box in the whole image would hide good parts in tiles.
_CUT_SCORE = 0.5

Detect = Callable[[Sequence[np.ndarray]], list[Detections]]  # of images (H, W, 3) uint8


def detect_in_tiles(detect: Detect, images: Sequence[np.ndarray], tiles: Tiles, together: int) -> list[Detections]:
    """Detect in whole images, for what is larger than a tile, and in the tiles of those that need more than one.

    Args:
        images: (H, W, 3) uint8.
        together: most tiles that `detect` is given at a time.

    Returns:
        Detections in pixels of each image; where one tile covers all images exactly what `detect` returns for them.
    """
    found = []
    for image, whole in zip(images, detect(images), strict=True):
        height, width = image.shape[:2]
        corners = tile_corners(height, width, tiles)
        parts = [whole]
        for batch in np.split(corners, range(together, len(corners), together)) if len(corners) > 1 else ():
            of_batch = detect([image[top:bottom, left:right] for left, top, right, bottom in batch])
            shifts = np.tile(batch[:, :2], 2).astype(np.float32)
            parts += [replace(p, boxes=p.boxes + shift) for p, shift in zip(of_batch, shifts, strict=True)]
        places = np.vstack([[(0, 0, width, height)], corners])
        found.append(merge(parts, places) if len(parts) > 1 else whole)
    return found


def merge(parts: Sequence[Detections], places: np.ndarray) -> Detections:
    """Merge what was found in parts of an image, so that each object is there once.

    In each part the detector has suppressed by itself. Among those of other parts, the best box of an object hides the
    others of its class by IoU. A border within the image may cut an object, of which a neighbour shows more: such a box
    counts for less than its score says, and one that holds most of it hides it too.

    Args:
        parts: of the whole image first, then of its tiles; boxes in pixels of the image.
        places: (P, 4), of each part.
    """
    part = np.repeat(np.arange(len(parts)), [len(found) for found in parts])
    boxes, scores, classes = (np.concatenate([getattr(p, of) for p in parts]) for of in ("boxes", "scores", "classes"))
    is_cut = _are_cut(boxes, places[part], places[0])
    order = np.argsort(-scores * np.where(is_cut, _CUT_SCORE, 1), kind="stable")
    survivors: list[int] = []
    for label in np.unique(classes):
        of_class = order[classes[order] == label]
        survivors += of_class[_unhidden(boxes[of_class], part[of_class], is_cut[of_class])].tolist()
    kept = np.array(survivors, dtype=np.int64)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    return Detections(boxes[kept], scores[kept], classes[kept])


def _are_cut(boxes: np.ndarray, places: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Tell which boxes (D, 4) end at a border of their tile (D, 4) that is none of the image's (4,)."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    cut: np.ndarray = ((places != image) & (np.abs(boxes - places) <= np.maximum(1, _BORDER * sides))).any(axis=1)
    return cut


def _unhidden(boxes: np.ndarray, part: np.ndarray, is_cut: np.ndarray) -> list[int]:
    """Return which boxes of one class, best first, no better one of another part hides.

    Sorted by their left sides, those that a box can overlap are neighbours: few of the thousands in a large image.
    """
    by_left = np.argsort(boxes[:, 0], kind="stable")
    boxes, part, is_cut = boxes[by_left], part[by_left], is_cut[by_left]
    lefts, widths, areas = boxes[:, 0], boxes[:, 2] - boxes[:, 0], (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    first, last = np.searchsorted(lefts, [lefts - widths.max(), boxes[:, 2]])
    is_hidden = np.zeros(len(boxes), dtype=bool)
    kept: list[int] = []
    for rank, best in enumerate(np.argsort(by_left)):
        if is_hidden[best]:
            continue
        kept.append(rank)
        near = slice(first[best], last[best])
        shared = np.minimum(boxes[best, 2:], boxes[near, 2:]) - np.maximum(boxes[best, :2], boxes[near, :2])
        common = shared.clip(min=0).prod(axis=1)
        hides = common > _SAME_OBJECT_IOU * (areas[best] + areas[near] - common)
        hides |= is_cut[near] & (common > _PART_OF_OBJECT * areas[near])
        is_hidden[near] |= hides & (part[near] != part[best])  # one that was kept before stays
    return kept
