"""A step that is not finite: where it is noticed, and what is kept of it."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage
from full_disk import room_for
from torch import nn

from focal_det.divergence.check import NonFiniteCheck
from focal_det.divergence.diverged_folder import KEPT, diverged_iterations
from focal_det.engine.train_step import DeferredMetrics

pytestmark = pytest.mark.detectron2


def test_the_file_holds_the_step_and_no_earlier_one_is_replaced(kept, tmp_path):
    first, second = kept(), kept()
    assert [path.name for path in (first, second)] == ["iteration_0000057_rank0.pth", "iteration_0000057_rank0_2.pth"]
    record = torch.load(first, weights_only=True)
    assert (record["iteration"], record["rank"], record["ranks"]) == (57, 0, 1)
    assert record["losses"] == {"loss_cls": 1.0, "loss_box_reg": float("inf")}
    assert [image["boxes"].shape for image in record["batch"]] == [(2, 4), (3, 4)]
    assert record["batch"][0]["image"].dtype == torch.uint8
    assert "META_ARCHITECTURE: FocalRetinaNet" in record["config"]
    assert diverged_iterations(str(tmp_path), 20) == frozenset(range(37, 58))
    assert diverged_iterations(str(tmp_path / "none"), 20) == frozenset()


def test_a_full_disk_is_logged_and_leaves_nothing(kept, tmp_path, caplog):
    with room_for(100_000):
        assert kept() is None
    assert "iteration_0000057_rank0.pth could not be written ([Errno 27] File too large" in caplog.text
    assert list((tmp_path / "diverged").iterdir()) == []


# --- where it is noticed ---------------------------------------------------------------------------------------------


class Bad(nn.Module):
    """A model whose loss, or the slope of it alone, is not finite."""

    def __init__(self, of_loss):
        super().__init__()
        self.good, self.bad = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))
        self.of_loss = of_loss

    def forward(self, batch):
        # the root at zero: its value is finite, its slope times zero is not
        bad = self.good.sum() / 0 if self.of_loss else (self.bad * 0).sqrt().sum()
        return {"loss_cls": self.good.sum() + bad}


@pytest.mark.parametrize(
    ("of_loss", "words"),
    [
        (True, "Loss became infinite or NaN at iteration=7, loss_cls"),
        (False, "Gradients .*=7, the first of them of bad"),
    ],
)
def test_a_step_that_is_not_finite_ends_the_training_before_the_weights_change(tiny_cfg, tmp_path, of_loss, words):
    model = Bad(of_loss)
    image = {"image": torch.zeros(3, 4, 4, dtype=torch.uint8)}
    trainer = DeferredMetrics(model, [[image]], torch.optim.SGD(model.parameters(), lr=1.0))
    check = NonFiniteCheck(tiny_cfg("OUTPUT_DIR", str(tmp_path)), lambda iteration: True)
    trainer.register_hooks([check])
    trainer.iter = 7
    with EventStorage(7), pytest.raises(FloatingPointError, match=words):
        trainer.run_step()
    assert model.good.equal(torch.ones(2))
    assert model.bad.equal(torch.zeros(2))
    assert (tmp_path / "diverged" / "iteration_0000007_rank0.pth").is_file()


def test_only_so_many_are_kept_and_the_message_says_so(tiny_cfg, tmp_path):
    for number in range(KEPT):
        (tmp_path / "diverged").mkdir(exist_ok=True)
        (tmp_path / "diverged" / f"iteration_000000{number}_rank0.pth").touch()
    model = Bad(of_loss=False)
    trainer = DeferredMetrics(model, [[]], torch.optim.SGD(model.parameters(), lr=1.0))
    check = NonFiniteCheck(tiny_cfg("OUTPUT_DIR", str(tmp_path)), lambda iteration: True)
    trainer.register_hooks([check])
    trainer.iter = 7
    with EventStorage(7), pytest.raises(FloatingPointError, match="nothing was kept of it: diverged/ is full with 4"):
        trainer.run_step()
    assert len(list((tmp_path / "diverged").iterdir())) == KEPT


def test_numbers_are_only_looked_at_when_due(tiny_cfg):
    model = Bad(of_loss=False)
    trainer = DeferredMetrics(model, [[]], torch.optim.SGD(model.parameters(), lr=1.0))
    check = NonFiniteCheck(tiny_cfg(), lambda iteration: iteration == 8)
    trainer.register_hooks([check])
    trainer.iter = 7
    with EventStorage(7) as storage:
        trainer.run_step()
    assert "grad_norm" not in storage.latest()


def test_scaled_gradients_may_overflow(tiny_cfg):
    check = NonFiniteCheck(tiny_cfg(), lambda iteration: True, gradients=False)
    check.trainer = SimpleNamespace(iter=7, model=Bad(of_loss=False), batch=[], losses={"loss_cls": torch.ones(())})
    check.trainer.model.good.grad = torch.full((2,), float("inf"))
    check.after_backward()
