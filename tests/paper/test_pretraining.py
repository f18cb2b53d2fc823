"""The miniature's backbone: the same on every start, fits the detectors of its rows, and learns."""

import pytest
import torch
from detectron2.modeling import build_model

from focal_det.paper import pretraining
from focal_det.paper.pretraining import train_backbone
from focal_det.paper.runs import row_config
from focal_det.paper.tables import load_tables

pytestmark = pytest.mark.detectron2


@pytest.fixture
def small(monkeypatch):
    """Few and small crops."""
    for name, value in {"_BATCH": 8, "_SIDE": 32, "_TESTED": 16, "_WARMUP": 1}.items():
        monkeypatch.setattr(pretraining, name, value)


def config(table="table1b", row="gamma_2"):
    cfg = row_config(load_tables()[table].rows[row], "mini")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    return cfg


def test_its_file_has_the_resnet_of_a_detector_and_is_the_same_again(small, tmp_path):
    for name in ("one", "other"):
        torch.manual_seed(len(name))  # whatever was drawn before
        share = train_backbone(config(), tmp_path / name, steps=2)
        assert 0 <= share <= 1
    one, other = (torch.load(tmp_path / name)["model"] for name in ("one", "other"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    for row in ("gamma_2", "last_layer", "with_p2", "shared_subnet"):
        model = build_model(config("table1b" if row == "gamma_2" else "section4", row))
        found = model.load_state_dict(one, strict=False)
        assert found.unexpected_keys == []
        assert not [name for name in found.missing_keys if name.startswith("backbone.bottom_up.")]


def test_the_crops_are_of_every_class_and_of_no_image_twice():
    crops, labels = next(pretraining._batches("train"))
    assert crops.shape == (64, 3, 32, 32)
    assert set(labels.tolist()) == {0, 1, 2}
    others, _ = next(pretraining._batches("val"))
    assert not torch.equal(crops, others)


def test_it_learns(small, tmp_path, monkeypatch):
    """On one batch again and again, whose classes it then knows."""
    batch = next(pretraining._batches("train"))
    monkeypatch.setattr(pretraining, "_batches", lambda split: iter([batch] * 20))
    assert train_backbone(config(), tmp_path / "it", steps=7) == 1
