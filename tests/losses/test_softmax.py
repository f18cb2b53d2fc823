"""The focal loss of classes that exclude one another, against cross-entropy, exact arithmetic and its definition."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F

from focal_det.losses import focal_loss, softmax_focal_loss


def random_case(dtype=torch.float64):
    logits = (torch.randn(40, 5, dtype=torch.float64) * 3).to(dtype).requires_grad_()
    return logits, torch.randint(-1, 5, (40,))


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("alpha", [None, torch.tensor([0.5, 1.0, 3.0, 0.0, 0.1])], ids=str)
def test_gamma_zero_is_cross_entropy_with_its_gradient(alpha, reduction):
    logits, labels = random_case()
    alpha = None if alpha is None else alpha.double()
    found = softmax_focal_loss(logits, labels, alpha=alpha, gamma=0.0, reduction=reduction)
    expected = F.cross_entropy(logits, labels, alpha, ignore_index=-1, reduction=reduction)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    grads = [torch.autograd.grad(x.sum(), logits)[0] for x in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_is_its_definition_over_softmax(gamma):
    logits, labels = random_case()
    labels = labels.clamp(min=0)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 0.75], dtype=torch.float64)
    p = logits.softmax(-1).gather(-1, labels[:, None]).squeeze(1)
    expected = -weights[labels] * (1 - p) ** gamma * p.log()
    found = softmax_focal_loss(logits, labels, alpha=weights, gamma=gamma, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(*[torch.autograd.grad(x.sum(), logits)[0] for x in (found, expected)])


def test_of_two_classes_is_the_binary_loss_of_their_difference():
    logits, labels = torch.randn(30, 2, dtype=torch.float64) * 4, torch.randint(0, 2, (30,))
    binary = focal_loss((logits[:, 1] - logits[:, 0]), labels.double(), alpha=None)
    torch.testing.assert_close(softmax_focal_loss(logits, labels), binary, rtol=1e-12, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 6e-5)])
def test_exact_also_where_the_probability_rounds_to_1(dtype, tolerance, gamma):
    # x_y - log(sum of the others) is rounded to about eps * |x|, which the exponential makes a relative error of
    # (gamma + 1) eps |x|, here at most 3 * 1.2e-7 * 100 in float32
    logits = torch.tensor([[d, 0.0, -1.0] for d in (-80.0, -20.0, -1.0, 0.0, 3.0, 17.0, 25.0)], dtype=dtype)
    logits = (logits + 3).requires_grad_()
    losses = softmax_focal_loss(logits, torch.zeros(7, dtype=torch.int64), gamma=gamma, reduction="none")
    (grads,) = torch.autograd.grad(losses.sum(), logits)
    with mpmath.workdps(50):
        for row, loss, grad in zip(logits.tolist(), losses.tolist(), grads.tolist(), strict=True):
            x = [mpmath.mpf(value) for value in row]
            others = mpmath.exp(x[1]) + mpmath.exp(x[2])
            z = x[0] - mpmath.log(others)
            q = 1 / (1 + mpmath.exp(z))
            log_p = -mpmath.log1p(mpmath.exp(-z))
            slope = q**gamma * (gamma * (1 - q) * log_p - q)
            truths = [slope, *(-slope * mpmath.exp(value) / others for value in x[1:])]
            assert abs(loss / (-(q**gamma) * log_p) - 1) < tolerance
            assert all(abs(found / truth - 1) < tolerance for found, truth in zip(grad, truths, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_every_extreme(dtype):
    limit = 6e4 if dtype == torch.float16 else 1e30
    x = torch.tensor([-limit, -1000.0, -17.5, 0.0, 17.5, 1000.0, limit])
    logits = torch.cartesian_prod(x, x, x).to(dtype).requires_grad_()
    for gamma in (0.0, 0.1, 2.0):
        for label in range(3):
            losses = softmax_focal_loss(logits, torch.full((343,), label), gamma=gamma, reduction="none")
            (grad,) = torch.autograd.grad(losses.sum(), logits)
            assert losses.isfinite().all()
            assert (losses >= 0).all()
            assert grad.isfinite().all()
            assert (losses.dtype == torch.float64) == (dtype == torch.float64)
            assert grad.dtype == dtype


def test_ignored_labels_have_no_loss_and_no_gradient_even_if_not_finite():
    logits = torch.tensor([[math.nan, math.inf, 0.0], [1.0, 2.0, 0.0]], requires_grad=True)
    for reduction, share in (("sum", 1.0), ("mean", 0.5)):
        loss = softmax_focal_loss(logits, torch.tensor([-1, 1]), reduction=reduction)
        torch.testing.assert_close(loss, share * softmax_focal_loss(logits[1:], torch.tensor([1])))
        (grad,) = torch.autograd.grad(loss, logits)
        assert grad[0].tolist() == [0, 0, 0]
        assert grad[1].isfinite().all()


def test_leading_dimensions_and_no_labels():
    logits, labels = random_case()
    folded = softmax_focal_loss(logits.view(2, 4, 5, 5), labels.view(2, 4, 5), reduction="none")
    torch.testing.assert_close(folded.flatten(), softmax_focal_loss(logits, labels, reduction="none"))
    for reduction in ("sum", "mean", "none"):
        assert softmax_focal_loss(logits[:0], labels[:0], reduction=reduction).sum().item() == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.tensor([0, 3])}, ValueError, r"0\.\.3; allowed are -1 \(ignored\), 0\.\.2 \(classes\)$"),
        ({"labels": torch.tensor([-2, 0])}, ValueError, r"-2\.\.0"),
        ({"labels": torch.tensor([0.0, 1.0])}, TypeError, "int64 class indices, not torch.float32"),
        ({"labels": torch.tensor([0])}, ValueError, r"\(1,\) must have the shape of logits \(2, 3\) without the last"),
        ({"logits": torch.zeros(2, 1)}, ValueError, r"logits \(2, 1\) have one class, .*focal_loss"),
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "int64"),
        ({"alpha": 0.25}, TypeError, r"alpha=0.25 must be a tensor \(K,\).*torch.tensor\(\[0.25\]"),
        (
            {"logits": torch.zeros(2, 5, 4, 4), "labels": torch.zeros(2, 4, 4, dtype=torch.int64)},
            ValueError,
            r"labels \(2, 4, 4\) must have .*; classes come last: give logits.movedim\(1, -1\)",
        ),
        ({"alpha": torch.tensor([1.0, 2.0])}, ValueError, "alpha has 2 weights, but .* 3 classes"),
        ({"alpha": torch.tensor([1.0, -2.0, 0.0])}, ValueError, r"alpha\[1\]=-2.0 is outside \[0, inf\]"),
        ({"gamma": -1.0}, ValueError, "gamma=-1.0 is outside"),
        ({"gamma": None}, TypeError, "gamma=None"),
        ({"reduction": "avg"}, ValueError, "reduction='avg'"),
    ],
)
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=message):
        softmax_focal_loss(**{"logits": torch.zeros(2, 3), "labels": torch.tensor([0, 2])} | change)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize(
    ("logits", "slope"),
    [
        ([5.0, -math.inf], [0.0, 0.0]),  # p_y is 1
        ([5.0, -math.inf, -math.inf], [0.0, 0.0, 0.0]),
        ([-math.inf, 5.0, 1.0], [-1.0, 0.982, 0.018]),  # p_y is 0
    ],
)
def test_classes_may_be_masked(logits, slope, gamma):
    x, labels = torch.tensor([logits], requires_grad=True), torch.tensor([0])
    loss = softmax_focal_loss(x, labels, gamma=gamma)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(x, labels, reduction="sum"))
    (grad,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(grad, torch.tensor([slope]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_where_all_classes_are_masked_the_loss_is_infinite(gamma):
    """PyTorch's cross-entropy is NaN there; 0 would hide it."""
    x = torch.full((1, 3), -math.inf, requires_grad=True)
    loss = softmax_focal_loss(x, torch.tensor([0]), gamma=gamma)
    assert loss == math.inf
    assert torch.autograd.grad(loss, x)[0].isfinite().all()
    weighted = softmax_focal_loss(x, torch.tensor([0]), alpha=torch.tensor([0.0, 1, 1]), gamma=gamma)
    assert weighted == 0  # since the class does not count
