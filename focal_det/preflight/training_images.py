"""Training images as the network will see them, to be looked at before a training."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import BoxMode

from ..config.validate import check_config
from ..data.augmentation import training_mapper
from ..data.dataset_spec import OwnSet
from ..data.statistics import evenly_spread
from ..data.tile_records import IGNORED, cut_records, tiles_of
from ..data.train_loader import IMAGE, check_own_augmentation, named_faults, set_random_numbers
from ..errors import Findings, InputError
from ..formats.coco_index import CocoIndex
from ..inference.drawing import draw_boxes, titled

_KEYS = ("INPUT.", "MODEL.FOCAL_DET.AUGMENT.", "MODEL.FOCAL_DET.TILES.")  # what such an image depends on


def check_image_keys(cfg: CfgNode) -> None:
    """Raise InputError where a key that says what the network gets of an image is wrong."""
    problems = check_config(cfg, num_processes=1, training=True).errors
    Findings([problem for problem in problems if problem.startswith(_KEYS)]).raise_if_errors()


class TrainingImages:
    """Drawings of images as the network gets them, with the random numbers of SEED, or of 0 if that is negative.

    Raises InputError where a key that it reads is wrong, or an augmentation of the user's.
    """

    def __init__(self, cfg: CfgNode) -> None:
        check_image_keys(cfg)
        try:
            check_own_augmentation(cfg)
            self._map = named_faults(training_mapper(cfg))
        except (TypeError, ValueError) as error:
            raise InputError(str(error)) from error
        self._seed, self._tiles = max(0, cfg.SEED), tiles_of(cfg)
        self._is_rgb = cfg.INPUT.FORMAT == "RGB"

    def draw(
        self, own: OwnSet, image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]], count: int
    ) -> list[np.ndarray]:
        """Draw an image with its boxes, each time as another step would get it, under its size.

        Of one that is cut into tiles these are drawn, and it as a whole first.

        Args:
            image, annotations: of the set, as a COCO file has them.

        Raises:
            BrokenImageError: the image cannot be read.
        """
        index, drawings = CocoIndex(own.file.coco), []
        of_image = zlib.crc32(repr(image["id"]).encode())  # an id may be negative, which no seed is
        boxes = [
            {"bbox": a["bbox"], "bbox_mode": BoxMode.XYWH_ABS, "category_id": label, "iscrowd": a["iscrowd"]}
            for a, label in zip(annotations, index.labels_of(annotations).tolist(), strict=True)
        ]
        path = str(Path(own.image_dir) / image["file_name"])
        record = {"file_name": path, "height": image["height"], "width": image["width"], "annotations": boxes}
        records = evenly_spread(cut_records([record], self._tiles, filter_empty=True), count)
        for position in range(count):
            set_random_numbers(IMAGE, self._seed, position, of_image)
            found = self._map(records[position % len(records)])
            pixels = found["image"].numpy().transpose(1, 2, 0)[:, :, :: -1 if self._is_rgb else 1]
            kept, labels = found["instances"].gt_boxes.tensor.numpy(), found["instances"].gt_classes.numpy()
            texts = ["ignored" if label == IGNORED else index.names[label] for label in labels]
            drawn = draw_boxes(np.ascontiguousarray(pixels), kept, labels, texts, num_classes=len(index.names))
            drawings.append(
                titled(drawn, f"{pixels.shape[1]} x {pixels.shape[0]} px, {(labels != IGNORED).sum()} boxes")
            )
        return drawings
