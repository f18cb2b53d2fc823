"""The Triton kernels against the float64 formulas: on a GPU where there is one, and always in Triton's interpreter.

Triton's own library is interpreted only if TRITON_INTERPRET is set before its first import, so that the interpreter
needs a process of its own: `test_everything_in_the_interpreter` runs this file in one. Without a GPU the tests then
pass there and are skipped here. What would not compile for a GPU fails here all the same.
"""

import functools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from focal_det.losses import (
    cross_entropy_loss,
    focal_loss,
    focal_loss_reference,
    focal_loss_star,
    focal_loss_star_reference,
    hinge_loss,
    hinge_loss_reference,
    triton_loss,
)
from focal_det.losses.triton_loss import triton_batch_loss, triton_missing

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = pytest.importorskip("triton.language")
triton_kernels = pytest.importorskip("focal_det.losses.triton_kernels")
_loss_and_slope = triton_kernels._loss_and_slope

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_GPU = torch.cuda.is_available() and triton_missing(torch.device("cuda")) is None

ALPHA = {"weights": (0.25, 0.75)}
ONES = {"weights": (1.0, 1.0)}
# Name to the options of the kernels, the plain formula, and its options.
FAMILY = {
    "ce": (
        {"kind": "cross_entropy", "gamma": 0, "shift": 0, **ONES},
        focal_loss_reference,
        {"alpha": None, "gamma": 0},
    ),
    "balanced": (
        {"kind": "cross_entropy", "gamma": 0, "shift": 0, **ALPHA},
        focal_loss_reference,
        {"alpha": 0.25, "gamma": 0},
    ),
    "fl alpha 0": (
        {"kind": "focal", "gamma": 2.0, "shift": 0, "weights": (0.0, 1.0)},
        focal_loss_reference,
        {"alpha": 0.0},
    ),
    "fl no alpha": ({"kind": "focal", "gamma": 2.0, "shift": 0, **ONES}, focal_loss_reference, {"alpha": None}),
    **{
        f"fl {g}": ({"kind": "focal", "gamma": g, "shift": 0, **ALPHA}, focal_loss_reference, {"gamma": g})
        for g in (0.0, 0.1, 0.5, 1, 2, 5.0)
    },
    **{
        f"fl* {g}, {b}": (
            {"kind": "focal_star", "gamma": g, "shift": b, **ONES},
            focal_loss_star_reference,
            {"gamma": g, "beta": b},
        )
        for g, b in ((2, 1), (4.0, 0.0), (4.3, 0.7))
    },
    **{
        f"hinge {m}": ({"kind": "hinge", "gamma": 0, "shift": m, **ONES}, hinge_loss_reference, {"margin": m})
        for m in (0.3, 0.5, 1)
    },
}
KINDS = ["balanced", "fl 0.5", "fl 2", "fl* 2, 1", "hinge 0.5"]  # one for each that is compiled
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny  # what is smaller, a GPU's exp2 flushes to 0
EXP2_ERROR = 2.0**-22  # of a GPU's exp2 (ex2.approx.ftz), relative, by the PTX manual; the interpreter rounds it

# numpy says so where the interpreter computes what a `where` then leaves out
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def device():
    if IS_INTERPRETED:
        return torch.device("cpu")
    if not HAS_GPU:
        pytest.skip("no GPU of compute capability 8.0; test_everything_in_the_interpreter runs this on the CPU")
    return torch.device("cuda")


@pytest.mark.skipif(IS_INTERPRETED, reason="this is the interpreter's process")
def test_everything_in_the_interpreter():
    command = [
        sys.executable,
        "-m",
        "pytest",
        __file__,
        "-p",
        "no:cacheprovider",
        "-k",
        "not compile and not wait and not 32_bits",
    ]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\b[1-9]\d* passed, 1 skipped", run.stdout)  # the one that would start the next interpreter


# Cases ----------------------------------------------------------------------------------------------------------------


def channels_last(head):
    return head.to(memory_format=torch.channels_last)


def channels_first(head):
    return head.contiguous()


def sliced(head):
    """The inner part of larger memory, in neither direction dense."""
    num_images, channels, height, width = head.shape
    larger = torch.full((num_images, channels + 2, height + 1, width + 3), float("nan"), device=head.device)
    larger = larger.to(head.dtype)
    larger[:, 1:-1, :-1, 1:-2] = head
    return larger[:, 1:-1, :-1, 1:-2]


def level_view(head, num_classes):
    """(N, A*K, H, W) to the view (N, H, W, A, K)."""
    num_images, channels, height, width = head.shape
    view = head.view(num_images, channels // num_classes, num_classes, height, width)
    return view.permute(0, 3, 4, 1, 2)


SIZES = ((5, 7), (2, 3), (1, 1))


def random_case(device, num_classes=3, arrange=channels_last, dtype=torch.float32, num_images=2, sizes=SIZES):
    """Levels, labels and divisors; 3 anchors per location."""
    heads = [torch.randn(num_images, 3 * num_classes, *size, device=device) * 3 for size in sizes]
    levels = [level_view(arrange(head.to(dtype)), num_classes).requires_grad_() for head in heads]
    num_anchors = sum(3 * height * width for height, width in sizes)
    labels = torch.randint(-1, num_classes + 1, (num_images, num_anchors), device=device)
    divisors = torch.arange(num_images, device=device) * 2.5 + 3.0
    return levels, labels, divisors


def as_levels(x):
    """(N, R, K) with R >= 3 as three levels: as many as `random_case` makes, so that nothing is compiled for anew."""
    return [part.contiguous() for part in x.split([1, 1, x.shape[1] - 2], dim=1)]


def flat(levels):
    """(N, ..., K) each to (N, R, K)."""
    return torch.cat([level.reshape(len(level), -1, level.shape[-1]) for level in levels], dim=1)


def reference_loss(levels, labels, divisors, name):
    """The formula in float64, by autograd."""
    _, reference, options = FAMILY[name]
    losses = reference(flat([level.double() for level in levels]), labels, reduction="none", **options)
    return (losses.sum(dim=(1, 2)) / divisors).sum()


def assert_equals_reference(levels, labels, divisors, name, factor=1.0):
    loss = triton_batch_loss(levels, labels, divisors, **FAMILY[name][0]) * factor
    truth = reference_loss(levels, labels, divisors, name) * factor
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert loss.item() == pytest.approx(truth.item(), rel=2e-6)
    grads = torch.autograd.grad(loss, levels)
    # Of copies in float64, so that the truth is not rounded to the logits' dtype.
    copies = [level.detach().double().requires_grad_() for level in levels]
    truths = torch.autograd.grad(reference_loss(copies, labels, divisors, name) * factor, copies)
    for grad, level, grad_truth in zip(grads, levels, truths, strict=True):
        assert grad.dtype == level.dtype
        assert grad.stride() == level.stride()
        smallest = 2.0**-25 if level.dtype == torch.float16 else 1e-9  # half of what fp16 can tell from 0
        # The interpreter cuts bfloat16 off; a GPU rounds it, as the compiled code below shows.
        in_bfloat16 = 2.0**-7 if IS_INTERPRETED else 2.0**-8
        rounding = {torch.float32: 3e-6, torch.bfloat16: in_bfloat16, torch.float16: 2.0**-11 * 1.01}[level.dtype]
        torch.testing.assert_close(grad.double(), grad_truth, rtol=rounding, atol=smallest)


# What the kernels compute ---------------------------------------------------------------------------------------------


# On a GPU each combination of kind, dtype, K and arrangement is a compilation. Kind and dtype are the arithmetic's, K
# and arrangement the walk's, which do not meet in the kernel; so the one is tested with one of the other.


@pytest.mark.parametrize("name", FAMILY)
def test_equals_the_reference(device, name):
    assert_equals_reference(*random_case(device), name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [1.0, 1 / 3])
@pytest.mark.parametrize("name", KINDS)
def test_half_precision_is_rounded_once_after_every_factor(device, name, factor, dtype):
    assert_equals_reference(*random_case(device, dtype=dtype), name, factor)


@pytest.mark.parametrize("num_classes", [1, 2, 24])  # 1, 2 and 8 classes at a time; 3 and 80 are in other tests
@pytest.mark.parametrize("arrange", [channels_last, channels_first, sliced])
def test_any_number_of_classes(device, num_classes, arrange):
    assert_equals_reference(*random_case(device, num_classes, arrange, num_images=2), "fl 2")


@pytest.mark.parametrize(
    ("arrange", "dtype", "factor"),
    [(channels_last, torch.bfloat16, 1), (channels_last, torch.float32, 3), (channels_first, torch.float32, 3)],
)
def test_few_objects_among_tiles_of_nothing_but_background(device, arrange, dtype, factor):
    # 80 classes are 5 groups of 16, and a tile holds 64 groups: whole anchors in one layout, a group of each of 64 in
    # the other. Objects lie in the first, the last and some middle tile of the first image, at the edges of groups.
    levels, labels, divisors = random_case(device, 80, arrange, dtype, sizes=((13, 11), (2, 3), (1, 1)))
    labels.fill_(80)
    for anchor, label in ((0, 0), (5, 15), (300, 16), (300 + 64, 79), (-1, 64)):
        labels[0, anchor] = label
    labels[:, 100:110] = -1
    # Of the first level's 34,320 logits a program takes 4,096, and 32,768 when it computes the gradients anew.
    assert_equals_reference(levels, labels, divisors, "fl 2", factor)


@pytest.mark.parametrize("arrange", [channels_last, channels_first])
def test_many_blocks_and_empty_levels(device, arrange):
    sizes = ((0, 4), (23, 19), (2, 0), (13, 5), (3, 3), (1, 2), (1, 1), (0, 0))
    assert_equals_reference(*random_case(device, 5, arrange, sizes=sizes), "fl 2")


def test_levels_of_any_number_of_dimensions(device):
    levels = [
        torch.randn(shape, device=device).permute(order).requires_grad_()
        for shape, order in (
            ((2, 3), (0, 1)),  # a single anchor
            ((3, 2, 7), (1, 2, 0)),
            ((3, 2, 2, 3, 2, 4), (2, 4, 3, 5, 1, 0)),  # no two dimensions of it can be joined
        )
    ]
    num_anchors = flat(levels).shape[1]
    labels = torch.randint(-1, 4, (2, num_anchors), device=device)
    assert_equals_reference(levels, labels, torch.tensor([2.0, 5.0], device=device), "fl 2")


def test_a_logit_that_is_several_elements_gets_the_sum_of_their_gradients(device):
    row = torch.randn(1, 1, 3, device=device, requires_grad=True)
    labels, divisors = torch.tensor([[0, 1, 3, -1]] * 2, device=device), torch.ones(2, device=device)
    levels = [row.expand(2, 2, 3), row.expand(2, 1, 3), row.expand(2, 1, 3)]
    grads = []
    for loss in (
        triton_batch_loss(levels, labels, divisors, **FAMILY["fl 2"][0]),
        reference_loss(levels, labels, divisors, "fl 2"),
    ):
        grads.extend(torch.autograd.grad(loss, row))
    torch.testing.assert_close(*grads)


@triton.jit
def elementwise_kernel(z, losses, slopes, scale, shift, kind: tl.constexpr, is_exact: tl.constexpr, size: tl.constexpr):
    here = tl.arange(0, size)
    loss, slope = _loss_and_slope(tl.load(z + here), scale, shift, kind, is_exact)
    tl.store(losses + here, loss)
    tl.store(slopes + here, slope)


def elementwise(z, kind, gamma, shift, is_exact):
    """Loss and slope of each of a power of two logits."""
    kind, _, *numbers = triton_loss._constants(kind, (1, 1), gamma, shift)
    losses, slopes = torch.empty_like(z), torch.empty_like(z)
    options = {"kind": kind, "is_exact": is_exact, "size": len(z), "enable_fp_fusion": False}
    elementwise_kernel[(1,)](z, losses, slopes, *numbers, **options)
    return losses, slopes


def worst_errors(device, kind, gamma, shift, is_exact):
    """The largest error of loss and slope, each with its logit, relative to the float64 value.

    Values below the smallest normal number of float32 count as that. What a GPU flushes to 0 may have been multiplied
    by up to 1 + gamma in a slope.
    """
    flushed = 0.0 if IS_INTERPRETED else (1 + gamma) * SMALLEST_NORMAL
    around = [
        center + sign * 10.0**-k for center in (0.0, math.log(3 / 7), 10.0) for k in range(1, 9) for sign in (-1, 1)
    ]
    z = torch.cat([torch.linspace(-100, 100, 4000), torch.rand(48) * 60 - 30, torch.tensor(around)])
    leaf = torch.cat([z, z.new_zeros(8192 - len(z))])[:, None].double().requires_grad_()
    labels = torch.zeros(len(leaf), dtype=torch.int64)
    truth = EXACT[kind](gamma, shift)(leaf, labels, reduction="none")
    (slope_truth,) = torch.autograd.grad(truth.sum(), leaf)
    found = elementwise(leaf.detach()[:, 0].float().to(device), kind, gamma, shift, is_exact)
    for values, expected in zip(found, (truth.detach()[:, 0], slope_truth[:, 0]), strict=True):
        error = (values.double().cpu() - expected).abs() - flushed
        error /= expected.abs().clamp(min=SMALLEST_NORMAL)
        worst = error.argmax()
        yield error[worst].item(), leaf[worst].item()


EXACT = {
    "cross_entropy": lambda gamma, shift: functools.partial(cross_entropy_loss, alpha=None),
    "focal": lambda gamma, shift: functools.partial(focal_loss, alpha=None, gamma=gamma),
    "focal_star": lambda gamma, shift: functools.partial(focal_loss_star, gamma=gamma, beta=shift),
    "hinge": lambda gamma, shift: functools.partial(hinge_loss, margin=shift),
}


@pytest.mark.parametrize(
    ("kind", "gamma", "shift", "tolerance"),
    [
        ("cross_entropy", 0.0, 0.0, 1e-6),
        *(("focal", gamma, 0.0, 1e-6) for gamma in (0.1, 0.2, 0.5, 1.0, 2.0, 2.5)),
        ("focal", 5.0, 0.0, 2e-6),  # the power magnifies the rounding of log(1 + e) gamma times
        ("focal", 50.0, 0.0, 1e-5),
        *(("focal_star", gamma, beta, 1e-6) for gamma, beta in ((1, 0), (2, 1), (4, 0), (4.3, 0.7), (1e4, -1e5))),
        *(("hinge", 0.0, margin, 1e-6) for margin in (1e-6, 0.3, 0.5, 0.9, 1.0)),
    ],
)
def test_exact_to_a_few_roundings_at_every_logit(device, kind, gamma, shift, tolerance):
    # A slope has two factors exp2 for p, and two more for q^gamma.
    tolerance += 0 if IS_INTERPRETED else 6 * EXP2_ERROR
    for error, z in worst_errors(device, kind, gamma, shift, True):
        assert error < tolerance, z


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_bfloat16_is_computed_to_far_less_than_its_rounding(device, gamma):
    # Their arithmetic is shorter. bfloat16 rounds by up to 2^-9; at |z| = 100, exp(-gamma |z|) is off by gamma * 1e-5.
    for error, z in worst_errors(device, "focal", gamma, 0.0, False):
        assert error < 2.0**-12, z


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILY)
def test_finite_at_every_extreme(device, name, dtype):
    limit = 6e4 if dtype == torch.float16 else 1e30
    x = torch.tensor([-limit, -1000.0, -100.0, -17.5, -1e-8, 0.0, 17.5, 100.0, 1000.0, limit], device=device)
    levels = [level.requires_grad_() for level in as_levels(x.to(dtype)[None, :, None].repeat(3, 1, 3))]
    labels = torch.tensor([[0], [1], [3]], device=device).expand(3, 10)
    loss = triton_batch_loss(levels, labels, torch.ones(3, device=device), **FAMILY[name][0])
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, levels))


@pytest.mark.parametrize("name", FAMILY)
def test_nan_and_infinite_mistakes_show_in_the_loss(device, name):
    for logit, expected in ((math.nan, math.nan), (-math.inf, float(FAMILY[name][0]["shift"]) or math.inf)):
        if name.startswith("fl*"):
            expected = expected if math.isnan(expected) else math.inf
        levels = as_levels(torch.full((1, 3, 3), logit, device=device))  # -inf is right for the other two classes
        labels, divisors = torch.tensor([[0, -1, -1]], device=device), torch.ones(1, device=device)
        options = FAMILY[name][0] | ONES
        assert triton_batch_loss(levels, labels, divisors, **options).item() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KINDS)
def test_ignored_anchors_have_no_loss_and_no_gradient_even_if_not_finite(device, name, dtype):
    bad = torch.tensor([math.inf, -math.inf, math.nan], device=device)
    mistakes = torch.tensor([-0.3, 0.3, 0.3], device=device)
    x = torch.stack((mistakes, bad, bad)).to(dtype)
    levels = [level.requires_grad_() for level in as_levels(x[None])]  # of one anchor each
    labels, divisors = torch.tensor([[0, -1, -1]], device=device), torch.ones(1, device=device)
    loss = triton_batch_loss(levels, labels, divisors, **FAMILY[name][0])
    finite = as_levels(x[:1].expand(3, 3)[None])
    without = triton_batch_loss(finite, labels, divisors, **FAMILY[name][0])
    grads = torch.autograd.grad(loss, levels)
    assert loss.item() == without.item()
    assert [grad.flatten().tolist() for grad in grads[1:]] == [[0.0, 0.0, 0.0]] * 2
    assert (grads[0] != 0).all()


@pytest.mark.parametrize("label", [-1, 3])
def test_an_image_with_nothing_assigned(device, label):
    levels, labels, divisors = random_case(device)
    labels[1] = label
    assert_equals_reference(levels, labels, divisors, "fl 2")


def test_a_gamma_that_float32_takes_for_0_is_cross_entropy(device):
    levels, labels, divisors = random_case(device)
    kinds = FAMILY["fl 2"][0] | {"gamma": 1e-50}, FAMILY["balanced"][0]
    losses = [triton_batch_loss(levels, labels, divisors, **kind).item() for kind in kinds]
    assert losses[0] == losses[1]


def test_labels_out_of_range_count_as_background(device):
    levels, labels, divisors = random_case(device)
    labels.clamp_(min=0)
    wild = labels.masked_fill(labels == 3, 70000).index_fill(1, torch.tensor([0], device=device), -7)
    labels[:, 0] = 3
    losses = [triton_batch_loss(levels, each, divisors, **FAMILY["fl 2"][0]).item() for each in (labels, wild)]
    assert losses[0] == losses[1]


def test_no_anchors_and_no_images_are_zero_loss(device):
    for num_images, sizes in ((2, ((0, 3),)), (0, ((2, 3), (1, 1)))):
        levels, labels, divisors = random_case(device, num_images=num_images, sizes=sizes)
        loss = triton_batch_loss(levels, labels, divisors, **FAMILY["fl 2"][0])
        loss.backward()
        assert loss.item() == 0


def test_the_loss_scale_saves_fp16_gradients_that_would_round_to_zero(device):
    # FL of a negative at x = -8: p^2 (p + 2 (1-p) log(1/(1-p))) * .75 = about 3 p^3 * .75 = 8.5e-11; fp16 ends at 6e-8.
    levels = as_levels(torch.full((1, 3, 3), -8.0, dtype=torch.float16, device=device, requires_grad=True))
    labels, divisors = torch.full((1, 3), 3, device=device), torch.ones(1, device=device)
    loss = triton_batch_loss(levels, labels, divisors, **FAMILY["fl 2"][0])
    plain = torch.cat(torch.autograd.grad(loss, levels, retain_graph=True))
    scaled = torch.cat(torch.autograd.grad(loss * 65536.0, levels))
    assert plain.abs().max().item() == 0
    assert scaled.float().flatten().tolist() == pytest.approx([8.5e-11 * 65536] * 9, rel=0.02)


def test_the_same_input_gives_the_same_bits(device):
    levels, labels, divisors = random_case(device, sizes=((23, 19), (5, 7)))
    losses = [triton_batch_loss(levels, labels, divisors, **FAMILY["fl 2"][0]) for _ in range(2)]
    first, second = (torch.autograd.grad(loss, levels) for loss in losses)
    assert losses[0].item() == losses[1].item()
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_written_in_the_forward_and_again_only_where_they_must_be(device, dtype):
    levels, labels, divisors = random_case(device, dtype=dtype)

    def marked():
        """The loss, after its forward pass has written gradients, and those are 7 now."""
        loss = triton_batch_loss(levels, labels, divisors, **FAMILY["fl 2"][0])
        for grad in loss.grad_fn.grads:
            grad.fill_(7)
        return loss

    expected = torch.autograd.grad(triton_batch_loss(levels, labels, divisors, **FAMILY["fl 2"][0]), levels)
    loss = marked()
    first = torch.autograd.grad(loss, levels, retain_graph=True)
    second = torch.autograd.grad(loss, levels)  # the first are given away, and must not be touched
    assert all((grad == 7).all() for grad in first)
    assert all(torch.equal(*pair) for pair in zip(second, expected, strict=True))
    doubled = torch.autograd.grad(marked() * 2, levels)
    assert all(torch.equal(grad, 2 * other) for grad, other in zip(doubled, expected, strict=True))


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_logits_that_a_hook_saved_with_other_strides(device, factor):
    levels, labels, divisors = random_case(device, arrange=channels_first)
    losses = [triton_batch_loss(levels, labels, divisors, **FAMILY["fl 2"][0])]
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.contiguous(), lambda tensor: tensor):
        losses.append(triton_batch_loss(levels, labels, divisors, **FAMILY["fl 2"][0]))
    expected, found = (torch.autograd.grad(loss * factor, levels) for loss in losses)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_nothing_of_the_logits_size_is_kept_for_the_backward_but_the_gradient(device):
    levels, labels, divisors = random_case(device)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        triton_batch_loss(levels, labels, divisors, **FAMILY["fl 2"][0])
    given = {tensor.data_ptr() for tensor in (*levels, labels, divisors)}
    assert {tensor.data_ptr() for tensor in kept} <= given


def test_second_derivative_is_refused(device):
    for dtype in DTYPES:
        levels, labels, divisors = random_case(device, dtype=dtype)
        loss = triton_batch_loss(levels, labels, divisors, **FAMILY["fl 2"][0])
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(loss, levels, create_graph=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": "focl"}, ValueError, "kind='focl' is not one of 'cross_entropy', 'focal', 'focal_star', 'hinge'"),
        ({"levels": []}, ValueError, r"not \[\]"),
        ({"levels": [torch.zeros(2, 4, 0)]}, ValueError, r"K >= 1 classes, not \[\(2, 4, 0\)\]"),
        ({"levels": [torch.zeros(2, 4, 3), torch.zeros(2, 4, 2)]}, ValueError, r"\(2, 4, 2\)"),
        ({"levels": [torch.zeros(2, 5, 3)]}, ValueError, r"labels \(2, 4\)"),
        ({"divisors": torch.ones(1)}, ValueError, r"divisors \(1,\)"),
        ({"divisors": torch.ones(2, dtype=torch.float64)}, TypeError, "float64"),
        ({"labels": torch.zeros(2, 4)}, TypeError, "int64"),
        ({"levels": [torch.zeros(2, 4, 3).double()]}, TypeError, "float64"),
        ({"levels": [torch.zeros(2, 2, 3), torch.zeros(2, 2, 3).half()]}, TypeError, "torch.float16, torch.float32"),
        (
            {"levels": [torch.empty_strided((2, 4, 3), (1, 2**30, 1), device="meta")]},
            ValueError,
            "spans 3221225475 elements",
        ),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {
        "levels": [torch.zeros(2, 4, 3)],
        "labels": torch.zeros(2, 4, dtype=torch.int64),
        "divisors": torch.ones(2),
        "kind": "focal",
    } | change
    with pytest.raises(error, match=message):
        triton_batch_loss(**arguments, weights=(1, 1), gamma=2, shift=0)


def test_why_the_kernels_cannot_run_is_said(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_missing(torch.device("cpu")) is None
    monkeypatch.delenv("TRITON_INTERPRET")
    assert triton_missing(torch.device("cpu")) == "Triton's kernels run on a GPU, not on cpu"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert triton_missing(torch.device("cuda")) == "Triton is not installed"


def test_the_module_needs_no_triton_before_the_first_launch():
    code = "import sys, focal_det.losses.triton_loss; sys.exit('focal_det.losses.triton_kernels' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# The layout and the compiler ------------------------------------------------------------------------------------------


def layout_of(levels, num_tiles=4):
    return triton_loss._layout(triton_loss._shapes(levels), num_tiles)


def test_levels_as_detectors_make_them_are_walked_in_the_order_of_memory():
    last, _, _ = random_case("cpu", 80)
    first, _, _ = random_case("cpu", 80, channels_first)
    walk = {"num_classes": 80, "group": 16, "tile_size": 1024}
    assert layout_of(last).options == walk | {"run": 1, "is_dense": True}
    assert layout_of(first).options == walk | {"run": 64, "is_dense": False}
    assert len(layout_of(first).numbers[-1]) == 2  # height and width are one


def test_programs_cover_every_level():
    # 105, 18 and 3 anchors; a tile holds 1024 / 80 = 12.8 anchors, a program of 4 tiles 51.2, one of 32 tiles 409.6.
    levels, _, _ = random_case("cpu", 80)
    assert layout_of(levels).num_programs == 3 + 1 + 1
    assert layout_of(levels, 32).num_programs == 1 + 1 + 1
    first, _, _ = random_case("cpu", 80, channels_first)
    assert layout_of(first).num_programs == 3 + 2 + 2  # 128, 64 and 64 anchors of 80 classes


def leaves(numbers):
    return [numbers] if isinstance(numbers, int) else [leaf for number in numbers for leaf in leaves(number)]


def test_no_number_of_a_layout_is_one_that_triton_compiles_anew_for():
    for side in range(1, 40):
        levels, _, _ = random_case("cpu", 1, channels_first, sizes=((side, 16), (1, 1)))
        assert all(number % 2 == 1 and number > 1 for number in leaves(layout_of(levels).numbers))


@pytest.fixture
def kernel_instructions(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import kernel_instructions

    yield kernel_instructions
    del sys.modules["kernel_instructions"]


def step(arrange, dtype, name):
    levels, labels, divisors = random_case("cpu", 80, arrange, dtype)
    triton_batch_loss(levels, labels, divisors, **FAMILY[name][0]).backward()


def test_one_pass_where_no_loss_scale_follows_and_no_gradients_where_none_are_asked_for(kernel_instructions):
    for dtype, expected in ((torch.bfloat16, "forward"), (torch.float32, "forward"), (torch.float16, "loss")):
        launches = kernel_instructions.recorded(lambda dtype=dtype: step(channels_last, dtype, "fl 2"))
        assert [launch.name for launch in launches] == [expected, "gradients"]
    levels, labels, divisors = random_case("cpu")
    with torch.no_grad():
        launches = kernel_instructions.recorded(lambda: triton_batch_loss(levels, labels, divisors, **FAMILY["ce"][0]))
    assert [launch.name for launch in launches] == ["loss"]


def test_a_launch_compiles_to_one_loop_whose_instructions_can_be_counted(monkeypatch, tmp_path, kernel_instructions):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    forward = kernel_instructions.recorded(lambda: step(channels_last, torch.bfloat16, "fl 2"))[0]
    background, with_object = kernel_instructions.a_logit(forward, kernel_instructions.compiled(forward, 90))
    assert 20 < background < with_object < 60  # 37 and 42 with Triton 3.9


# How the walk is compiled does not depend on the capability.
@pytest.mark.parametrize(
    ("capability", "arrange"), [(80, channels_last), (90, channels_last), (90, channels_first), (90, sliced)]
)
def test_every_variant_compiles_and_spills_no_register(monkeypatch, tmp_path, kernel_instructions, capability, arrange):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name in KINDS:
        for dtype in DTYPES if name == "fl 2" else [torch.bfloat16]:
            for launch in kernel_instructions.recorded(lambda dtype=dtype, name=name: step(arrange, dtype, name)):
                if launch.name == "gradients" and name != "fl 2":
                    continue  # a part of the forward's code
                code = kernel_instructions.compiled(launch, capability)
                used = kernel_instructions.usage(code)
                assert (used.stack, used.local) == (0, 0)
                assert used.registers <= 128  # of 65,536: four programs of 128 threads at a time at the least
                ptx = code.asm["ptx"]
                assert ".f64" not in ptx
                assert ptx.count("div.full") <= 3  # of a program or a tile; none of a logit
                if arrange is channels_last:  # 16 bytes at a time
                    assert re.search(r"ld\.global\S*\.v4\.b32", ptx)
                if launch.name != "loss" and dtype != torch.float32:
                    assert "cvt.rn.bf16" in ptx if dtype == torch.bfloat16 else "cvt.rn.f16" in ptx


@pytest.mark.skipif(IS_INTERPRETED or not HAS_GPU, reason="the host cannot wait for a GPU that is not there")
@pytest.mark.parametrize("name", KINDS)
def test_the_host_does_not_wait_for_the_gpu_and_compiles_once_for_all_shapes(monkeypatch, name):
    compilations = []
    for height in range(3, 20):
        levels, labels, divisors = random_case(torch.device("cuda"), 80, sizes=((height, 16), (height, 1), (1, 1)))
        if height == 5:  # the first ones compile
            monkeypatch.setattr(triton.knobs.compilation, "listener", lambda **event: compilations.append(event))
        torch.cuda.set_sync_debug_mode("error")
        try:
            triton_batch_loss(levels, labels, divisors, **FAMILY[name][0]).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert not compilations


@pytest.mark.skipif(IS_INTERPRETED or not HAS_GPU, reason="too large to wait for without a GPU")
def test_a_batch_of_more_elements_than_32_bits_count():
    level = torch.zeros(3, 100_000, 8_000, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    labels = torch.full((3, 100_000), 8_000, device="cuda")
    labels[:2] = -1
    loss = triton_batch_loss([level], labels, torch.ones(3, device="cuda"), **FAMILY["ce"][0])
    loss.backward()
    assert loss.item() == pytest.approx(8e8 * math.log(2), rel=1e-5)
    assert not level.grad[:2].any()
    assert (level.grad[2] == 0.5).all()
