"""The class loss of a batch over its levels, against the plain formulas in float64."""

import pytest
import torch

from focal_det.losses import focal_loss_reference, focal_loss_star_reference, hinge_loss_reference
from focal_det.losses import fused as batch
from focal_det.losses.cross_entropy import cross_entropy_formula
from focal_det.losses.focal import focal_formula
from focal_det.losses.focal_star import focal_star_formula
from focal_det.losses.fused import batch_loss
from focal_det.losses.hinge import hinge_formula

# Name to the formula, the plain one, and its options.
FAMILY = {
    "ce": (cross_entropy_formula(0.75), focal_loss_reference, {"alpha": 0.75, "gamma": 0.0}),
    "fl 0.5": (focal_formula(0.25, 0.5), focal_loss_reference, {"gamma": 0.5}),
    "fl 2": (focal_formula(0.25, 2.0), focal_loss_reference, {"gamma": 2.0}),
    "fl*": (focal_star_formula(2.0, 1.0), focal_loss_star_reference, {"gamma": 2.0, "beta": 1.0}),
    "hinge": (hinge_formula(0.5), hinge_loss_reference, {"margin": 0.5}),
}
DIVISORS = torch.tensor([3.0, 7.0])


def case(dtype, channels_last):
    """Leaves (N, A*K, H, W) with extreme logits among them, their (N, H, W, A, K) views, and labels of every kind."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    leaves = [torch.randn(2, 2 * 3, *size) * 5 for size in ((7, 5), (3, 2), (1, 1))]
    leaves[0][:, :, 0] = torch.tensor([-30.0, 30.0, -17.5, 17.5, 12.0])
    leaves = [x.to(dtype).contiguous(memory_format=layout).requires_grad_() for x in leaves]
    levels = [x.unflatten(1, (2, 3)).permute(0, 3, 4, 1, 2) for x in leaves]
    return leaves, levels, torch.randint(-1, 4, (2, sum(level[0, ..., 0].numel() for level in levels)))


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize("name", FAMILY)
def test_equals_the_plain_formula_in_value_and_gradient(monkeypatch, name, factor, channels_last, on_gpu):
    formula, plain, options = FAMILY[name]
    monkeypatch.setattr(batch, "_BLOCK_ELEMENTS", 30)  # 10 rows: several blocks to a level
    if on_gpu:  # a level at a time, as on a device that is not to be waited for
        monkeypatch.setattr(batch, "_cached_blocks", batch._large_blocks)
    leaves, levels, labels = case(torch.float64, channels_last)
    loss = batch_loss(levels, labels, DIVISORS, formula) * factor
    logits = torch.cat([level.flatten(1, -2) for level in levels], dim=1)
    expected = (plain(logits, labels, reduction="none", **options).sum(dim=(1, 2)) / DIVISORS).sum() * factor
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    grads, expected_grads = (torch.autograd.grad(value, leaves) for value in (loss, expected))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11 * 1.01)])
def test_half_precision_gradients_are_rounded_once(dtype, rounding):
    _, levels, labels = case(dtype, channels_last=True)
    exact = [level.detach().double().requires_grad_() for level in levels]
    losses = [batch_loss(x, labels, DIVISORS, FAMILY["fl 2"][0]) for x in (levels, exact)]
    grads, exact_grads = torch.autograd.grad(losses[0], levels), torch.autograd.grad(losses[1], exact)
    assert losses[0].dtype == torch.float32
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double(), exact_grad, rtol=rounding, atol=2.0**-25)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("kind", ["targets", "weights by class"])
def test_targets_and_weights_by_class_over_levels(monkeypatch, kind, channels_last, on_gpu):
    monkeypatch.setattr(batch, "_BLOCK_ELEMENTS", 30)
    if on_gpu:
        monkeypatch.setattr(batch, "_cached_blocks", batch._large_blocks)
    leaves, levels, labels = case(torch.float64, channels_last)
    alpha = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64) if kind == "weights by class" else 0.25
    if kind == "targets":
        labels = torch.rand(*labels.shape, 3).masked_fill(torch.rand(*labels.shape, 3) < 0.1, -1)
    loss = batch_loss(levels, labels, DIVISORS, focal_formula(alpha, 2.0))
    logits = torch.cat([level.flatten(1, -2) for level in levels], dim=1)
    losses = focal_loss_reference(logits, labels, alpha=alpha, reduction="none")
    expected = (losses.sum(dim=(1, 2)) / DIVISORS).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    for grads in zip(*(torch.autograd.grad(value, leaves) for value in (loss, expected)), strict=True):
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-9)


def test_what_has_no_kernel_is_computed_without(monkeypatch):
    def launched(levels, labels, divisors, **constants):
        return "launched"

    monkeypatch.setattr(batch, "triton_batch_loss", launched)
    _, levels, labels = case(torch.float32, channels_last=True)
    doubles, targets = [level.double() for level in levels], torch.rand(*labels.shape, 3)
    one, by_class = focal_formula(0.25, 2.0), focal_formula(torch.full((3,), 0.25), 2.0)
    assert batch_loss(levels, labels, DIVISORS, one, use_triton=True) == "launched"
    loss = batch_loss(levels, labels, DIVISORS, one)
    for found in (
        batch_loss(doubles, labels, DIVISORS, one, use_triton=True).float(),
        batch_loss(levels, labels, DIVISORS, by_class, use_triton=True),
    ):
        torch.testing.assert_close(found, loss)
    assert batch_loss(levels, targets, DIVISORS, one, use_triton=True).isfinite()
    with pytest.raises(ValueError, match="alpha has 2 weights, but"):
        batch_loss(levels, labels, DIVISORS, focal_formula(torch.ones(2), 2.0))


@pytest.mark.parametrize("num_classes", [1, 3])
def test_an_anchor_that_does_not_count_has_no_loss_and_no_gradient_whatever_its_logits_are(num_classes):
    logits = torch.randn(2, 4, num_classes)
    logits[0, 1], logits[1, 2] = torch.inf, torch.nan
    labels, weights = torch.zeros(2, 4, dtype=torch.int64), torch.rand(2, 4, 1)
    weights[0, 1] = weights[1, 2] = 0
    formula = FAMILY["fl 2"][0]
    expected = batch_loss([logits.nan_to_num(0, 0, 0)], labels, DIVISORS, formula, weights=weights)
    logits.requires_grad_()
    loss = batch_loss([logits * 1], labels, DIVISORS, formula, weights=weights)
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss, logits)
    assert grad.isfinite().all()
    assert grad[0, 1].eq(0).all()
    assert grad[1, 2].eq(0).all()
