"""FL*: its derivative as the appendix gives it, and what it is at the ends of its settings. See also test_family.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_det.losses import cross_entropy_loss, focal_loss_star


def value_and_slope(x, label, **options):
    logits = torch.tensor([[x]], dtype=torch.float64, requires_grad=True)
    loss = focal_loss_star(logits, torch.tensor([label]), **options)
    return loss.item(), torch.autograd.grad(loss, logits)[0].item()


@settings(max_examples=100, deadline=None)
@given(x=st.floats(-20, 20), gamma=st.floats(0.1, 8), beta=st.floats(-3, 3), label=st.integers(0, 1))
def test_derivative_is_that_of_the_appendix(x, gamma, beta, label):
    # dFL*/dx = y (p_t* - 1) with p_t* = sigmoid(gamma y x + beta)
    y = 1 if label == 0 else -1
    p_star = 1 / (1 + math.exp(-(gamma * y * x + beta)))
    value, slope = value_and_slope(x, label, gamma=gamma, beta=beta)
    assert slope == pytest.approx(y * (p_star - 1), rel=1e-6, abs=1e-14)
    assert value == pytest.approx(-math.log(p_star) / gamma, rel=1e-6, abs=1e-14)


def test_gamma_one_beta_zero_is_cross_entropy():
    logits, labels = torch.randn(50, 4, dtype=torch.float64) * 4, torch.randint(-1, 5, (50,))
    star = focal_loss_star(logits, labels, gamma=1.0, beta=0.0)
    torch.testing.assert_close(star, cross_entropy_loss(logits, labels), rtol=1e-13, atol=0)


def test_by_hand():
    # x_t = 0, (gamma, beta) = (4, 0): p_t* = .5, so log(2) / 4; (2, 1): -log(sigmoid(1)) / 2
    assert value_and_slope(0.0, 0, gamma=4.0, beta=0.0)[0] == pytest.approx(math.log(2) / 4)
    assert value_and_slope(0.0, 1, gamma=2.0, beta=1.0)[0] == pytest.approx(math.log(1 + math.exp(-1)) / 2)


def test_a_hopeless_example_costs_its_logit_and_no_more():
    # -log sigmoid(u) / gamma -> -x_t - beta / gamma for x_t -> -inf, whatever gamma
    value, slope = value_and_slope(-1e6, 0, gamma=4.0, beta=2.0)
    assert (value, slope) == (pytest.approx(1e6 - 0.5), -1.0)


@pytest.mark.parametrize(("gamma", "beta"), [(2.0, 1.0), (4.0, 0.0), (4.0, -1.0), (8.0, 0.0)])
def test_where_few_positives_and_many_negatives_cancel_the_loss_bends_by_gamma(gamma, beta):
    """Which docs/reproduction.md explains the instability of large gamma with."""
    negatives = 2640

    def pull(x):
        return (
            value_and_slope(x, 0, gamma=gamma, beta=beta)[1]
            + negatives * value_and_slope(x, 1, gamma=gamma, beta=beta)[1]
        )

    low, high = -20.0, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if pull(middle) < 0 else (low, middle)
    assert (pull(low + 1e-4) - pull(low - 1e-4)) / 2e-4 == pytest.approx(gamma, rel=0.01)
