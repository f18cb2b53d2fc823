"""One training step: its precision, losses that are read later, and the layout of momentum."""

import math

import pytest
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from focal_det.engine.train_step import BFloat16Trainer, DeferredMetrics, lay_out_as_parameters, step_class

pytestmark = pytest.mark.detectron2


@pytest.mark.parametrize(
    ("enabled", "dtype", "expected"),
    [(False, "bfloat16", SimpleTrainer), (True, "bfloat16", BFloat16Trainer), (True, "float16", AMPTrainer)],
)
def test_amp_dtype_chooses_the_step(tiny_cfg, enabled, dtype, expected):
    cfg = tiny_cfg("SOLVER.AMP.ENABLED", str(enabled))
    cfg.SOLVER.AMP.DTYPE = dtype
    assert step_class(cfg) is expected


def test_a_step_in_bfloat16_computes_in_it_and_updates(tiny_cfg, batch_of):
    seen = []
    model = build_model(tiny_cfg())
    model.head.cls_score.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    before = model.head.cls_score.weight.clone()
    trainer = BFloat16Trainer(model, [batch_of((2,))], torch.optim.SGD(model.parameters(), lr=0.01))
    trainer.iter = 0
    with EventStorage(0) as storage:
        trainer.run_step()
        assert set(storage.latest()) >= {"total_loss", "loss_cls", "loss_box_reg", "data_time"}
    assert set(seen) == {torch.bfloat16}
    assert not model.head.cls_score.weight.equal(before)


def test_gradients_of_p6_and_p7_are_right_in_bfloat16_on_a_map_of_one_pixel(tiny_cfg, batch_of):
    # at 64 px P6 and P7 are 1x1; memory is first filled with what an unwritten gradient would show
    grads = []
    for trainer_class in (SimpleTrainer, BFloat16Trainer):
        torch.manual_seed(0)
        model = build_model(tiny_cfg("MODEL.FPN.OUT_CHANNELS", "64"))
        junk = [torch.full((64, 64, 3, 3), 1e30, dtype=torch.bfloat16) for _ in range(50)]
        del junk
        trainer = trainer_class(model, [batch_of((3, 2), size=(64, 64))], torch.optim.SGD(model.parameters(), lr=0.0))
        trainer.iter = 0
        with EventStorage(0):
            trainer.run_step()
        grads.append([layer.weight.grad for layer in (model.backbone.top_block.p6, model.backbone.top_block.p7)])
    for exact, ours in zip(*grads, strict=True):
        assert (ours - exact).norm() < 0.1 * exact.norm()


def test_loaded_momentum_is_laid_out_as_its_parameter():
    # PyTorch's fused kernel takes both in the order of memory
    updated = []
    for fused in (False, True):
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(conv.parameters(), lr=0.1, momentum=0.9, fused=fused)
        conv.weight.grad, conv.bias.grad = torch.randn_like(conv.weight), torch.randn(8)
        optimizer.step()
        saved = optimizer.state_dict()
        saved["state"][0]["momentum_buffer"] = saved["state"][0]["momentum_buffer"].contiguous()  # of another run
        optimizer.load_state_dict(saved)
        lay_out_as_parameters(optimizer)
        optimizer.step()
        updated.append(conv.weight.detach().clone())
    torch.testing.assert_close(*updated)


def deferred_step(losses, is_due, note=None):
    class Model(nn.Module):
        def forward(self, data):
            return {"loss": self.scale * next(values), "other": self.scale * 0}

    model, values = Model(), iter(losses)
    model.scale = nn.Parameter(torch.ones(()))
    step = type("Deferred", (DeferredMetrics, SimpleTrainer), {})
    return step(model, [None] * 99, torch.optim.SGD(model.parameters(), lr=0), is_due=is_due, note=note)


def test_losses_read_later_are_written_one_by_one():
    step = deferred_step([1.0, 2.0, 3.0, 4.0], is_due=lambda iteration: iteration == 2)
    with EventStorage() as storage:
        for iteration in range(4):
            step.iter = iteration
            step.run_step()
            assert ("loss" in storage.histories()) == (iteration >= 2)
        assert [value for value, _ in storage.history("loss").values()] == [1.0, 2.0, 3.0]
        step.flush_metrics()
        assert storage.history("loss").latest() == 4.0
        step.flush_metrics()  # nothing is left
        assert len(storage.history("loss").values()) == 4


def test_losses_that_change_their_names_are_written_as_they_are():
    step = deferred_step([1.0], is_due=lambda iteration: False)
    with EventStorage() as storage:
        for step.iter, losses in enumerate(({"a": 1.0, "b": 2.0}, {"a": 3.0}, {"a": 4.0, "c": 5.0})):
            step._write_metrics({name: torch.full((1,), value) for name, value in losses.items()}, 0.0)
        step.flush_metrics()
        assert [value for value, _ in storage.history("total_loss").values()] == [3.0, 3.0, 9.0]
        assert storage.history("c").latest() == 5.0


def test_a_loss_that_is_not_finite_is_named_with_its_iteration():
    noted = []
    step = deferred_step([1.0, math.nan, 3.0], is_due=lambda iteration: iteration == 2, note=noted.append)
    with EventStorage():
        for step.iter in range(2):
            step.run_step()
        step.iter = 2
        with pytest.raises(FloatingPointError, match="iteration=1"):
            step.run_step()
    assert noted == [1]
