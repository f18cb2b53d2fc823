"""Varifocal loss: against its formula, by autograd and in 50 digits; what it is at the ends."""

import mpmath
import pytest
import torch
import torch.nn.functional as F

from focal_det.heirs import varifocal_loss, varifocal_loss_reference
from focal_det.heirs.varifocal import varifocal_formula
from focal_det.losses import cross_entropy_loss, focal_loss
from focal_det.losses.fused import batch_loss

SETTINGS = [(0.75, 2.0), (1.0, 0.0), (0.0, 1.0), (1.5, 0.5)]
TARGETS = [0.0, 2.0**-30, 0.1, 0.5, 0.73105857, 1 - 2.0**-24, 1.0]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def authors(logits, q, alpha, gamma):
    """Equation 2 as the paper writes it."""
    p = logits.sigmoid()
    of_positive = -q * (q * torch.log(p) + (1 - q) * torch.log(1 - p))
    return torch.where(q > 0, of_positive, -alpha * p**gamma * torch.log(1 - p))


def exact(x, t, alpha, gamma):
    """The loss, its derivative, and the size of what that is the sum of, with 50 digits."""
    x, t = mpmath.mpf(x), mpmath.mpf(t)
    p, q = 1 / (1 + mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))
    of_one, of_other = mpmath.log1p(mpmath.exp(-x)), mpmath.log1p(mpmath.exp(x))
    if t > 0:
        return t * (t * of_one + (1 - t) * of_other), t * ((1 - t) * p - t * q), t * ((1 - t) * p + t * q)
    slope = alpha * p**gamma * (p + gamma * q * of_other)
    return alpha * p**gamma * of_other, slope, slope


@pytest.mark.parametrize(("alpha", "gamma"), SETTINGS)
def test_equals_the_papers_formula_in_value_and_gradient(alpha, gamma):
    logits = (torch.randn(40, 3, dtype=torch.float64) * 3).requires_grad_()
    targets = torch.rand(40, 3, dtype=torch.float64)
    targets[::4] = targets[::4].round()
    expected = authors(logits, targets, alpha, gamma)
    (expected_grad,) = torch.autograd.grad(expected.sum(), logits)
    for loss in (varifocal_loss, varifocal_loss_reference):
        found = loss(logits, targets, alpha=alpha, gamma=gamma, reduction="none")
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), logits)[0], expected_grad, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_in_50_digits(dtype):
    x = torch.cat([torch.linspace(-80, 80, 33), torch.tensor([-1e-3, 1e-3, 0.999, 1.0]), torch.randn(20)]).to(dtype)
    logits = x[:, None].repeat(1, len(TARGETS)).requires_grad_()
    targets = torch.tensor(TARGETS, dtype=torch.float64 if dtype == torch.float64 else torch.float32).expand_as(logits)
    values = varifocal_loss(logits, targets, reduction="none")
    (grads,) = torch.autograd.grad(values.sum(), logits)
    of_value = 1.5e-6 if values.dtype == torch.float32 else 1e-14
    of_grad = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}.get(dtype, of_value)
    with mpmath.workdps(50):
        for x, t, value, grad in zip(
            *(part.flatten().tolist() for part in (logits, targets, values, grads)), strict=True
        ):
            true_value, true_grad, size = exact(x, t, 0.75, 2.0)
            smallest = torch.finfo(values.dtype).tiny
            assert abs(value - true_value) <= of_value * true_value + smallest, (x, t, value)
            assert abs(grad - true_grad) <= of_grad * size + torch.finfo(dtype).tiny, (x, t, grad)


@pytest.mark.parametrize(("alpha", "gamma"), SETTINGS)
def test_gradcheck_and_the_second_derivative_of_the_reference(alpha, gamma):
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(6, 3, dtype=torch.float64)
    targets[0], targets[1, 0] = torch.tensor([0.0, 1.0, -1.0]), 1.0
    options = {"alpha": alpha, "gamma": gamma}
    assert torch.autograd.gradcheck(lambda x: varifocal_loss(x, targets, **options), logits)
    assert torch.autograd.gradgradcheck(lambda x: varifocal_loss_reference(x, targets, **options), logits)


def test_of_targets_0_and_1_it_is_cross_entropy_and_focal_loss_as_of_labels():
    logits, labels = torch.randn(50, 3) * 5, torch.randint(-1, 4, (50,))
    targets = F.one_hot(labels.clamp(min=0), 4)[:, :3].float().masked_fill(labels[:, None] < 0, -1)
    found = varifocal_loss(logits, labels, reduction="none")
    torch.testing.assert_close(varifocal_loss(logits, targets, reduction="none"), found, rtol=1e-6, atol=0)
    negatives = focal_loss(logits, labels, alpha=0.25, gamma=2.0, reduction="none")  # 1 - .25 of a negative
    positives = cross_entropy_loss(logits, labels, reduction="none")
    torch.testing.assert_close(found, torch.where(targets == 1, positives, negatives))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("alpha", "gamma"), SETTINGS)
def test_finite_at_every_extreme(alpha, gamma, dtype):
    limit = 6e4 if dtype == torch.float16 else 1e30
    x = torch.tensor([-limit, -1000.0, -100.0, -17.5, 0.0, 17.5, 100.0, 1000.0, limit])
    logits = x[:, None].repeat(1, len(TARGETS)).to(dtype).requires_grad_()
    loss = varifocal_loss(logits, torch.tensor(TARGETS).expand(len(x), -1), alpha=alpha, gamma=gamma, reduction="none")
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(("name", "value"), [("alpha", -0.1), ("alpha", 1e7), ("alpha", float("nan")), ("gamma", -1.0)])
def test_a_constant_out_of_its_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} is outside"):
        varifocal_loss(torch.zeros(1, 1), torch.zeros(1, 1), **{name: value})


def test_a_target_out_of_its_range_is_nan_in_a_batch_where_it_is_not_looked_at():
    logits, formula = [torch.zeros(1, 1, 1)], varifocal_formula(0.75, 2.0)
    for target in (1.5, -0.5):
        assert batch_loss(logits, torch.full((1, 1, 1), target), torch.ones(1), formula).isnan()
