"""The EMA of the weights: its numbers, what it does with buffers and bad weights, and its files."""

import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torch import nn

from focal_det.checkpoint.checkpointer import RunCheckpointer
from focal_det.checkpoint.safe_load import NonFiniteWeightsError
from focal_det.engine.weight_average import AverageWeights, WeightAverage, decay_after
from focal_det.modeling.captured import CapturedOrPlain

pytestmark = pytest.mark.detectron2


def averaged(decay, *values):
    """The average of one weight that had these values after its steps."""
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, decay)
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update(model)
    return average.model.weight.item()


def test_the_average_warms_up_from_the_first_weights():
    # the first are copied; then 2/11 * 1 + 9/11 * 2 = 20/11; then 3/12 * 20/11 + 9/12 * 4 = 38/11
    assert averaged(0.9998, 1.0, 2.0) == pytest.approx(20 / 11)
    assert averaged(0.9998, 1.0, 2.0, 4.0) == pytest.approx(38 / 11)
    assert averaged(0.1, 1.0, 2.0) == pytest.approx(1.9)  # a decay below the warm-up's
    assert [decay_after(n, 0.9998) for n in (990, 10**6)] == [0.991, 0.9998]


def test_an_average_that_is_not_finite_is_not_resumed():
    average = WeightAverage(nn.Linear(1, 1), 0.9)
    state = {"model": {"weight": torch.tensor([[math.nan]]), "bias": torch.zeros(1)}, "updates": 3}
    with pytest.raises(NonFiniteWeightsError, match="1 of the EMA's 2 weights are infinite or NaN, first weight"):
        average.load_state_dict(state)


def test_statistics_are_averaged_counters_copied_and_the_model_is_left_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    model[0].weight.requires_grad = False  # frozen: it stays what it is, to the last bit
    average = WeightAverage(model, 0.5)
    model(torch.randn(4, 1, 3, 3))
    average.update(model)
    before = average.model[1].running_mean.clone()
    model(torch.randn(4, 1, 3, 3) + 3)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    average.update(model)  # 2/11 of the average so far
    torch.testing.assert_close(average.model[1].running_mean, 2 / 11 * before + 9 / 11 * model[1].running_mean)
    assert average.model[1].num_batches_tracked == 2
    assert average.model[0].weight.equal(model[0].weight)
    torch.testing.assert_close(dict(model.state_dict()), kept, rtol=0, atol=0)
    assert not any(p.requires_grad for p in average.model.parameters())


def test_a_detector_with_folded_norms_and_captured_networks_is_averaged_apart(tiny_cfg, batch_of):
    cfg = tiny_cfg("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0")
    model = build_model(cfg)
    model._runner = CapturedOrPlain(model, model.network)
    average, places = WeightAverage(model, 0.5), [p.data_ptr() for p in model.parameters()]
    batch = [{key: image[key] for key in ("image", "height", "width")} for image in batch_of((1,))]
    average.update(model)
    average.model.eval()(batch)  # which keeps the folded weights of the evaluation
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    average.update(model)
    other = build_model(cfg)
    other.load_state_dict(average.state_dict()["model"])
    ours, theirs = (one.eval()(batch)[0]["instances"].scores for one in (average.model, other))
    assert len(ours) > 0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert average.model.runner is not model.runner
    assert [p.data_ptr() for p in model.parameters()] == places
    assert not {p.data_ptr() for p in average.model.parameters()} & set(places)


@pytest.mark.parametrize("is_due", [True, False])
def test_weights_that_are_not_finite_are_left_out_where_they_are_looked_at(is_due, lines):
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.5)
    average.update(model)
    hook = AverageWeights(average, model, None, lambda iteration: is_due)
    hook.trainer = SimpleNamespace(iter=7)
    nn.init.constant_(model.weight, math.inf)
    hook.after_step()
    assert average.model.weight.isfinite().all() == is_due
    assert average.updates == (1 if is_due else 2)
    assert ["Weights became infinite or NaN at iteration=7; the EMA leaves them out"][: int(is_due)] == lines


def test_its_files_hold_weights_that_are_used_alone_and_checkpoints_stay_detectron2_s(tmp_path):
    model = nn.Linear(2, 1)
    average = WeightAverage(model, 0.5)
    average.update(model)
    nn.init.constant_(model.weight, 5.0)
    checkpointer = RunCheckpointer(model, str(tmp_path), ema=average)
    checkpointer.save("model_0000003", iteration=3)
    hook = AverageWeights(average, model, checkpointer, lambda iteration: True)
    for done, is_end in ((3, False), (4, True)):
        hook.trainer = SimpleNamespace(iter=done - 1 if is_end else done - 2, max_iter=4)
        hook.after_train()
        assert (tmp_path / "model_final_ema.pth").is_file() == is_end
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    for name, expected in (("model_0000003", model), ("model_final_ema", average.model)):
        loaded = nn.Linear(2, 1)
        DetectionCheckpointer(loaded).load(str(tmp_path / f"{name}.pth"))  # which knows nothing of an average
        assert loaded.weight.equal(expected.weight)
    again = WeightAverage(nn.Linear(2, 1), 0.5)
    RunCheckpointer(nn.Linear(2, 1), str(tmp_path), ema=again).resume_or_load("", resume=True)
    assert again.updates == 1
    assert again.model.weight.equal(average.model.weight)
