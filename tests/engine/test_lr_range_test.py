"""A learning-rate range test: how the lr grows, where it ends, and what it suggests."""

import math

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from focal_det.engine import lr_range_test
from focal_det.engine.lr_range_test import Measurement, range_test, smoothed, suggest, until_it_rises
from focal_det.engine.run import Job
from focal_det.engine.train_step import DeferredMetrics

pytestmark = pytest.mark.detectron2


def curve(losses):
    """Measurements whose lr doubles, and whose losses are smooth already."""
    return [Measurement(2.0**n, loss, loss) for n, loss in enumerate(losses)]


def test_losses_are_smoothed_without_a_bias_to_zero():
    found = list(smoothed([1.0, 2.0, 3.0], iter([4.0, 4.0, 8.0])))
    assert [one.smoothed for one in found[:2]] == pytest.approx([4.0, 4.0])
    # weights .81, .9 and 1 of the three, over their sum
    assert found[2].smoothed == pytest.approx((4 * 0.81 + 4 * 0.9 + 8) / 2.71)


def test_it_ends_where_the_loss_has_risen_or_is_not_finite():
    falling = [10.0 - n / 2 for n in range(12)]
    assert len(list(until_it_rises(iter(curve([*falling, 14.0, 14.0, 15.0])), 3.0))) == 13
    assert len(list(until_it_rises(iter(curve([4.0, 13.0, *falling])), 3.0))) == 14  # early noise ends nothing
    assert len(list(until_it_rises(iter(curve([*falling, math.nan, 1.0])), 3.0))) == 13


def test_a_tenth_of_where_the_loss_rises_is_suggested():
    found = suggest(curve([4.0] * 11 + [3.0, 2.0, 1.0, 2.0, 4.0]), 3.0)
    assert found.diverged_at == 2.0**15
    assert found.lr == pytest.approx(2.0**15 / 10)
    assert "a tenth of 3.28e+04, at which the loss was 3 times its lowest value" in found.rule


def test_without_a_rise_it_is_where_the_loss_falls_fastest():
    found = suggest(curve([4.0] * 14 + [3.9, 2.5, 1.2, 1.1, 1.0]), 3.0)
    assert (found.lr, found.diverged_at) == (2.0**15, None)
    assert suggest(curve([4.0] * 8), 3.0).lr is None


def test_a_loss_that_is_not_finite_diverges():
    assert suggest(curve([4.0] * 14 + [math.inf]), 3.0).diverged_at == 2.0**14


@pytest.fixture
def job(tiny_cfg, tmp_path, val_shapes):
    sets = ("DATASETS.TRAIN", f"('{val_shapes}',)", "DATASETS.TEST", "()")
    small = ("SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TRAIN", "(64,)")
    cfg = tiny_cfg(*sets, *small, "SOLVER.BIAS_LR_FACTOR", "2.0", "SOLVER.BASE_LR", "0.01", "SEED", "1")
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    yield Job(cfg=cfg, json_datasets=(), eval_only=False, processes_per_machine=1)
    assert not (tmp_path / "out").exists()  # nothing is written
    assert {DatasetCatalog.get(val_shapes) is not None, MetadataCatalog.get(val_shapes) is not None} == {True}


def test_the_lr_of_every_group_grows_from_the_lowest_to_the_highest(job, monkeypatch):
    seen, step = [], DeferredMetrics.run_step

    def run_step(self):
        seen.append(sorted({group["lr"] for group in self.optimizer.param_groups}))
        step(self)

    monkeypatch.setattr(DeferredMetrics, "run_step", run_step)
    monkeypatch.setattr(lr_range_test, "register_datasets", lambda *_: None)
    found = list(range_test(job, 1e-4, 1e-2, 3))
    assert [one.lr for one in found] == pytest.approx([1e-4, 1e-3, 1e-2])
    assert seen == [pytest.approx([lr, 2 * lr]) for lr in (1e-4, 1e-3, 1e-2)]  # weights and biases
    assert all(math.isfinite(one.loss) and one.loss > 0 for one in found)
