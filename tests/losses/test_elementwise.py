"""Float targets, weights by class, and what torch.compile and torch.func see: the common part of the family."""

import math

import pytest
import torch
import torch.nn.functional as F

from focal_det.losses import (
    cross_entropy_loss,
    elementwise,
    focal_loss,
    focal_loss_reference,
    focal_loss_star,
    focal_loss_star_reference,
    formula,
    hinge_loss,
    hinge_loss_reference,
    softmax_focal_loss,
)

BY_CLASS = torch.tensor([0.1, 0.25, 0.75, 1.0])


def one_hot(labels, num_classes, dtype=torch.float32):
    targets = (labels.unsqueeze(-1) == torch.arange(num_classes)).to(dtype)
    return targets.masked_fill((labels == -1).unsqueeze(-1), -1)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.25, 1.0, BY_CLASS], ids=str)
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0, 5.0])
def test_hard_targets_have_the_bits_of_the_labels(gamma, alpha, reduction):
    # Whole vectors of 16: PyTorch rounds a few powers and exponentials otherwise in what is left over at the end.
    labels = torch.full((512,), 4)
    labels[torch.randperm(512)[:128]] = torch.randint(-1, 4, (128,))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        logits = torch.randn(512, 4) * 20
        logits[::7] *= 20  # so far that both p and 1 - p round
        logits = logits.to(dtype).requires_grad_()
        losses = [
            focal_loss(logits, kind, alpha=alpha, gamma=gamma, reduction=reduction)
            for kind in (labels, one_hot(labels, 4, dtype))
        ]
        assert torch.equal(*losses)
        assert torch.equal(*[torch.autograd.grad(loss.sum(), logits)[0] for loss in losses])


def test_hard_targets_of_infinite_logits_under_cross_entropy():
    # As for labels: the confident and right have no loss and no slope, where a product of 0 and inf were NaN
    logits = torch.tensor([math.inf, -math.inf], requires_grad=True)
    for reference, targets, loss, slopes in (
        ("right", torch.tensor([1.0, 0.0]), 0.0, [0.0, 0.0]),
        ("wrong", torch.tensor([0.0, 1.0]), math.inf, [1.0, -1.0]),
    ):
        found = cross_entropy_loss(logits, targets)
        assert found.item() == loss, reference
        assert torch.autograd.grad(found, logits)[0].tolist() == slopes


@pytest.mark.parametrize("shape", [(6,), (2, 3, 4), (2, 3, 5, 7)])
def test_targets_of_any_shape_of_logits(shape):
    logits, targets = torch.randn(shape, requires_grad=True), torch.rand(shape)
    losses = focal_loss(logits, targets, reduction="none")
    assert losses.shape == shape
    flat = focal_loss(logits.reshape(-1, 1), targets.reshape(-1, 1), reduction="none")
    torch.testing.assert_close(losses.reshape(-1, 1), flat, rtol=1e-6, atol=0)
    torch.testing.assert_close(focal_loss(logits, targets, reduction="mean"), losses.mean())
    torch.testing.assert_close(focal_loss(logits, targets.double()), losses.sum())  # in the logits' precision


def test_no_targets_are_zero_loss():
    for reduction in ("sum", "mean", "none"):
        assert focal_loss(torch.zeros(0, 3), torch.zeros(0, 3), reduction=reduction).sum().item() == 0


def test_blocks_do_not_change_the_sum(monkeypatch):
    from focal_det.losses import fused

    logits, targets = torch.randn(1000, 3, dtype=torch.float64, requires_grad=True), torch.rand(1000, 3)
    (whole,) = torch.autograd.grad(focal_loss(logits, targets), logits)
    monkeypatch.setattr(fused, "_BLOCK_ELEMENTS", 30)
    torch.testing.assert_close(torch.autograd.grad(focal_loss(logits, targets), logits)[0], whole, rtol=1e-13, atol=0)


@pytest.mark.parametrize("loss", [focal_loss, focal_loss_reference])
@pytest.mark.parametrize("logit", [0.0, math.inf, -math.inf, math.nan])
def test_ignored_targets_have_no_loss_and_no_gradient(loss, logit):
    logits = torch.tensor([[logit, 2.0], [-1.0, logit]], requires_grad=True)
    targets = torch.tensor([[-1.0, 0.3], [1.0, -1.0]])
    found = loss(logits, targets)
    kept = loss(torch.tensor([2.0, -1.0]), torch.tensor([0.3, 1.0]))
    torch.testing.assert_close(found, kept)
    (grad,) = torch.autograd.grad(found, logits)
    assert (grad[0, 0].item(), grad[1, 1].item()) == (0, 0)
    assert grad.isfinite().all()
    assert (grad != 0).sum().item() == 2
    # over every element, the ignored too
    torch.testing.assert_close(loss(logits, targets, reduction="mean"), kept / 4)


@pytest.mark.parametrize("kind", ["labels", "targets"])
@pytest.mark.parametrize("loss", [focal_loss, focal_loss_reference, cross_entropy_loss])
def test_weights_by_class_are_each_class_with_its_own_alpha(loss, kind):
    logits = (torch.randn(40, 4, dtype=torch.float64) * 3).requires_grad_()
    labels = torch.randint(-1, 5, (40,))
    targets = one_hot(labels, 4, torch.float64) if kind == "labels" else torch.rand(40, 4)
    found = loss(logits, labels if kind == "labels" else targets, alpha=BY_CLASS.double())
    expected = sum(loss(logits[:, k], targets[:, k], alpha=BY_CLASS.double()[k].item()) for k in range(4))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    grads = [torch.autograd.grad(value, logits)[0] for value in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("alpha", "sign"), [(0.0, 0), (1.0, 1)])
def test_alpha_of_0_trains_negatives_alone_and_of_1_positives(alpha, sign):
    # The others have neither loss nor gradient, and these have all of theirs: equation 5 with alpha_t = 1
    logits = (torch.randn(30, 3, dtype=torch.float64) * 5).requires_grad_()
    labels = torch.randint(0, 4, (30,))
    counted = one_hot(labels, 3) == sign
    losses = focal_loss(logits, labels, alpha=alpha, reduction="none")
    unweighted = focal_loss(logits, labels, alpha=None, reduction="none")
    assert torch.equal(losses, torch.where(counted, unweighted, 0))
    grad, full = (torch.autograd.grad(x.sum(), logits)[0] for x in (losses, unweighted))
    assert torch.equal(grad, torch.where(counted, full, 0))


def test_of_one_class_label_0_is_the_positive():
    logits = torch.tensor([[2.0], [-1.0], [0.5]])
    by_index = focal_loss(logits, torch.tensor([0, 1, -1]))  # object, background, ignored
    by_target = focal_loss(logits.squeeze(1), torch.tensor([1.0, 0.0, -1.0]))
    assert by_index.item() == pytest.approx(by_target.item(), rel=1e-6)
    q, p = 1 / (1 + math.exp(2)), 1 / (1 + math.exp(1))
    assert by_index.item() == pytest.approx(-0.25 * q**2 * math.log(1 - q) - 0.75 * p**2 * math.log(1 - p), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.tensor([[0, 1.0, 0], [1.5, 0, 0]])}, ValueError, r"targets\[1, 0\]=1.5; allowed are 0 to 1"),
        ({"labels": torch.tensor([[0, -0.5, 0], [-1, 0, 0]])}, ValueError, r"targets\[0, 1\]=-0.5; .* -1 \(ignored\)"),
        ({"labels": torch.tensor([[0, 0, 0], [0, 0, math.nan]])}, ValueError, r"targets\[1, 2\]=nan"),
        ({"labels": torch.zeros(2)}, ValueError, r"float targets \(2,\) must have the shape of logits \(2, 3\)"),
        ({"labels": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, r"as targets, give labels.float\(\)"),
        (
            {"labels": torch.zeros(2, 3, dtype=torch.bool)},
            TypeError,
            "int64 class indices or float targets, not .*bool",
        ),
        ({"alpha": torch.tensor([0.5, 0.5])}, ValueError, r"alpha has 2 weights, but logits \(2, 3\) have 3 classes"),
        ({"alpha": torch.tensor([0.5, -0.5, 1.5])}, ValueError, r"alpha\[1\]=-0.5 is outside \[0, 1\]"),
        ({"alpha": torch.tensor([0.5, 0.5, math.nan])}, ValueError, r"alpha\[2\]=nan is outside"),
        ({"alpha": torch.zeros(1, 3)}, ValueError, r"alpha \(1, 3\) must be \(K,\), a weight for each class"),
        ({"alpha": torch.zeros(3, dtype=torch.int64)}, TypeError, "alpha must be floating point, not torch.int64"),
        ({"alpha": torch.zeros(3, requires_grad=True)}, TypeError, r"alpha gets no gradient: give alpha.detach\(\)"),
        ({"alpha": torch.zeros(3, device="meta")}, ValueError, r"alpha is on meta, logits on cpu"),
    ],
)
@pytest.mark.parametrize("loss", [focal_loss, focal_loss_reference, cross_entropy_loss])
def test_bad_targets_and_weights_are_named(loss, change, error, message):
    with pytest.raises(error, match=message):
        loss(**{"logits": torch.zeros(2, 3), "labels": torch.tensor([0, 3])} | change)


def test_losses_of_labels_alone_refuse_targets():
    for loss in (focal_loss_star, focal_loss_star_reference):
        with pytest.raises(TypeError, match=r"labels must be int64 class indices, not torch.float32"):
            loss(torch.zeros(2, 3), torch.zeros(2, 3), gamma=2.0, beta=1.0)


def test_targets_that_want_a_gradient_are_refused_and_the_plain_formula_gives_it():
    logits, targets = torch.zeros(3), torch.full((3,), 0.5, requires_grad=True)
    with pytest.raises(TypeError, match=r"float targets get no gradient: give targets.detach\(\)"):
        focal_loss(logits, targets)
    # At x = 0, p_t = .5 and the loss is alpha_t * .25 * log 2, whose slope by t is (alpha - (1 - alpha)) * .25 * log 2
    (grad,) = torch.autograd.grad(focal_loss_reference(logits, targets), targets)
    assert grad.tolist() == pytest.approx([-0.125 * math.log(2)] * 3)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_bad_targets_where_nobody_looks_make_the_loss_nan(monkeypatch, gamma):
    monkeypatch.setattr(elementwise, "can_be_looked_at", lambda tensor: False)  # as on a GPU
    logits = torch.zeros(4)
    for loss in (focal_loss, focal_loss_reference):
        losses = loss(logits, torch.tensor([1.5, -0.5, -1.0, 0.5]), gamma=gamma, reduction="none")
        assert losses.isnan().tolist() == [True, True, False, False]
        assert losses[2].item() == 0


# What transforms see --------------------------------------------------------------------------------------------------


def cases():
    """Losses with second arguments that are labels, targets, or have weights by class."""
    labels = torch.tensor([[0, 4, -1], [3, 2, 4]])
    targets = torch.tensor([0.0, 0.3, 1.0, -1.0]).repeat(2, 3, 1)
    exclusive = labels.clamp(max=3)
    return {
        "ce": (cross_entropy_loss, labels, {}),
        "fl": (focal_loss, labels, {}),
        "fl 0.5": (focal_loss, labels, {"gamma": 0.5}),
        "fl by class": (focal_loss, labels, {"alpha": BY_CLASS}),
        "fl of targets": (focal_loss, targets, {}),
        "fl*": (focal_loss_star, labels, {"gamma": 2.0, "beta": 1.0}),
        "hinge": (hinge_loss, labels, {"margin": 0.5}),
        "softmax": (softmax_focal_loss, exclusive, {"alpha": BY_CLASS}),
    }


NAMES = list(cases())


@pytest.fixture
def logits():
    return (torch.randn(2, 3, 4) * 3).requires_grad_()


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_compiles_to_one_graph(name, reduction, logits):
    loss, second, options = cases()[name]
    torch.compiler.reset()
    compiled = torch.compile(lambda *x: loss(*x, reduction=reduction, **options), backend="aot_eager", fullgraph=True)
    found, expected = compiled(logits, second), loss(logits, second, reduction=reduction, **options)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*[torch.autograd.grad(x.sum(), logits)[0] for x in (found, expected)])


def test_vmap_sees_each_alpha(logits):
    alphas, labels = (
        torch.rand(4, logits.shape[-1], dtype=logits.dtype),
        torch.ones(logits.shape[:-1], dtype=torch.int64),
    )
    found = torch.func.vmap(lambda alpha: focal_loss(logits, labels, alpha=alpha))(alphas)
    torch.testing.assert_close(found, torch.stack([focal_loss(logits, labels, alpha=alpha) for alpha in alphas]))


@pytest.mark.parametrize("name", NAMES)
def test_vmap_and_grad_see_each_image(name, logits):
    loss, second, options = cases()[name]
    per_image = [loss(x, y, **options) for x, y in zip(logits, second, strict=True)]
    expected = [torch.autograd.grad(x, logits, retain_graph=True)[0][i] for i, x in enumerate(per_image)]
    both = torch.func.vmap(torch.func.grad_and_value(lambda x, y: loss(x, y, **options)))
    grads, losses = both(logits.detach(), second)
    torch.testing.assert_close(losses, torch.stack(per_image))
    torch.testing.assert_close(grads, torch.stack(expected))


@pytest.mark.parametrize("name", NAMES)
def test_hessian_is_the_derivative_of_the_gradient(name, logits):
    loss, second, options = cases()[name]
    x, y = logits[0, :1].detach().double(), second[0, :1]
    hessian = torch.func.hessian(lambda x: loss(x, y, **options))(x).view(4, 4)
    step = 1e-6
    for k in range(4):
        ends = [(x + sign * step * F.one_hot(torch.tensor(k), 4)).requires_grad_() for sign in (1, -1)]
        high, low = (torch.autograd.grad(loss(end, y, **options), end)[0] for end in ends)
        torch.testing.assert_close(hessian[:, k], (high - low)[0] / (2 * step), rtol=1e-5, atol=1e-8)


REFERENCES = {
    "ce": (focal_loss_reference, {"gamma": 0.0}),
    "fl 0.5": (focal_loss_reference, {"gamma": 0.5}),
    "fl": (focal_loss_reference, {"alpha": BY_CLASS.double()}),
    "fl*": (focal_loss_star_reference, {"gamma": 2.0, "beta": 1.0}),
    "hinge": (hinge_loss_reference, {"margin": 0.5}),
    "softmax": (softmax_focal_loss, {"alpha": BY_CLASS.double()}),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_second_derivatives(name):
    loss, options = REFERENCES[name]
    logits = (torch.randn(5, 4, dtype=torch.float64) * 3).requires_grad_()
    labels = torch.tensor([0, 3, -1, 2, 1])
    kinds = [labels] if loss not in (focal_loss_reference,) else [labels, torch.rand(5, 4).round(decimals=1)]
    for second in kinds:
        assert torch.autograd.gradcheck(lambda x, y=second: loss(x, y, **options), logits)
        assert torch.autograd.gradgradcheck(lambda x, y=second: loss(x, y, **options), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", REFERENCES)
def test_second_derivatives_are_finite_at_every_extreme(name, dtype):
    loss, options = REFERENCES[name]
    logits = torch.tensor([-1e30, -100.0, -17.5, 17.5, 100.0, 1e30]).to(dtype)[:, None].repeat(1, 4).requires_grad_()
    for label in (0, 3):
        (slope,) = torch.autograd.grad(loss(logits, torch.full((6,), label), **options), logits, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), logits)
        assert slope.isfinite().all()
        assert curvature.isfinite().all()


def test_values_are_looked_at_where_they_are_at_hand():
    assert formula.can_be_looked_at(torch.zeros(3))
    assert not formula.can_be_looked_at(torch.zeros(3, device="meta"))
    seen = []
    torch.func.vmap(lambda x: seen.append(formula.can_be_looked_at(x)) or x)(torch.zeros(3))
    assert seen == [False]


@pytest.mark.parametrize("logit", [-torch.inf, -3e38, 3e38, torch.inf])
@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_plain_form_is_finite_at_infinite_logits(gamma, logit, target):
    x = torch.tensor([[logit]], requires_grad=True)
    loss = focal_loss_reference(x, torch.tensor([[target]]), gamma=gamma)
    (grad,) = torch.autograd.grad(loss, x)
    assert loss.isfinite()
    assert grad.item() == 0  # as its docstring says: none beyond the largest logit
    if (logit > 0) == (target == 1) and target in (0, 1):
        assert loss == 0
