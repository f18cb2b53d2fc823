"""From a record to what the model takes: an image, or a tile of one, and its objects, resized and augmented."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager
from PIL import Image

from ..formats.image_files import orientation
from .tile_records import IGNORED, annotation

_CONSUMED = ("annotations", "cut_parts", "tile", "whole")  # of a tile's record
Record = dict[str, Any]


class ImageMapper(DatasetMapper):
    """Detectron2's mapper of boxes, which never rounds one, and which cuts the tiles of `cut_records`.

    Transforms compute in the type of a box's numbers. Where an annotation file has whole numbers, as most tools write
    them, a resized box would lose all behind the decimal point, always to the upper left: half a pixel of the network's
    input on average, which is much of a small object.

    Augmentation follows the cut.
    """

    def __call__(self, dataset_dict: Record) -> Record:
        """Map a record; see Detectron2."""
        if "tile" in dataset_dict:
            return self._map_tile(dataset_dict)
        if annotations := dataset_dict.get("annotations"):
            dataset_dict = {**dataset_dict, "annotations": list(map(_in_floats, annotations))}
        mapped: Record = super().__call__(dataset_dict)
        return mapped

    def _map_tile(self, record: Record) -> Record:
        aug_input = T.AugInput(_read_tile(record, self.image_format))
        transforms = self.augmentations(aug_input)
        size = aug_input.image.shape[:2]
        return {
            **{name: value for name, value in record.items() if name not in _CONSUMED},
            "image": torch.as_tensor(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))),
            "instances": transformed_objects(record, transforms, size),
        }


def transformed_objects(record: Mapping[str, Any], transforms: T.TransformList, size: tuple[int, int]) -> Instances:
    """Return the objects of a record, but crowds, and the parts of others in a tile, in an image (H, W) of a size."""
    rows = [_in_floats(row) for row in record["annotations"] if not row.get("iscrowd")]
    rows += [annotation(box, IGNORED) for box in record.get("cut_parts", ())]
    rows = [utils.transform_instance_annotations(row, transforms, size) for row in rows]
    return utils.filter_empty_instances(utils.annotations_to_instances(rows, size))


def _in_floats(row: Record) -> Record:
    return {**row, "bbox": [float(number) for number in row["bbox"]]} if "bbox" in row else row


def _read_tile(record: Record, image_format: str) -> np.ndarray:
    """Read an image as Detectron2 does, and cut out the tile.

    Cutting comes before the conversion, which for all of a large image takes twice as long as decoding it.
    """
    left, top, right, bottom = record["tile"]
    width, height = record["whole"]
    with PathManager.open(record["file_name"], "rb") as file:
        image = Image.open(file)
        if orientation(image) == 1 and image.size == (width, height):
            return np.asarray(utils.convert_PIL_to_numpy(image.crop((left, top, right, bottom)), image_format))
    whole = utils.read_image(record["file_name"], format=image_format)
    utils.check_image_size({"file_name": record["file_name"], "width": width, "height": height}, whole)
    return np.asarray(whole[top:bottom, left:right])
