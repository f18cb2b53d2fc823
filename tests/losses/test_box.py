"""Smooth L1 against its formula and by hand."""

import math

import pytest
import torch

from focal_det.losses import smooth_l1_loss


def test_value_by_hand():
    # beta = .5: |d| = .2 gives .2^2 / (2 * .5) = .04; |d| = 2 gives 2 - .25 = 1.75
    loss = smooth_l1_loss(torch.tensor([0.2, -2.0]), torch.zeros(2), beta=0.5, reduction="none")
    assert loss.tolist() == pytest.approx([0.04, 1.75])


def plain(pred, target, beta, reduction):
    """The formula as the paper's authors wrote it."""
    d = (pred - target).abs()
    losses = torch.where(d < beta, 0.5 * d**2 / beta, d - 0.5 * beta) if beta else d
    return {"sum": losses.sum(), "mean": losses.mean(), "none": losses}[reduction]


@pytest.mark.parametrize("beta", [0.0, 0.11, 1.0])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_equals_the_formula_in_value_and_gradient(beta, reduction):
    pred, target = torch.randn(50, 4, dtype=torch.float64, requires_grad=True), torch.randn(50, 4, dtype=torch.float64)
    ours = smooth_l1_loss(pred, target, beta=beta, reduction=reduction)
    theirs = plain(pred, target, beta, reduction)
    torch.testing.assert_close(ours, theirs)
    grads = [torch.autograd.grad(loss.sum(), pred)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*grads)


def test_without_a_quadratic_part_it_is_l1():
    pred = torch.tensor([-2.0, 0.0, 0.5, 1e-30], requires_grad=True)
    loss = smooth_l1_loss(pred, torch.zeros(4), beta=0.0)
    assert loss.item() == 2.5
    assert torch.autograd.grad(loss, pred)[0].tolist() == [-1, 0, 1, 1]  # the kink itself has none


def test_nothing_assigned_is_zero_and_not_nan():
    pred = torch.zeros(0, 4, requires_grad=True)
    loss = smooth_l1_loss(pred, torch.zeros(0, 4), beta=0.11, reduction="mean")
    assert loss.item() == 0
    assert torch.autograd.grad(loss, pred)[0].shape == (0, 4)


@pytest.mark.parametrize("types", [(torch.float16, torch.float32), (torch.float16,) * 2, (torch.bfloat16, torch.int64)])
def test_it_is_computed_in_float32_or_float64(types):
    pred, target = torch.tensor([60000.0]).to(types[0]), torch.tensor([-60000.0]).to(types[1])
    for one, other in ((pred, target), (target.requires_grad_() if target.is_floating_point() else target, pred)):
        loss = smooth_l1_loss(one, other, beta=0.11)
        assert loss.dtype == torch.float32
        assert loss.isfinite()
    assert smooth_l1_loss(pred, target.double(), beta=0.11).dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": -1.0}, "beta=-1.0"),
        ({"beta": math.nan}, "beta=nan"),
        ({"beta": math.inf}, "beta=inf"),
        ({"reduction": "all"}, "'all' is not one of"),
        ({"target": torch.zeros(3)}, r"\(3,\)"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"target": torch.zeros(2), "beta": 0.1} | change
    with pytest.raises(ValueError, match=message):
        smooth_l1_loss(torch.zeros(2), **arguments)
