"""The miniature's backbone: the same on every start, fits the detectors of its rows, and learns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from full_disk import room_for

from focal_det.paper import pretraining
from focal_det.paper.pretraining import backbone_keys, check_backbone, train_backbone
from focal_det.paper.runs import SweepOptions, plan_table, row_config
from focal_det.paper.tables import load_tables

pytestmark = pytest.mark.detectron2


@pytest.fixture
def small(monkeypatch):
    """Few and small images."""
    for name, value in {"_BATCH": 2, "_SIDE": 64, "_TESTED": 2, "_WARMUP": 1}.items():
        monkeypatch.setattr(pretraining, name, value)


def config(table="table1b", row="gamma_2"):
    cfg = row_config(load_tables()[table].rows[row], "mini")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    return cfg


def test_its_file_has_all_that_a_row_has_below_p6_and_is_the_same_again(small, tmp_path):
    for name in ("one", "other"):
        torch.manual_seed(len(name))  # whatever was drawn before
        share = train_backbone(config(), tmp_path / name, steps=2)
        assert 0 <= share <= 1
    one, other = (torch.load(tmp_path / name)["model"] for name in ("one", "other"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    for row in ("gamma_2", "last_layer", "with_p2", "shared_subnet"):
        model = build_model(config("table1b" if row == "gamma_2" else "section4", row))
        found = model.load_state_dict(one, strict=False)
        left = [name for name in found.missing_keys if name.startswith("backbone.")]
        assert all(name.startswith("backbone.top_block.") for name in left)
        assert all(".fpn_" in name for name in found.unexpected_keys)  # of levels that the row has not


def test_the_images_have_every_class_on_every_level_and_come_once():
    batch = next(pretraining._batches("train"))
    assert batch.images.shape == (16, 3, 128, 128)
    assert [classes.shape for classes in batch.classes.values()] == [(16, 32, 32), (16, 16, 16), (16, 8, 8), (16, 4, 4)]
    assert all(set(classes.unique().tolist()) == {0, 1, 2, 3} for classes in batch.classes.values())
    assert not torch.equal(batch.images, next(pretraining._batches("val")).images)


def test_a_place_has_the_class_of_the_smallest_box_around_its_middle(monkeypatch):
    monkeypatch.setattr(pretraining, "_SIDE", 32)
    boxes = np.array([[8.0, 0, 16, 8], [0, 0, 20, 12], [30, 30, 32, 32]])
    found = pretraining._classes_of_places(boxes, np.array([2, 0, 1]), 8)
    assert found.tolist() == [[0, 2, 3, 3], [3, 3, 3, 3], [3, 3, 3, 3], [3, 3, 3, 3]]


def test_it_learns(small, tmp_path, monkeypatch):
    """On one batch again and again, whose places it then knows."""
    batch = next(pretraining._batches("train"))
    monkeypatch.setattr(pretraining, "_batches", lambda split: iter([batch] * 60))
    assert train_backbone(config(), tmp_path / "it", steps=30) > 0.9


def test_rows_of_one_file_ask_for_one_backbone():
    keys = {}
    for table in load_tables().values():
        plan = plan_table(table, list(table.rows.values()), SweepOptions("mini", (1,), Path("out")))
        for name, cfg in plan.configs.items():
            (file,) = (word for word in plan.rows[name][1].arguments if "backbones" in word)
            assert keys.setdefault(file, backbone_keys(cfg)) == backbone_keys(cfg)
    assert len(keys) == 3  # with a wider pyramid


def test_a_backbone_of_another_configuration_is_named(small, tmp_path, monkeypatch):
    file = tmp_path / "R_18_FPN_64.pth"
    train_backbone(config(), file, steps=1)
    (problem,) = check_backbone(file, config()).errors
    assert "was trained with another configuration (steps 1 -> 1000)" in problem
    monkeypatch.setattr(pretraining, "BACKBONE_STEPS", 1)
    assert check_backbone(file, config("section4", "with_p2")).errors == []
    other = config()
    other.MODEL.RESNETS.NORM = "BN"
    (problem,) = check_backbone(file, other).errors
    assert "was trained with another configuration (MODEL.RESNETS.NORM GN -> BN); move it away" in problem
    torch.save({"model": torch.load(file)["model"]}, file)
    (problem,) = check_backbone(file, config()).errors
    assert "R_18_FPN_64.pth does not say what it was trained with; move it away" in problem


def test_a_full_disk_is_named(small, tmp_path):
    with room_for(100_000), pytest.raises(OSError, match="File too large") as raised:
        train_backbone(config(), tmp_path / "it.pth", steps=1)
    assert raised.value.filename == str(tmp_path / "it.pth")
    assert list(tmp_path.iterdir()) == []
