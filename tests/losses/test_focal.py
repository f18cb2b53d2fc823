"""Focal loss: the paper's stated facts, closed forms, and where others fail. See also test_family.py."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

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
    assert plain.isnan().item()  # why the closed form is needed


def test_half_precision_gradient_is_rounded_once_after_scaling():
    # At x = -12 an easy negative's gradient, ~7e-16, is below float16's smallest number, 6e-8; times 2^40 it is not
    logits = torch.tensor([[-12.0]], dtype=torch.float16, requires_grad=True)
    loss = focal_loss(logits, torch.tensor([1]), alpha=None) * 2.0**40
    (grad,) = torch.autograd.grad(loss, logits)
    q = 1 / (1 + math.exp(12))  # dFL/dx = q^2 (2 (1-q) (-log(1-q)) + q) ~ 3 q^3
    assert grad.item() == pytest.approx(2.0**40 * q**2 * (-2 * (1 - q) * math.log(1 - q) + q), rel=1e-3)
