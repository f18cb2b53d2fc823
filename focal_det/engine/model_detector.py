"""A model of Detectron2's interface as a detector of arrays, in tiles where MODEL.FOCAL_DET.TILES asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import nn

from ..data.tile_records import tiles_of
from ..distributed.cluster import unwrapped
from ..inference.detections import Detections
from ..inference.images import alike_in_size, resize_shortest_edge
from ..inference.tiles import detect_in_tiles

_TILES_TOGETHER = 4  # in an evaluation; without the activations that training keeps they need less memory than it


class ModelDetector:
    """Detect in images of any size, in batches of those that have one size after resizing; called without gradients.

    Args:
        cfg: INPUT says how images are resized and ordered, MODEL.FOCAL_DET.TILES which tiles large ones have.
        model: in evaluation mode; gives "instances" with `pred_boxes`, `scores` and `pred_classes`.
        batch_size: most images, or tiles, that go through the model together.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, batch_size: int) -> None:
        self.sizes = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        self.is_rgb, self.tiles = cfg.INPUT.FORMAT == "RGB", tiles_of(cfg)
        self.model, self.batch_size = model, batch_size

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detect in each image, (H, W, 3) uint8 BGR, in its own pixels."""
        return detect_in_tiles(self._in_whole, images, self.tiles, self.batch_size)

    def _in_whole(self, images: Sequence[np.ndarray]) -> list[Detections]:
        ordered = [image[:, :, ::-1] if self.is_rgb else image for image in images]
        resized = [resize_shortest_edge(image, *self.sizes) for image in ordered]
        found: dict[int, Detections] = {}
        for batch in alike_in_size(resized, self.batch_size):
            outputs = self.model([_model_input(resized[i], images[i].shape) for i in batch])
            found.update(zip(batch, (_as_arrays(output["instances"]) for output in outputs), strict=True))
        return [found[i] for i in range(len(images))]


class TiledModel(nn.Module):
    """A model that is given whole images, not resized, and detects in their tiles; see `evaluated_in_tiles`."""

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        super().__init__()
        self.model = unwrapped(model)  # ranks have different numbers of tiles
        self.training = self.model.training  # the mode that an evaluation restores
        self.is_rgb = cfg.INPUT.FORMAT == "RGB"
        self.detect = ModelDetector(cfg, self.model, _TILES_TOGETHER)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detect in images "image", (3, H, W) uint8 in the order of INPUT.FORMAT, in their own pixels."""
        arrays = [x["image"].permute(1, 2, 0).numpy() for x in batched_inputs]
        arrays = [array[:, :, ::-1] if self.is_rgb else array for array in arrays]
        return [
            {"instances": _as_instances(found, array.shape[:2])}
            for found, array in zip(self.detect(arrays), arrays, strict=True)
        ]


def evaluated_in_tiles(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Return what detects in images that are read by `reading_cfg`: with MODEL.FOCAL_DET.TILES a `TiledModel`."""
    return TiledModel(cfg, model) if cfg.MODEL.FOCAL_DET.TILES.SIZE else model


def reading_cfg(cfg: CfgNode) -> CfgNode:
    """Return the configuration to read images with for an evaluation: with tiles, which are resized, whole images."""
    if not cfg.MODEL.FOCAL_DET.TILES.SIZE:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST = 0
    return cfg


def _model_input(pixels: np.ndarray, full_shape: Sequence[int]) -> dict[str, object]:
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return {"image": image, "height": full_shape[0], "width": full_shape[1]}


def _as_arrays(instances: Instances) -> Detections:
    instances = instances.to("cpu")
    boxes, scores = instances.pred_boxes.tensor.float().numpy(), instances.scores.float().numpy()
    return Detections(boxes, scores, instances.pred_classes.long().numpy())


def _as_instances(found: Detections, size: tuple[int, int]) -> Instances:
    boxes, scores, classes = map(torch.from_numpy, (found.boxes, found.scores, found.classes))
    return Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
