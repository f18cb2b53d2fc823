"""Tiles as images to train on: cut on the fly, each with the objects that it shows.

An image that one tile covers stays as it is. Any other one becomes a record of its own for each tile that detecting
would cut it into, beside the whole image, which detecting looks at too, for what is larger than a tile. So the sampler
draws tiles as it draws images, and all that holds for images (order, resume, filter, grouping by shape) holds for them.

What a border leaves too little of (`tiling.VISIBLE`) is in the tile as a box of the class IGNORED: the anchors that are
like it are neither its own nor background.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import BoxMode

from ..errors import counted
from .tiling import Tiles, shown_in, tile_corners

IGNORED = -1  # the label that an anchor takes from such a box
Record = dict[str, Any]


def tiles_of(cfg: CfgNode) -> Tiles:
    """Return MODEL.FOCAL_DET.TILES."""
    tiles = cfg.MODEL.FOCAL_DET.TILES
    return Tiles(tiles.SIZE, tiles.OVERLAP) if tiles.SIZE else Tiles()


def cut_records(records: Any, tiles: Tiles, *, filter_empty: bool = False) -> Any:
    """Cut the images of a list of records into tiles, in their order.

    A tile's record has its own "width" and "height", "annotations" in its pixels, the boxes of the "cut_parts" of
    others, and for `ImageMapper` the "tile", XYXY in pixels of the image, and the image's "whole" width and height.

    Args:
        records: Detectron2's, with boxes.
        tiles: those of size 0 cut nothing.
        filter_empty: leave out tiles without an object; the images are filtered before.

    Raises:
        ValueError: one of PyTorch's data sets instead of a list, which is read only image by image.
    """
    if not tiles.size:
        return records
    if not isinstance(records, (list, tuple)):
        raise ValueError(
            f"MODEL.FOCAL_DET.TILES.SIZE is {tiles.size}, but {type(records).__name__} is no list of records to cut "
            "into tiles: return a list, or set it to 0"
        )
    return [part for record in records for part in _cut(record, tiles, filter_empty)]


def _cut(record: Record, tiles: Tiles, filter_empty: bool) -> Iterator[Record]:
    yield record
    width, height = record["width"], record["height"]
    corners = tile_corners(height, width, tiles)
    if len(corners) == 1:
        return
    objects = [row for row in record.get("annotations", ()) if not row.get("iscrowd", 0)]  # as the mapper filters
    boxes, modes = np.zeros((len(objects), 4)), np.array([row["bbox_mode"] for row in objects])
    for mode in set(modes.tolist()):
        places = np.flatnonzero(modes == mode)
        of_mode = np.array([objects[place]["bbox"] for place in places], np.float64)
        boxes[places] = BoxMode.convert(of_mode, BoxMode(mode), BoxMode.XYXY_ABS)
    boxes = np.clip(boxes, 0, [width, height, width, height])
    for tile, shown in zip(corners.tolist(), shown_in(boxes, corners), strict=True):
        if filter_empty and not len(shown.objects):
            continue
        labels = [objects[place]["category_id"] for place in shown.objects]
        yield {
            **record,
            "width": tile[2] - tile[0],
            "height": tile[3] - tile[1],
            "annotations": [annotation(*pair) for pair in zip(shown.boxes.tolist(), labels, strict=True)],
            "cut_parts": shown.parts.tolist(),
            "tile": tile,
            "whole": (width, height),
        }


def counted_records(records: Sequence[Mapping[str, Any]]) -> str:
    """Return how many images they are, and how many tiles, as a text."""
    tiles = sum("tile" in record for record in records)
    images = counted(len(records) - tiles, "image")
    return f"{images} and {counted(tiles, 'tile')}" if tiles else images


def annotation(box: list[float], label: int) -> dict[str, Any]:
    """Return one of Detectron2's annotations, of a box XYXY."""
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label}
