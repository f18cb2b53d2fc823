"""Images that a run would fail on, perhaps after its training: of no pixel, or of one, where resized; not to be cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from ..errors import Findings, cut, some
from .datasets import DataSets
from .named_sets import STREAM


def check_image_shapes(cfg: CfgNode, data: DataSets, model: torch.nn.Module) -> Findings:
    """Check the images of all sets whose files were read, with a configuration that is sound."""
    trained_on = {described.name for described in data.trained_on}
    tile = cfg.MODEL.FOCAL_DET.TILES.SIZE
    found = Findings(
        [
            f'data set "{described.name}" is a stream, which is not cut into tiles: let its function return a list, or '
            f"set MODEL.FOCAL_DET.TILES.SIZE, which is {tile}, to 0 (--tile 0)"
            for described in data.trained_on
            if tile and described.remark == STREAM
        ]
    )
    for dataset, file in data.files.items():
        images = file.coco["images"]
        if dataset.name in trained_on:
            found.errors += _vanishing(
                dataset.name, images, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, "TRAIN"
            )
        else:
            found.errors += _vanishing(dataset.name, images, [cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST, "TEST")
            found.errors += _single_pixels(cfg, dataset.name, images, model)
    return found


def _resized(images: Sequence[Mapping[str, Any]], shorter: float, longest: float, tile: int = 0) -> np.ndarray:
    """Return width and height (N, 2) after Detectron2's ResizeShortestEdge, which may leave a side of 0.

    They are those of the images' tiles, if the side of these is given.
    """
    sizes = np.array([(image["width"], image["height"]) for image in images], np.float64)
    sizes = np.minimum(sizes, tile or np.inf)
    if shorter == 0:  # as they are
        return sizes
    scale = np.minimum(shorter / sizes.min(axis=1), longest / sizes.max(axis=1))
    return np.asarray(np.floor(sizes * scale[:, None] + 0.5))


def _vanishing(
    name: str, images: Sequence[Mapping[str, Any]], shorter: Sequence[float], longest: float, use: str
) -> Iterator[str]:
    """Name the images that are so long and thin that their shorter side would become 0 pixels."""
    gone = _resized(images, min(shorter), longest).min(axis=1) < 1
    thin = [
        f"{cut(repr(i['file_name']))} {i['width']}x{i['height']}"
        for i, is_gone in zip(images, gone, strict=True)
        if is_gone
    ]
    if thin:
        what = f"{len(thin)} of {len(images)} images are so thin that they would be resized to 0 pixels"
        fix = f"cut them into pieces, leave them out, or raise INPUT.MAX_SIZE_{use}, which is {longest}"
        yield f"{name}: {what} ({some('', thin)}): {fix}"


def _single_pixels(
    cfg: CfgNode, name: str, images: Sequence[Mapping[str, Any]], model: torch.nn.Module
) -> Iterator[str]:
    """Say where GroupNorm has one value to normalise, which PyTorch refuses: one channel a group, one pixel a level."""
    head: Any = getattr(model, "head", model)
    lone = [m for m in head.modules() if isinstance(m, torch.nn.GroupNorm) and m.num_groups == m.num_channels]
    coarsest = max(getattr(model, "strides", None) or [0])
    sizes, tile = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST), cfg.MODEL.FOCAL_DET.TILES.SIZE
    small = np.minimum(*(_resized(images, *sizes, side).max(axis=1) for side in (0, tile))) <= coarsest
    if lone and small.any():
        what = f"{small.sum()} of {len(images)} images have one pixel at stride {coarsest}"
        where = (
            f"where MODEL.RETINANET.NORM GN has one channel a group with MODEL.FPN.OUT_CHANNELS {lone[0].num_channels}"
        )
        fix = f"set OUT_CHANNELS {2 * lone[0].num_channels}, NORM '', or INPUT.MIN_SIZE_TEST above {coarsest}"
        yield f"{name}: {what}, {where}, and nothing to normalise there; {fix}"
