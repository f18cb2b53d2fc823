"""The asymmetric loss: the paper's formulas in 50 digits, its derivatives, its special cases."""

import itertools

import mpmath
import pytest
import torch

from focal_det.heirs import asymmetric_loss, asymmetric_loss_reference
from focal_det.losses import cross_entropy_loss, focal_loss

SETTINGS = [(0.0, 4.0, 0.05), (1.0, 4.0, 0.05), (0.0, 0.0, 0.3), (2.0, 0.5, 0.5), (0.0, 4.0, 0.0), (0.0, 2.0, 1e-6)]
each_setting = pytest.mark.parametrize(("gamma_pos", "gamma_neg", "prob_shift"), SETTINGS)


def exact(x, sign, gamma_pos, gamma_neg, prob_shift):
    """The paper's L+ and L- and their derivative by the logit, with 50 digits."""
    with mpmath.workdps(50):
        p = 1 / (1 + mpmath.exp(-x))
        if sign > 0:
            log_p = -mpmath.log1p(mpmath.exp(-x))
            return -((1 - p) ** gamma_pos) * log_p, (1 - p) ** gamma_pos * (gamma_pos * p * log_p - (1 - p))
        shifted = p - mpmath.mpf(prob_shift)
        if shifted <= 0:
            return mpmath.mpf(0), mpmath.mpf(0)
        log_rest = mpmath.log(1 - shifted)
        slope = p * (1 - p) * shifted**gamma_neg * (1 / (1 - shifted) - gamma_neg * log_rest / shifted)
        return -(shifted**gamma_neg) * log_rest, slope


@pytest.mark.parametrize(
    ("dtype", "value_tolerance", "grad_tolerance"),
    [
        (torch.float64, 2e-14, 2e-14),
        (torch.float32, 4e-6, 4e-6),
        (torch.bfloat16, 4e-6, 2.0**-8),
        (torch.float16, 4e-6, 2.0**-11 * 1.01),
    ],
)
@each_setting
def test_exact_at_every_logit_also_beside_the_shift(
    dtype, value_tolerance, grad_tolerance, gamma_pos, gamma_neg, prob_shift
):
    beside = [] if prob_shift == 0 else [float(mpmath.log(prob_shift / (1 - mpmath.mpf(prob_shift))))]
    near = [x + d for x in beside for d in (1e-1, 1e-3, 1e-5, -1e-5)]
    x = torch.tensor([*torch.linspace(-80, 80, 41).tolist(), *near, 1e-3, -17.5, 17.5], dtype=torch.float64).to(dtype)
    for label, sign in ((0, 1), (1, -1)):
        logits = x[:, None].clone().requires_grad_()
        labels, options = torch.full((len(x),), label), (gamma_pos, gamma_neg, prob_shift)
        named = dict(zip(("gamma_pos", "gamma_neg", "prob_shift"), options, strict=True))
        values = asymmetric_loss(logits, labels, reduction="none", **named)
        values.sum().backward()
        for logit, value, grad in zip(x.tolist(), values.tolist(), logits.grad.tolist(), strict=True):
            truths = exact(mpmath.mpf(logit), sign, *options)
            for truth, number, its_dtype, tolerance in (
                (truths[0], value[0], values.dtype, value_tolerance),
                (truths[1], grad[0], dtype, grad_tolerance),
            ):
                smallest = torch.finfo(values.dtype).tiny  # below it a number may be zero
                allowed = tolerance * (1 + max(gamma_pos, gamma_neg)) * max(abs(truth), torch.finfo(its_dtype).tiny)
                allowed += smallest if abs(truth) < smallest else 0
                assert abs(number - truth) <= allowed, (logit, label, number, float(truth))


@each_setting
def test_equals_the_plain_formula_and_its_gradient_is_its_own(gamma_pos, gamma_neg, prob_shift):
    options = {"gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "prob_shift": prob_shift}
    logits = (torch.randn(40, 3, dtype=torch.float64) * 4).requires_grad_()
    for labels in (torch.randint(-1, 4, (40,)), torch.rand(40, 3), (torch.rand(40, 3) < 0.3).float()):
        ours, plain = (f(logits, labels, **options) for f in (asymmetric_loss, asymmetric_loss_reference))
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=0)
        grads = [torch.autograd.grad(loss, logits)[0] for loss in (ours, plain)]
        torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-12)
    few = logits[:5].detach().requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, -1])
    assert torch.autograd.gradcheck(lambda x: asymmetric_loss(x, labels, **options), few)


def test_several_classes_of_an_anchor_are_targets_of_one():
    logits, labels = torch.randn(9, 3), torch.tensor([0, 1, 2, 3, 3, 0, -1, 1, 2])
    targets = torch.nn.functional.one_hot(labels.clamp(min=0), 4)[:, :3].float()
    targets[labels < 0] = -1
    for reduction in ("none", "sum"):
        pair = [asymmetric_loss(logits, t, reduction=reduction) for t in (labels, targets)]
        assert torch.equal(*pair)
    both = asymmetric_loss(logits[:1], torch.tensor([[1.0, 1.0, 0.0]]), reduction="none")
    alone = [asymmetric_loss(logits[:1], torch.tensor([k]), reduction="none") for k in (0, 1)]
    assert both[0].tolist() == [alone[0][0, 0].item(), alone[1][0, 1].item(), alone[0][0, 2].item()]


def test_without_a_shift_and_with_one_gamma_it_is_the_focal_loss_and_with_none_cross_entropy():
    logits, labels = torch.randn(50, 3) * 5, torch.randint(-1, 4, (50,))
    same = asymmetric_loss(logits, labels, gamma_pos=2.0, gamma_neg=2.0, prob_shift=0.0)
    assert same == focal_loss(logits, labels, alpha=None, gamma=2.0)
    assert asymmetric_loss(logits, labels, gamma_pos=0.0, gamma_neg=0.0, prob_shift=0.0) == cross_entropy_loss(
        logits, labels
    )


def test_finite_at_every_extreme():
    for dtype, limit in ((torch.float64, 1e30), (torch.float32, 1e30), (torch.float16, 6e4)):
        x = torch.tensor([-limit, -1000, -100, -1e-8, 0, 100, 1000, limit], dtype=torch.float64).to(dtype)
        for labels in (torch.zeros(8, dtype=torch.int64), torch.ones(8, dtype=torch.int64), torch.full((8, 1), 0.5)):
            for loss, shift in itertools.product((asymmetric_loss, asymmetric_loss_reference), (0.0, 1e-12, 0.05)):
                logits = x[:, None].clone().requires_grad_()
                total = loss(logits, labels, prob_shift=shift)
                total.backward()
                assert total.isfinite()
                assert logits.grad.isfinite().all()


def test_a_second_derivative_and_transforms_take_the_plain_form():
    logits, labels = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 3, 1, 2])
    curvature = torch.func.hessian(lambda x: asymmetric_loss(x, labels))(logits)
    assert curvature.isfinite().all()
    assert curvature.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma_pos": -1.0}, r"gamma_pos=-1.0 is outside \[0, 1e\+06\]"),
        ({"gamma_neg": float("nan")}, r"gamma_neg=nan is outside"),
        ({"prob_shift": 1.0}, r"prob_shift=1.0 is outside \[0, 1\)"),
        ({"prob_shift": -0.1}, r"prob_shift=-0.1 is outside"),
    ],
)
def test_constants_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        asymmetric_loss(torch.zeros(2, 3), torch.tensor([0, 3]), **options)
    with pytest.raises(TypeError, match="gamma_neg='4' must be a number"):
        asymmetric_loss(torch.zeros(2, 3), torch.tensor([0, 3]), gamma_neg="4")


def test_hard_targets_are_their_indices_at_infinite_logits_too():
    x = torch.tensor([[-torch.inf, torch.inf]])
    found = asymmetric_loss(x, torch.tensor([[0.0, 1.0]]), reduction="none")
    assert torch.equal(found, asymmetric_loss(x, torch.tensor([1]), reduction="none"))
