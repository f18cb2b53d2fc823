"""Alpha by inverse class frequency: the counts are those of the assignment that a training makes of the same images."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BoxMode

from focal_det.data.augmentation import training_mapper
from focal_det.data.image_mapper import ImageMapper
from focal_det.paper.inverse_frequency import AnchorCounts, count_anchors

pytestmark = pytest.mark.detectron2


def test_alpha_makes_positives_and_negatives_weigh_the_same():
    counts = AnchorCounts(torch.tensor([30, 10, 0]), anchors=1000, counted_in="2 images")
    assert (counts.assigned, counts.of_anchors) == (40, 0.96)
    assert counts.of_anchors * 40 == pytest.approx((1 - counts.of_anchors) * 960)
    assert counts.of_problems * 40 == pytest.approx((1 - counts.of_problems) * (3 * 1000 - 40))
    assert counts.by_class.tolist() == pytest.approx([0.97, 0.99, 1.0])


@pytest.fixture
def drawn_set(tmp_path):
    from PIL import Image

    records = []
    for number, (width, height) in enumerate([(64, 48), (40, 64), (64, 64)]):
        Image.new("RGB", (width, height)).save(tmp_path / f"{number}.png")
        rows = [
            ([4.0, 6.0, 20.0, 24.0], number % 2, 0),
            ([20.0, 20.0, 18.0, 22.0], 2, 0),
            ([1.0, 1.0, 30.0, 30.0], 0, 1),
        ]
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": label, "iscrowd": crowd}
            for box, label, crowd in rows
        ]
        place = {"file_name": str(tmp_path / f"{number}.png"), "image_id": number}
        records.append({**place, "width": width, "height": height, "annotations": annotations})
    DatasetCatalog.register("counted_anchors", lambda: records)
    MetadataCatalog.get("counted_anchors").set(thing_classes=["a", "b", "c"])
    yield records
    DatasetCatalog.pop("counted_anchors")
    MetadataCatalog.pop("counted_anchors")


def test_the_anchors_are_those_that_a_training_assigns(tiny_cfg, drawn_set):
    size = ("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.RANDOM_FLIP", "none", "DATASETS.TRAIN", "('counted_anchors',)")
    cfg = tiny_cfg(*size)
    found = count_anchors(cfg, images=10)
    model, mapper, of_labels = build_model(cfg), training_mapper(cfg), torch.zeros(4, dtype=torch.int64)
    assert isinstance(mapper, ImageMapper)
    for record in drawn_set:
        _, labels = model.class_logits_and_labels([mapper(dict(record))])
        of_labels += torch.bincount(labels[labels >= 0], minlength=4)
    assert found.of_classes.tolist() == of_labels[:3].tolist()
    assert (found.anchors, found.counted_in) == (int(of_labels.sum()), "3 images")
    assert min(found.of_classes.tolist()) > 0
    assert count_anchors(cfg, images=2).counted_in == "2 images"
