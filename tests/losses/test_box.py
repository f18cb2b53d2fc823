"""Smooth L1 against PyTorch's and by hand."""

import pytest
import torch
import torch.nn.functional as F

from focal_det.losses import smooth_l1_loss


def test_value_by_hand():
    # beta = .5: |d| = .2 gives .2^2 / (2 * .5) = .04; |d| = 2 gives 2 - .25 = 1.75
    loss = smooth_l1_loss(torch.tensor([0.2, -2.0]), torch.zeros(2), beta=0.5, reduction="none")
    assert loss.tolist() == pytest.approx([0.04, 1.75])


@pytest.mark.parametrize("beta", [0.0, 0.11, 1.0])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_equals_pytorch_in_value_and_gradient(beta, reduction):
    pred, target = torch.randn(50, 4, dtype=torch.float64, requires_grad=True), torch.randn(50, 4, dtype=torch.float64)
    ours = smooth_l1_loss(pred, target, beta=beta, reduction=reduction)
    theirs = F.smooth_l1_loss(pred, target, beta=beta, reduction=reduction)
    torch.testing.assert_close(ours, theirs)
    grads = [torch.autograd.grad(loss.sum(), pred)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*grads)


def test_nothing_assigned_is_zero_and_not_nan():
    assert smooth_l1_loss(torch.zeros(0, 4), torch.zeros(0, 4), beta=0.11, reduction="mean").item() == 0


def test_half_precision_predictions_are_computed_in_single():
    loss = smooth_l1_loss(torch.tensor([60000.0], dtype=torch.float16), torch.tensor([-60000.0]), beta=0.11)
    assert loss.dtype == torch.float32
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"beta": -1.0}, "beta=-1.0"), ({"reduction": "all"}, '"all"'), ({"target": torch.zeros(3)}, r"\(3,\)")],
)
def test_bad_input_is_named(change, message):
    arguments = {"target": torch.zeros(2), "beta": 0.1} | change
    with pytest.raises(ValueError, match=message):
        smooth_l1_loss(torch.zeros(2), **arguments)
