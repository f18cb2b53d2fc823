"""Alpha by inverse class frequency (section 3.1), from the anchors that a training assigns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import Tensor

from ..checkpoint.compatibility import build_cpu_model
from ..data.image_mapper import transformed_objects
from ..data.shared_records import mapped_part, read_train_records
from ..data.statistics import evenly_spread
from ..data.tile_records import counted_records
from ..modeling.retinanet import FocalRetinaNet
from ..preflight.anchor_fit import resized


class AnchorCounts(NamedTuple):
    """Anchors of a number of images, but for the ignored.

    of_classes: (K,) int64, those assigned to an object of each class.
    anchors: all of them.
    counted_in: how many images, and tiles, as a text.
    """

    of_classes: Tensor
    anchors: int
    counted_in: str

    @property
    def assigned(self) -> int:
        """The number of anchors on objects."""
        return int(self.of_classes.sum())

    @property
    def of_anchors(self) -> float:
        """The alpha that balances anchors on objects against background."""
        return 1 - self.assigned / max(1, self.anchors)

    @property
    def of_problems(self) -> float:
        """The alpha that balances y = 1 against y = -1, K times for each anchor, which is what the loss weights."""
        return 1 - self.assigned / max(1, self.anchors * len(self.of_classes))

    @property
    def by_class(self) -> Tensor:
        """The alpha that does so in the binary problem of each class, (K,) float64."""
        return 1 - self.of_classes.double() / max(1, self.anchors)


def count_anchors(cfg: CfgNode, images: int) -> AnchorCounts:
    """Assign the anchors of at most so many images of DATASETS.TRAIN, evenly spread, each resized alone.

    The sets must be registered. Images are not read: sizes and boxes are enough. Of several INPUT.MIN_SIZE_TRAIN it is
    the middle one.
    """
    model = build_cpu_model(cfg)
    assert isinstance(model, FocalRetinaNet)
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    of_labels, chosen = torch.zeros(num_classes + 1, dtype=torch.int64), _chosen(cfg, images)
    for record in chosen:
        ((_, _, targets),) = model.arguments_of_parts([[_resized_alone(cfg, record)]])
        labels = targets.assignment.labels.flatten()
        of_labels += torch.bincount(labels[labels >= 0], minlength=num_classes + 1)
    return AnchorCounts(of_labels[:num_classes], int(of_labels.sum()), counted_records(chosen))


def _chosen(cfg: CfgNode, images: int) -> Sequence[Mapping[str, Any]]:
    return evenly_spread(read_train_records(cfg, mapped_part(cfg)), images)


def _resized_alone(cfg: CfgNode, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the mapper makes of a record, with an image that has a size alone."""
    old, shorts = (record["height"], record["width"]), sorted(cfg.INPUT.MIN_SIZE_TRAIN)
    new = resized(np.array([old]), shorts[len(shorts) // 2], cfg.INPUT.MAX_SIZE_TRAIN)[0]
    height, width = new.astype(int).tolist()
    resize = T.TransformList([T.ResizeTransform(*old, height, width)])
    instances = transformed_objects(record, resize, (height, width))
    return {"image": torch.empty(3, height, width, device="meta"), "instances": instances}
