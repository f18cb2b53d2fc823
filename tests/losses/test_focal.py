"""Focal loss: the paper's stated facts, closed forms, and where others fail. See also test_family.py."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss as fvcore_focal_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from focal_det.losses import cross_entropy_loss, focal_loss, focal_loss_reference


def logit(p):
    return math.log(p / (1 - p))


def one(x, label=0, **options):
    """Loss of one anchor with one class, in float64."""
    return focal_loss(torch.tensor([[x]], dtype=torch.float64), torch.tensor([label]), **options).item()


@pytest.mark.parametrize(("p_t", "ratio"), [(0.9, 100.0), (0.968, 976.5625)])
def test_easy_examples_are_down_weighted_as_stated_in_section_3(p_t, ratio):
    # gamma = 2: CE / FL = 1 / (1 - p_t)^2, so 1 / .1^2 = 100 and 1 / .032^2 = 976.5625 (the paper: "1000x")
    loss = one(logit(p_t), alpha=None, gamma=2.0)
    assert -math.log(p_t) / loss == pytest.approx(ratio, rel=1e-9)


@pytest.mark.parametrize("p_t", [0.01, 0.2, 0.5])
def test_hard_examples_lose_at_most_a_factor_of_four(p_t):
    assert -math.log(p_t) / one(logit(p_t), alpha=None, gamma=2.0) <= 4.0 + 1e-12


def test_value_by_hand():
    # x = 0: p = .5. Class 0 is the anchor's: .25 * .5^2 * log 2; class 1 is not: .75 * .5^2 * log 2
    loss = focal_loss(torch.zeros(1, 2), torch.tensor([0]), reduction="none")
    assert loss.tolist() == [pytest.approx([0.0625 * math.log(2), 0.1875 * math.log(2)])]


@settings(max_examples=100, deadline=None)
@given(x=st.floats(-30, 30), gamma=st.floats(0, 5), alpha=st.floats(0.01, 0.99), label=st.integers(0, 1))
def test_focal_over_cross_entropy_is_the_modulating_factor(x, gamma, alpha, label):
    # FL / CE = alpha_t (1 - p_t)^gamma; label 0 is the anchor's class, 1 background
    z = x if label == 0 else -x
    factor = (alpha if label == 0 else 1 - alpha) * (1 / (1 + math.exp(z))) ** gamma
    assert one(x, label, alpha=alpha, gamma=gamma) == pytest.approx(
        factor * one(x, label, alpha=None, gamma=0.0), rel=1e-12
    )


@pytest.mark.parametrize("alpha", [None, 0.75])
def test_gamma_zero_is_cross_entropy_with_its_gradient(alpha):
    logits = (torch.randn(64, 5, dtype=torch.float64) * 3).requires_grad_()
    labels = torch.randint(-1, 6, (64,))
    kept = labels >= 0
    targets = F.one_hot(labels.clamp(min=0), 6)[..., :5].double()
    weights = torch.ones_like(targets) if alpha is None else torch.where(targets > 0, alpha, 1 - alpha)
    expected = F.binary_cross_entropy_with_logits(logits[kept], targets[kept], weights[kept], reduction="sum")
    for loss in (focal_loss(logits, labels, alpha=alpha, gamma=0.0), cross_entropy_loss(logits, labels, alpha=alpha)):
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        grads = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, expected)]
        torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-15)


def test_cross_entropy_of_infinite_logits():
    # The confident and right have no loss and no slope; the confident and wrong have all of both
    logits = torch.tensor([[math.inf], [-math.inf]], requires_grad=True)
    right = focal_loss(logits, torch.tensor([0, 1]), alpha=None, gamma=0.0)
    wrong = focal_loss(logits, torch.tensor([1, 0]), alpha=None, gamma=0.0)
    assert (right.item(), wrong.item()) == (0.0, math.inf)
    assert torch.autograd.grad(wrong, logits)[0].flatten().tolist() == [1.0, -1.0]


@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_gradient_of_a_confident_positive_where_autograd_has_nan(gamma):
    # x = 40: p_t rounds to 1 in float32. dFL/dx = -(1-p_t)^g (g p_t (-log p_t) + 1-p_t) with 1-p_t = -log p_t = e^-40,
    # so it is -(g + 1) e^(-40 (g + 1))
    logits = torch.tensor([[40.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(focal_loss(logits, torch.tensor([0]), alpha=None, gamma=gamma), logits)
    assert grad.item() == pytest.approx(-(gamma + 1) * math.exp(-40 * (gamma + 1)), rel=1e-5)
    (plain,) = torch.autograd.grad(focal_loss_reference(logits, torch.tensor([0]), alpha=None, gamma=gamma), logits)
    assert plain.item() == pytest.approx(grad.item(), rel=1e-4)
    (literal,) = torch.autograd.grad(fvcore_focal_loss(logits, torch.ones(1, 1), gamma=gamma, reduction="sum"), logits)
    assert literal.isnan().item()  # why neither is written with (1 - p_t)^gamma


def test_half_precision_gradient_is_rounded_once_after_scaling():
    # At x = -12 an easy negative's gradient, ~7e-16, is below float16's smallest number, 6e-8; times 2^40 it is not
    logits = torch.tensor([[-12.0]], dtype=torch.float16, requires_grad=True)
    loss = focal_loss(logits, torch.tensor([1]), alpha=None) * 2.0**40
    (grad,) = torch.autograd.grad(loss, logits)
    q = 1 / (1 + math.exp(12))  # dFL/dx = q^2 (2 (1-q) (-log(1-q)) + q) ~ 3 q^3
    assert grad.item() == pytest.approx(2.0**40 * q**2 * (-2 * (1 - q) * math.log(1 - q) + q), rel=1e-3)


# Soft targets: see also test_elementwise.py ---------------------------------------------------------------------------


def test_value_of_a_soft_target_by_hand():
    # x = 0: p = .5, so 1 - p_t = .5 and the cross-entropy is log 2 for any t. alpha_t = .4 * .25 + .6 * .75 = .55
    assert focal_loss(torch.zeros(1), torch.tensor([0.4])).item() == pytest.approx(0.55 * 0.25 * math.log(2))
    # p = .8, t = .4: 1 - p_t = .4 * .2 + .6 * .8 = .56; CE = -.4 log .8 - .6 log .2
    loss = focal_loss(torch.tensor([logit(0.8)]), torch.tensor([0.4]), alpha=None)
    assert loss.item() == pytest.approx(0.56**2 * (-0.4 * math.log(0.8) - 0.6 * math.log(0.2)), rel=1e-6)


@pytest.mark.parametrize("theirs", [torchvision_focal_loss, fvcore_focal_loss])
@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_soft_targets_are_those_of_torchvision_and_fvcore(gamma, alpha, theirs):
    single = theirs is fvcore_focal_loss  # which computes in float32
    logits = (torch.randn(200, dtype=torch.float64) * 2).requires_grad_()
    targets = torch.rand(200, dtype=torch.float64)
    expected = theirs(logits, targets, alpha=-1 if alpha is None else alpha, gamma=gamma, reduction="none")
    grads = []
    for loss in (focal_loss, focal_loss_reference):
        found = loss(logits, targets, alpha=alpha, gamma=gamma, reduction="none")
        torch.testing.assert_close(found, expected.double(), rtol=2e-6 if single else 1e-12, atol=1e-7 * single)
        grads.append(torch.autograd.grad(found.sum(), logits)[0])
    grads.append(torch.autograd.grad(expected.sum(), logits)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(grads[0], grads[2], rtol=1e-4 if single else 1e-10, atol=1e-6 if single else 1e-14)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradcheck_of_soft_targets(gamma, reduction):
    logits, targets = (torch.randn(12, dtype=torch.float64) * 3).requires_grad_(), torch.rand(12)
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, targets, gamma=gamma, reduction=reduction), logits)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_soft_targets_are_exact_at_every_logit(dtype, gamma):
    # The gradient is the difference of what draws to both sides, and as precise as the larger of them
    eps = torch.finfo(dtype).eps
    x, t = torch.meshgrid(
        torch.tensor([-80.0, -30.0, -17.5, -2.2, -0.1, 0.0, 0.7, 3.0, 17.5, 30.0, 80.0], dtype=dtype),
        torch.tensor([0.0, 1e-6, 0.1, 0.25, 0.5, 0.9, 1 - 2**-20, 1.0], dtype=dtype),
        indexing="ij",
    )
    logits = x.clone().requires_grad_()
    losses = focal_loss(logits, t, gamma=gamma, reduction="none")
    (grads,) = torch.autograd.grad(losses.sum(), logits)
    rows = zip(*(values.flatten().tolist() for values in (x, t, losses, grads)), strict=True)
    with mpmath.workdps(50):
        for logit_, target, loss, grad in rows:
            z, t_ = mpmath.mpf(logit_), mpmath.mpf(target)
            p, q = 1 / (1 + mpmath.exp(-z)), 1 / (1 + mpmath.exp(z))
            alpha_t, wrong = t_ * 0.25 + (1 - t_) * 0.75, t_ * q + (1 - t_) * p
            ce = t_ * mpmath.log1p(mpmath.exp(-z)) + (1 - t_) * mpmath.log1p(mpmath.exp(z))
            factor = alpha_t * wrong ** mpmath.mpf(gamma)
            parts = [(1 - t_) * p, -t_ * q, gamma * (1 - 2 * t_) * ce * p * q / wrong]
            allowed = (8 + 4 * gamma) * eps
            smallest = torch.finfo(dtype).tiny
            assert abs(loss - factor * ce) <= allowed * factor * ce + smallest, (logit_, target)
            size = factor * sum(map(abs, parts))
            allowed += gamma * eps * abs(logit_)  # gamma * s magnifies the rounding of 1 - q
            assert abs(grad - factor * sum(parts)) <= allowed * size + smallest, (logit_, target)


def test_where_a_soft_target_is_learnt():
    # What the docstring of focal.py says of gamma = 2, t = .9
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    losses = focal_loss(p.logit(), torch.full_like(p, 0.9), alpha=None, reduction="none")
    assert p[losses.argmin()].item() == pytest.approx(0.986, abs=1e-3)
