"""Quality focal loss: against its formula, by autograd and in 50 digits; at the ends."""

import mpmath
import pytest
import torch
import torch.nn.functional as F

from focal_det.heirs import quality_focal_loss, quality_focal_loss_reference
from focal_det.losses import cross_entropy_loss, focal_loss

BETAS = [0.0, 1.0, 1.5, 2.0, 2.5]
TARGETS = torch.tensor([0.0, 2.0**-30, 0.1, 0.5, 0.73105857, 1 - 2.0**-24, 1.0], dtype=torch.float64)


def authors(logits, targets, beta):
    """Equation 2 as the paper writes it."""
    p = logits.sigmoid()
    return (targets - p).abs() ** beta * -((1 - targets) * torch.log(1 - p) + targets * torch.log(p))


def exact(x, y, beta):
    """The loss and its derivative, with 50 digits."""
    x, y = mpmath.mpf(x), mpmath.mpf(y)
    p, q = 1 / (1 + mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))
    entropy = y * mpmath.log1p(mpmath.exp(-x)) + (1 - y) * mpmath.log1p(mpmath.exp(x))
    gap = p * (1 - y) - q * y
    if gap == 0:
        return entropy if beta == 0 else mpmath.mpf(0), mpmath.mpf(0)
    size = abs(gap)
    slope = size**beta * gap
    slope += beta * size ** (beta - 1) * mpmath.sign(gap) * p * q * entropy if beta else 0
    return size**beta * entropy, slope


def pairs(dtype):
    """Logits and targets (M, 1), each with each."""
    x = torch.cat([torch.linspace(-60, 60, 25), torch.tensor([-1e-3, 1e-3, 0.999, 1.0]), torch.randn(20)]).to(dtype)
    logits, targets = (part.reshape(-1, 1) for part in torch.meshgrid(x, TARGETS.to(dtype), indexing="ij"))
    return logits.clone().requires_grad_(), targets.clone()


@pytest.mark.parametrize("beta", BETAS)
def test_equals_the_papers_formula_in_value_and_gradient(beta):
    logits = (torch.randn(40, 3, dtype=torch.float64) * 3).requires_grad_()
    targets = torch.rand(40, 3, dtype=torch.float64)
    targets[::4] = targets[::4].round()
    expected = authors(logits, targets, beta)
    (expected_grad,) = torch.autograd.grad(expected.sum(), logits)
    for loss in (quality_focal_loss, quality_focal_loss_reference):
        found = loss(logits, targets, beta=beta, reduction="none")
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), logits)[0], expected_grad, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_exact_in_50_digits_near_the_target_too(beta, dtype):
    logits, targets = pairs(dtype)
    targets = targets.to(torch.float64 if dtype == torch.float64 else torch.float32)
    values = quality_focal_loss(logits, targets, beta=beta, reduction="none")
    (grads,) = torch.autograd.grad(values.sum(), logits)
    of_value = 1.5e-6 if values.dtype == torch.float32 else 1e-13
    of_grad = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}.get(dtype, of_value)
    with mpmath.workdps(50):
        for x, y, value, grad in zip(
            *(part.flatten().tolist() for part in (logits, targets, values, grads)), strict=True
        ):
            true_value, true_grad = exact(x, y, beta)
            # What the difference p - y loses in float64 where it cancels.
            cancelled = 3e-16 * (1 + abs(x))
            assert abs(value - true_value) <= of_value * true_value + cancelled + 2e-38, (x, y, value)
            assert abs(grad - true_grad) <= of_grad * abs(true_grad) + cancelled + torch.finfo(dtype).tiny, (x, y, grad)


@pytest.mark.parametrize("beta", BETAS)
def test_gradcheck_and_the_second_derivative_of_the_reference(beta):
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(6, 3, dtype=torch.float64)
    targets[0], targets[1, 0] = torch.tensor([0.0, 1.0, -1.0]), 1.0
    assert torch.autograd.gradcheck(lambda x: quality_focal_loss(x, targets, beta=beta), logits)
    assert torch.autograd.gradgradcheck(lambda x: quality_focal_loss_reference(x, targets, beta=beta), logits)


@pytest.mark.parametrize("beta", BETAS)
def test_of_targets_0_and_1_it_is_the_focal_loss_without_alpha(beta):
    logits, labels = torch.randn(50, 3, dtype=torch.float64) * 5, torch.randint(-1, 4, (50,))
    targets = F.one_hot(labels.clamp(min=0), 4)[:, :3].double().masked_fill(labels[:, None] < 0, -1)
    expected = focal_loss(logits, labels, alpha=None, gamma=beta, reduction="none")
    for given in (labels, targets):
        torch.testing.assert_close(quality_focal_loss(logits, given, beta=beta, reduction="none"), expected)
    if beta == 0:
        soft = torch.rand(50, 3, dtype=torch.float64)
        expected = cross_entropy_loss(logits, soft)
        assert quality_focal_loss(logits, soft, beta=0.0).equal(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beta", BETAS)
def test_finite_at_every_extreme(beta, dtype):
    limit = 6e4 if dtype == torch.float16 else 1e30
    x = torch.tensor([-limit, -1000.0, -100.0, -17.5, 0.0, 17.5, 100.0, 1000.0, limit])
    logits = x[:, None].repeat(1, len(TARGETS)).to(dtype).requires_grad_()
    loss = quality_focal_loss(logits, TARGETS.to(torch.float32).expand(len(x), -1), beta=beta, reduction="none")
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


def test_it_is_zero_where_the_score_is_the_quality():
    logits = torch.tensor([[0.0]], requires_grad=True)
    loss = quality_focal_loss(logits, torch.tensor([[0.5]]))
    loss.backward()
    assert loss.item() == logits.grad.item() == 0


@pytest.mark.parametrize("beta", [-1.0, 0.5, 1e7, float("nan")])
def test_a_beta_out_of_its_range_is_named(beta):
    with pytest.raises(ValueError, match=rf"beta={beta} is neither 0 nor in \[1, 1e\+06\]"):
        quality_focal_loss(torch.zeros(1, 1), torch.zeros(1, 1), beta=beta)


@pytest.mark.parametrize("target", [1.5, -0.5, float("nan")])
def test_a_target_out_of_its_range_is_named(target):
    with pytest.raises(ValueError, match=r"targets\[0, 0\]="):
        quality_focal_loss(torch.zeros(1, 1), torch.tensor([[target]]))
