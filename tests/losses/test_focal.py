"""Focal loss: the paper's stated facts, the plain formula, closed forms, extremes, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_det.losses import focal_loss, focal_loss_reference

GAMMAS = [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]


def logit(p):
    return math.log(p / (1 - p))


def random_case(anchors=64, classes=5, dtype=torch.float64, scale=3.0):
    logits = (torch.randn(anchors, classes, dtype=dtype) * scale).requires_grad_()
    labels = torch.randint(-1, classes + 1, (anchors,))
    return logits, labels


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


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [None, 0.25, 0.0, 1.0])
def test_equals_the_reference_in_value_and_gradient(gamma, alpha):
    logits, labels = random_case()
    ours = focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    plain = focal_loss_reference(logits, labels, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=0)
    (grad,), (plain_grad,) = torch.autograd.grad(ours, logits), torch.autograd.grad(plain, logits)
    torch.testing.assert_close(grad, plain_grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_reductions_equal_the_reference(reduction):
    logits, labels = random_case()
    torch.testing.assert_close(
        focal_loss(logits, labels, reduction=reduction), focal_loss_reference(logits, labels, reduction=reduction)
    )


def test_blocks_do_not_change_the_sum(monkeypatch):
    logits, labels = random_case(anchors=1000, classes=3)
    whole = focal_loss(logits, labels)
    (whole_grad,) = torch.autograd.grad(whole, logits)
    monkeypatch.setattr("focal_det.losses.focal._BLOCK_ELEMENTS", 30)  # 10 rows: 100 blocks
    blocks = focal_loss(logits, labels)
    torch.testing.assert_close(blocks, whole, rtol=1e-13, atol=0)
    torch.testing.assert_close(torch.autograd.grad(blocks, logits)[0], whole_grad, rtol=0, atol=0)


def test_gamma_zero_is_cross_entropy_with_its_gradient():
    logits, labels = random_case()
    kept = labels >= 0
    targets = F.one_hot(labels.clamp(min=0), 6)[..., :5].double()
    expected = F.binary_cross_entropy_with_logits(logits[kept], targets[kept], reduction="sum")
    loss = focal_loss(logits, labels, alpha=None, gamma=0.0)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    grads = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_gradcheck(gamma, reduction):
    logits, labels = random_case(anchors=6, classes=3)
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, labels, gamma=gamma, reduction=reduction), logits)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_every_extreme(gamma, dtype):
    limit = 6e4 if dtype == torch.float16 else 1e30
    x = torch.tensor([-limit, -1000.0, -100.0, -17.5, -1e-8, 0.0, 17.5, 100.0, 1000.0, limit])
    logits = x[:, None].repeat(1, 2).to(dtype).requires_grad_()
    for label in (0, 1, 2):
        loss = focal_loss(logits, torch.full((10,), label), gamma=gamma)
        (grad,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert grad.isfinite().all()


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


def test_ignored_anchors_have_no_loss_and_no_gradient_even_if_not_finite():
    logits = torch.tensor([[1.0, -2.0], [float("inf"), float("nan")]], requires_grad=True)
    losses = focal_loss(logits, torch.tensor([0, -1]), reduction="none")
    assert losses[1].tolist() == [0.0, 0.0]
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad[1].tolist() == [0.0, 0.0]
    assert logits.grad[0].ne(0).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 5), st.floats(0, 1))
def test_permuting_anchors_and_splitting_them_leaves_the_sum(seed, gamma, alpha):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(20, 4, generator=generator, dtype=torch.float64) * 5
    labels = torch.randint(-1, 5, (20,), generator=generator)
    order = torch.randperm(20, generator=generator)
    options = {"alpha": alpha, "gamma": gamma}
    whole = focal_loss(logits, labels, **options)
    torch.testing.assert_close(focal_loss(logits[order], labels[order], **options), whole, rtol=1e-12, atol=1e-300)
    parts = focal_loss(logits[:7], labels[:7], **options) + focal_loss(logits[7:], labels[7:], **options)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-300)


def test_leading_dimensions_of_any_number():
    logits, labels = random_case(anchors=24)
    folded = focal_loss(logits.view(2, 3, 4, 5), labels.view(2, 3, 4), reduction="none")
    torch.testing.assert_close(folded.view(24, 5), focal_loss(logits, labels, reduction="none"), rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_no_anchors_is_zero_loss(reduction):
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = focal_loss(logits, torch.zeros(0, dtype=torch.int64), reduction=reduction)
    assert loss.item() == 0
    loss.backward()


def test_second_derivative_is_refused():
    logits, labels = random_case(anchors=4)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(focal_loss(logits, labels), logits, create_graph=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gamma": -1.0}, ValueError, "gamma=-1.0"),
        ({"gamma": float("nan")}, ValueError, "gamma=nan"),
        ({"alpha": 1.5}, ValueError, "alpha=1.5"),
        ({"reduction": "avg"}, ValueError, 'reduction="avg"'),
        ({"labels": torch.tensor([0, 4])}, ValueError, r"0\.\.4"),
        ({"labels": torch.tensor([0, -2])}, ValueError, r"-2\.\.0"),
        ({"labels": torch.tensor([0.0, 1.0])}, TypeError, "float32"),
        ({"labels": torch.tensor([0])}, ValueError, r"\(1,\)"),
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "int64"),
        ({"logits": torch.zeros(2, 0)}, ValueError, r"\(2, 0\)"),
    ],
)
@pytest.mark.parametrize("function", [focal_loss, focal_loss_reference])
def test_bad_input_is_named(function, change, error, message):
    arguments = {"logits": torch.zeros(2, 3), "labels": torch.tensor([0, 3])} | change
    with pytest.raises(error, match=message):
        function(arguments.pop("logits"), arguments.pop("labels"), **arguments)
