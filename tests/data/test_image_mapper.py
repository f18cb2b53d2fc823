"""Boxes of whole numbers, as annotation files have them, are resized as exactly as others."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import BoxMode

from focal_det.data.augmentation import training_mapper
from focal_det.engine.validation_loss import ValidationLoss

pytestmark = pytest.mark.detectron2


@pytest.mark.parametrize("number", [int, float, np.int64, np.float32])
def test_a_resized_box_keeps_what_is_behind_the_decimal_point(tiny_cfg, val_shapes, number):
    record = {**DatasetCatalog.get(val_shapes)[0], "annotations": []}  # of 64 px
    for box in ([5, 7, 21, 13], [0, 1, 2, 3]):
        row = {"bbox": list(map(number, box)), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}
        record["annotations"].append(row)
    keys = ["INPUT.MIN_SIZE_TRAIN", "(88,)", "INPUT.RANDOM_FLIP", "none"]
    boxes = training_mapper(tiny_cfg(*keys))(record)["instances"].gt_boxes.tensor
    assert boxes.tolist() == [[6.875, 9.625, 35.75, 27.5], [0, 1.375, 2.75, 5.5]]
    assert [a["bbox"] for a in record["annotations"]] == [[5, 7, 21, 13], [0, 1, 2, 3]]  # the set keeps its own


def test_so_it_does_in_the_validation_loss(tiny_cfg, val_shapes):
    cfg = tiny_cfg("DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TEST", "88")
    cfg.DATASETS.TEST = (val_shapes,)
    hook = ValidationLoss(cfg, 0)
    hook.measure(build_model(cfg))
    for record, (image,) in zip(DatasetCatalog.get(val_shapes), hook._loader, strict=True):
        boxes = np.array([a["bbox"] for a in record["annotations"]], dtype=float)
        boxes[:, 2:] += boxes[:, :2]
        assert np.array_equal(image["instances"].gt_boxes.tensor, boxes * 88 / 64)
