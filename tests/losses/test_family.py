"""What holds for every loss of the family: plain formula, exact arithmetic, symmetries, extremes, bad input."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_det.losses import (
    cross_entropy_loss,
    focal_loss,
    focal_loss_reference,
    focal_loss_star,
    focal_loss_star_reference,
    fused,
    hinge_loss,
    hinge_loss_reference,
)
from focal_det.losses.elementwise import elementwise_loss
from focal_det.losses.formula import Formula

GAMMAS = [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
# Name to the loss, its plain formula, and the options of each.
FAMILY = {
    "ce": (cross_entropy_loss, focal_loss_reference, {"alpha": None}, {"alpha": None, "gamma": 0.0}),
    "balanced": (cross_entropy_loss, focal_loss_reference, {"alpha": 0.75}, {"alpha": 0.75, "gamma": 0.0}),
    "fl alpha 1": (focal_loss, focal_loss_reference, *[{"alpha": 1.0, "gamma": 2.0}] * 2),
    "fl no alpha": (focal_loss, focal_loss_reference, *[{"alpha": None, "gamma": 2.0}] * 2),
    **{f"fl {g}": (focal_loss, focal_loss_reference, *[{"alpha": 0.25, "gamma": g}] * 2) for g in GAMMAS},
    "fl* 2, 1": (focal_loss_star, focal_loss_star_reference, *[{"gamma": 2.0, "beta": 1.0}] * 2),
    "fl* 4, 0": (focal_loss_star, focal_loss_star_reference, *[{"gamma": 4.0, "beta": 0.0}] * 2),
    "hinge .5": (hinge_loss, hinge_loss_reference, *[{"margin": 0.5}] * 2),
    "hinge 1": (hinge_loss, hinge_loss_reference, *[{"margin": 1.0}] * 2),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=FAMILY)
def member(request):
    """A loss and its plain formula, both as functions of logits, labels and reduction."""
    loss, reference, options, reference_options = FAMILY[request.param]
    return (
        lambda logits, labels, reduction="sum": loss(logits, labels, reduction=reduction, **options),
        lambda logits, labels, reduction="sum": reference(logits, labels, reduction=reduction, **reference_options),
    )


def random_case(anchors=64, classes=5, dtype=torch.float64, scale=3.0):
    logits = (torch.randn(anchors, classes, dtype=dtype) * scale).requires_grad_()
    labels = torch.randint(-1, classes + 1, (anchors,))
    return logits, labels


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_equals_the_plain_formula_in_value_and_gradient(member, reduction):
    logits, labels = random_case()
    ours, plain = (loss(logits, labels, reduction) for loss in member)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-15)
    grads = [torch.autograd.grad(values.sum(), logits)[0] for values in (ours, plain)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_gradcheck(member, reduction):
    logits, labels = random_case(anchors=6, classes=3)
    assert torch.autograd.gradcheck(lambda x: member[0](x, labels, reduction), logits)


def exact(name, z, sign):
    """Loss and derivative by the logit with 50 digits, from x_t and y."""
    with mpmath.workdps(50):
        p, q, log_p = 1 / (1 + mpmath.exp(-z)), 1 / (1 + mpmath.exp(z)), -mpmath.log1p(mpmath.exp(-z))
        options = {key: mpmath.mpf(value) for key, value in FAMILY[name][3].items() if value is not None}
        if name.startswith("fl*"):
            u = options["gamma"] * z + options["beta"]
            return mpmath.log1p(mpmath.exp(-u)) / options["gamma"], -sign / (1 + mpmath.exp(u))
        if name.startswith("hinge"):
            gap = q - (1 - options["margin"])
            return (gap, -sign * p * q) if gap > 0 else (0, 0)
        alpha, gamma = options.get("alpha"), options["gamma"]
        weight = 1 if alpha is None else alpha if sign > 0 else 1 - alpha
        return -weight * q**gamma * log_p, sign * weight * q**gamma * (gamma * p * log_p - q)


# A few roundings of each dtype; bf16 and fp16 gradients are rounded once more, by half a unit in the last place.
VALUE_TOLERANCE = {torch.float64: 4e-15, torch.float32: 1.5e-6, torch.bfloat16: 1.5e-6, torch.float16: 1.5e-6}
GRAD_TOLERANCE = {torch.float64: 4e-15, torch.float32: 1.5e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11 * 1.01}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILY)
def test_exact_to_a_few_roundings_at_every_logit(name, dtype):
    # Relative to the exact number; what is below the smallest normal number may be zero, as PyTorch's sigmoid is.
    loss, _, options, _ = FAMILY[name]
    random = torch.rand(60, dtype=torch.float64) * 60 - 30
    x = torch.cat([torch.linspace(-100, 100, 41), torch.tensor([-88.7, -17.5, -1e-3, 1e-3, 17.5, 88.7]), random]).to(
        dtype
    )
    for label, sign in ((0, 1), (1, -1)):
        logits = x[:, None].clone().requires_grad_()
        smallest = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).tiny
        values = loss(logits, torch.full((len(x),), label), reduction="none", **options)
        values.sum().backward()
        for logit, value, grad in zip(x.tolist(), values.tolist(), logits.grad.tolist(), strict=True):
            truths = exact(name, sign * mpmath.mpf(logit), sign)
            found = ((value[0], values.dtype, VALUE_TOLERANCE), (grad[0], dtype, GRAD_TOLERANCE))
            for truth, (number, its_dtype, tolerance) in zip(truths, found, strict=True):
                allowed = tolerance[dtype] * max(abs(truth), torch.finfo(its_dtype).tiny)
                allowed += smallest if abs(truth) < smallest else 0
                if name.startswith("fl ") and number == grad[0]:  # gamma * s magnifies the rounding of 1 - q
                    allowed += torch.finfo(values.dtype).eps * options["gamma"] * abs(logit) * abs(truth)
                if dtype == torch.float64 and name.startswith("hinge"):
                    allowed += 1e-16  # the difference of margin and p_t cancels near the margin
                if dtype == torch.float64 and name.startswith("fl*"):
                    allowed += 2e-16 * 4 * abs(logit) * abs(truth)  # exp magnifies the rounding of gamma z + beta
                assert abs(number - truth) <= allowed, (logit, label, number, float(truth))


@pytest.mark.parametrize("dtype", DTYPES)
def test_finite_at_every_extreme(member, dtype):
    limit = 6e4 if dtype == torch.float16 else 1e30
    x = torch.tensor([-limit, -1000.0, -100.0, -17.5, -1e-8, 0.0, 17.5, 100.0, 1000.0, limit])
    logits = x[:, None].repeat(1, 2).to(dtype).requires_grad_()
    for label in (0, 1, 2):
        loss = member[0](logits, torch.full((10,), label))
        (grad,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert grad.isfinite().all()


def test_ignored_anchors_have_no_loss_and_no_gradient_even_if_not_finite(member):
    for loss in member:
        logits = torch.tensor([[-0.1, -0.2], [float("inf"), float("nan")]], requires_grad=True)
        losses = loss(logits, torch.tensor([0, -1]), "none")
        assert losses[1].tolist() == [0.0, 0.0]
        losses.sum().backward()
        assert logits.grad[1].tolist() == [0.0, 0.0]
        assert logits.grad[0, 0].item() != 0


def test_all_ignored_is_zero(member):
    logits = torch.randn(5, 3, requires_grad=True)
    loss = member[0](logits, torch.full((5,), -1))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max().item() == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(sorted(FAMILY)))
def test_permuting_anchors_or_classes_and_splitting_leave_the_sum(seed, name):
    loss, _, options, _ = FAMILY[name]
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(20, 4, generator=generator, dtype=torch.float64) * 5
    labels = torch.randint(-1, 5, (20,), generator=generator)
    whole = loss(logits, labels, **options)
    anchors, classes = torch.randperm(20, generator=generator), torch.randperm(4, generator=generator)
    # Class c of the old logits is at classes.argsort()[c] of the new; background and ignored stay what they are.
    renamed = torch.where((labels >= 0) & (labels < 4), classes.argsort()[labels.clamp(0, 3)], labels)
    for changed in (
        loss(logits[anchors], labels[anchors], **options),
        loss(logits[:, classes], renamed, **options),
        loss(logits[:7], labels[:7], **options) + loss(logits[7:], labels[7:], **options),
        loss(logits, labels, reduction="none", **options).sum(),
        loss(logits, labels, reduction="mean", **options) * 80,
    ):
        torch.testing.assert_close(changed, whole, rtol=1e-12, atol=1e-300)


def test_blocks_do_not_change_the_sum(member, monkeypatch):
    logits, labels = random_case(anchors=1000, classes=3)
    whole = member[0](logits, labels)
    (whole_grad,) = torch.autograd.grad(whole, logits)
    monkeypatch.setattr(fused, "_BLOCK_ELEMENTS", 30)  # 10 rows: 100 blocks
    blocks = member[0](logits, labels)
    torch.testing.assert_close(blocks, whole, rtol=1e-13, atol=0)
    torch.testing.assert_close(torch.autograd.grad(blocks, logits)[0], whole_grad, rtol=1e-13, atol=0)


def test_the_same_input_gives_the_same_bits(member):
    logits, labels = random_case(anchors=30_000, dtype=torch.float32)
    results = [member[0](logits, labels) for _ in range(3)]
    assert len({loss.item() for loss in results}) == 1
    grads = [torch.autograd.grad(loss, logits)[0] for loss in results]
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_leading_dimensions_of_any_number(member):
    logits, labels = random_case(anchors=24)
    folded = member[0](logits.view(2, 3, 4, 5), labels.view(2, 3, 4), "none")
    torch.testing.assert_close(folded.view(24, 5), member[0](logits, labels, "none"), rtol=0, atol=0)


def test_logits_of_any_strides(member):
    logits, labels = random_case()
    turned = logits.detach().t().contiguous().t().requires_grad_()  # as from a permuted feature map
    assert not turned.is_contiguous()
    for leaf in (logits, turned):
        member[0](leaf, labels).backward()
    torch.testing.assert_close(turned.grad, logits.grad, rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_no_anchors_is_zero_loss(member, reduction):
    for function in member:
        logits = torch.zeros(0, 3, requires_grad=True)
        loss = function(logits, torch.zeros(0, dtype=torch.int64), reduction)
        assert loss.sum().item() == 0
        loss.sum().backward()


def test_half_precision_gives_float32_values_and_gradients_of_its_own_dtype(member):
    for dtype in (torch.bfloat16, torch.float16):
        for function in member:
            logits = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
            loss = function(logits, torch.tensor([0, 3]))
            loss.backward()
            assert loss.dtype == torch.float32
            assert logits.grad.dtype == dtype


def test_no_gradient_is_made_where_none_is_wanted():
    wanted = []

    def terms(x, sign, needs_grad):
        wanted.append(needs_grad)
        return x * sign, torch.full_like(x, sign) if needs_grad else None

    logits, labels = random_case()
    formula = Formula(terms, "signed")
    with torch.no_grad():
        elementwise_loss(logits, labels, formula, reduction="sum")
    elementwise_loss(logits.detach(), labels, formula, reduction="sum")
    assert wanted == [False] * 4
    elementwise_loss(logits, labels, formula, reduction="sum").backward()
    assert wanted[4:] == [True] * 2


def test_the_elements_may_be_changed_in_place(member):
    logits, labels = random_case()
    losses = member[0](logits, labels, "none")
    doubled = losses.mul_(2).sum()
    torch.testing.assert_close(
        torch.autograd.grad(doubled, logits)[0], 2 * torch.autograd.grad(member[0](logits, labels), logits)[0]
    )


def test_one_may_go_backward_several_times(member):
    logits, labels = random_case()
    loss = member[0](logits, labels)
    (once,) = torch.autograd.grad(member[1](logits, labels), logits)
    for times in (1, 2, 3):
        loss.backward(retain_graph=True)
        torch.testing.assert_close(logits.grad, times * once, rtol=1e-9, atol=1e-12)


def test_second_derivative_is_refused_and_the_plain_formula_has_it(member):
    logits, labels = random_case(anchors=4)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(member[0](logits, labels), logits, create_graph=True)
    (slope,) = torch.autograd.grad(member[1](logits, labels), logits, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), logits)
    assert curvature.isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"reduction": "avg"}, ValueError, r"reduction='avg' is not one of 'sum', 'mean', 'none'"),
        ({"labels": torch.tensor([0, 4])}, ValueError, r"0\.\.4; allowed are -1 \(ignored\), 0\.\.2"),
        ({"labels": torch.tensor([0, -2])}, ValueError, r"-2\.\.0"),
        ({"labels": torch.tensor([0, 1], dtype=torch.int32)}, TypeError, "int32"),
        ({"labels": torch.tensor([0])}, ValueError, r"\(1,\) must have the shape of logits \(2, 3\)"),
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "int64"),
        ({"logits": torch.zeros(2, 0)}, ValueError, r"\(2, 0\)"),
        ({"logits": torch.tensor(1.0)}, ValueError, r"not \(\)"),
        ({"logits": [[0.0, 1.0, 2.0]]}, TypeError, "logits must be a tensor, not list"),
        ({"labels": [0, 3]}, TypeError, "labels must be a tensor, not list"),
    ],
)
def test_bad_input_is_named(member, change, error, message):
    arguments = {"logits": torch.zeros(2, 3), "labels": torch.tensor([0, 3])} | change
    for loss in member:
        with pytest.raises(error, match=message):
            loss(arguments["logits"], arguments["labels"], arguments.get("reduction", "sum"))


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        *(
            (loss, {"gamma": gamma}, rf"gamma={gamma} is outside \[0, 1e\+06\]".replace("-", r"\-"))
            for loss in (focal_loss, focal_loss_reference)
            for gamma in (-1.0, float("nan"), float("inf"), 1e7)
        ),
        *(
            (loss, {"alpha": alpha}, rf"alpha={alpha} is outside \[0, 1\]; None means no alpha")
            for loss in (focal_loss, focal_loss_reference, cross_entropy_loss)
            for alpha in (-0.5, 1.5, float("nan"))
        ),
        *(
            (loss, {"gamma": gamma, "beta": 0.0}, rf"gamma={gamma} is outside \[1e-06, 1e\+06\]; FL\* divides by it")
            for loss in (focal_loss_star, focal_loss_star_reference)
            for gamma in (0.0, -2.0)
        ),
        (focal_loss_star, {"gamma": 2.0, "beta": float("inf")}, "beta=inf is outside"),
        *(
            (loss, {"margin": margin}, rf"margin={margin} is outside \(0, 1\]")
            for loss in (hinge_loss, hinge_loss_reference)
            for margin in (0.0, 1.5, float("nan"))
        ),
    ],
)
def test_constants_out_of_range_are_named(loss, options, message):
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(2, 3), torch.tensor([0, 3]), **options)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (focal_loss, {"gamma": "2"}, "gamma='2' must be a number, not str"),
        (focal_loss, {"gamma": True}, "gamma=True must be a number, not bool"),
        (
            focal_loss,
            {"alpha": torch.tensor(0.5, requires_grad=True)},
            "alpha=tensor.* must be a number, or a tensor .*, not Tensor",
        ),
        (focal_loss_reference, {"gamma": None}, "gamma=None must be a number, not NoneType"),
        (cross_entropy_loss, {"alpha": [0.5]}, "alpha="),
        (focal_loss_star, {"gamma": 2.0, "beta": None}, "beta=None"),
        (hinge_loss, {"margin": "x"}, "margin='x'"),
    ],
)
def test_constants_that_are_not_numbers_are_named(loss, options, message):
    with pytest.raises(TypeError, match=message):
        loss(torch.zeros(2, 3), torch.tensor([0, 3]), **options)


def test_constants_may_be_integers_and_numpys():
    logits, labels = random_case()
    for gamma in (2, np.float32(2), np.int64(2)):
        assert focal_loss(logits, labels, gamma=gamma).item() == focal_loss(logits, labels, gamma=2.0).item()
