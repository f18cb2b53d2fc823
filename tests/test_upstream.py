"""Detectron2's and fvcore's own tests hold for our classes, where their checkouts are at hand; see the tool."""

import importlib.util
import os
import runpy
import sys
import unittest
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from focal_det.data.shapes import make_shapes

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("upstream_tests", ROOT / "tools" / "upstream_tests.py")
upstream_tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(upstream_tests)


@pytest.mark.parametrize("package", ["detectron2", "fvcore"])
def test_their_tests_pass(package, capsys):
    variable = f"FOCAL_DET_{package.upper()}_CHECKOUT"
    if variable not in os.environ:
        pytest.skip(f"{variable} names no checkout of {package}, whose tests are not in its wheel")
    assert upstream_tests.main([f"--{package}", os.environ[variable]]) == 0, capsys.readouterr().out


THEIRS = """
import unittest
import torch
from fvcore.nn import sigmoid_focal_loss

class Theirs(unittest.TestCase):
    def test_value(self):
        loss = sigmoid_focal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]), alpha=-1, gamma=0)
        self.assertTrue(torch.allclose(loss, torch.full((2,), 0.6931472)))

    def test_wrong(self):
        self.assertEqual(sigmoid_focal_loss(torch.zeros(2), torch.ones(2), gamma=0, reduction="sum"), torch.tensor(1.0))

    def test_elsewhere(self):
        self.skipTest("no GPU")

    def test_of_another_class(self):
        raise AssertionError
"""


def test_each_test_of_theirs_has_an_outcome_and_a_reason(tmp_path):
    (tmp_path / "test_theirs.py").write_text(THEIRS)
    names = {"sigmoid_focal_loss": upstream_tests.our_focal_loss}
    suite = upstream_tests.Suite("test_theirs.py", names, {"another_class": "not ours"})
    assert [(test.split("::Theirs.")[1], *rest) for test, *rest in upstream_tests.run(tmp_path, suite)] == [
        ("test_elsewhere", "left out", "skips itself: no GPU"),
        ("test_of_another_class", "left out", "not ours"),
        ("test_value", "passed", ""),
        ("test_wrong", "FAILED", "AssertionError: tensor(1.3863) != tensor(1.)"),
    ]


def test_a_name_that_is_no_longer_theirs_is_a_failure(tmp_path):
    (tmp_path / "test_theirs.py").write_text("import unittest")
    ((_, result, why),) = upstream_tests.run(tmp_path, upstream_tests.Suite("test_theirs.py", {"Matcher": None}))
    assert (result, why) == ("FAILED", "has no Matcher to replace: another version of it?")


def test_losses_may_differ_in_the_last_bit_of_what_is_right_and_no_further():
    targets, notes = torch.tensor([1.0, 0.0, 0.0]), []
    ours = upstream_tests.our_focal_loss(torch.tensor([0.3, -0.2, 2.0]), targets, reduction="sum")
    compare = upstream_tests._to_the_last_bit(unittest.TestCase().assertEqual, notes)
    above = torch.nextafter(ours, torch.tensor(10.0))
    compare(above, ours)
    assert len(notes) == 1
    with pytest.raises(AssertionError):
        compare(ours, above + 1e-6)


CHECKOUT = os.environ.get("FOCAL_DET_DETECTRON2_CHECKOUT")
LAZY = """
from detectron2.config import LazyConfig
from detectron2.data.datasets import register_coco_instances

for part in ("train", "val"):
    register_coco_instances(f"mine_{part}", {}, f"FOLDER/{part}/annotations.json", f"FOLDER/{part}/images")

base = LazyConfig.load("CONFIG")
model, dataloader, optimizer = base.model, base.dataloader, base.optimizer
lr_multiplier, train = base.lr_multiplier, base.train
model.num_classes = 3
dataloader.train.dataset.names, dataloader.test.dataset.names = "mine_train", "mine_val"
"""
SMALL = [
    *("train.device=cpu", "train.init_checkpoint=''", "train.max_iter=2", "train.eval_period=2"),
    *("dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0", "dataloader.test.num_workers=0"),
    *("model.backbone.out_channels=16", "dataloader.train.mapper.augmentations.0.short_edge_length=64"),
    "dataloader.test.mapper.augmentations.0.short_edge_length=64",
]


@pytest.fixture
def lazy_config(tmp_path):
    """Write a LazyConfig file over ours for a COCO set of one's own."""
    for part, name in (("train", "shapes_train_4_64px"), ("val", "shapes_val_2_64px")):
        make_shapes(name, tmp_path)
        (tmp_path / "shapes" / "v1" / name).rename(tmp_path / part)
    path = tmp_path / "mine.py"
    path.write_text(
        LAZY.replace("FOLDER", str(tmp_path)).replace("CONFIG", str(ROOT / "configs/lazy/retinanet_R_50_FPN_1x.py"))
    )
    yield path
    for part in ("train", "val"):
        DatasetCatalog.remove(f"mine_{part}")
        MetadataCatalog.remove(f"mine_{part}")


@pytest.mark.skipif(CHECKOUT is None, reason="FOCAL_DET_DETECTRON2_CHECKOUT names no checkout, whose tools/ are needed")
@pytest.mark.parametrize(
    ("tool", "words", "said"),
    [
        ("lazyconfig_train_net", [], "model_final.pth"),
        ("analyze_model", ["--tasks", "flop", "activation", "parameter", "structure", "-n", "2"], "Total GFlops"),
    ],
)
def test_their_tools_run_on_our_lazy_configuration(tmp_path, monkeypatch, lazy_config, capfd, tool, words, said):
    path = str(Path(CHECKOUT, "tools", f"{tool}.py"))
    words = [path, "--config-file", lazy_config, *words, *SMALL, f"train.output_dir={tmp_path}/out"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    runpy.run_path(path, run_name="__main__")
    captured = capfd.readouterr()
    assert said in captured.out + captured.err
