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


def flat(levels):
    """(N, ..., K) each to (N, R, K)."""
    return torch.cat([level.reshape(len(level), -1, level.shape[-1]) for level in levels], dim=1)


def reference_loss(levels, labels, divisors, name):
    """The formula in float64, by autograd."""
    _, reference, options = FAMILY[name]
    losses = reference(flat([level.double() for level in levels]), labels, reduction="none", **options)
    return (losses.sum(dim=(1, 2)) / divisors).sum()


def assert_equals_reference(levels, labels, divisors, name):
    loss = triton_batch_loss(levels, labels, divisors, **FAMILY[name][0])
    truth = reference_loss(levels, labels, divisors, name)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert loss.item() == pytest.approx(truth.item(), rel=2e-6)
    grads = torch.autograd.grad(loss, levels)
    # Of copies in float64, so that the truth is not rounded to the logits' dtype.
    copies = [level.detach().double().requires_grad_() for level in levels]
    truths = torch.autograd.grad(reference_loss(copies, labels, divisors, name), copies)
    for grad, level, grad_truth in zip(grads, levels, truths, strict=True):
        assert grad.dtype == level.dtype
        assert grad.stride() == level.stride()
        smallest = 2.0**-25 if level.dtype == torch.float16 else 1e-9  # half of what fp16 can tell from 0
        # The interpreter cuts bfloat16 off; a GPU rounds it, as the compiled code below shows.
        in_bfloat16 = 2.0**-7 if IS_INTERPRETED else 2.0**-8
        rounding = {torch.float32: 3e-6, torch.bfloat16: in_bfloat16, torch.float16: 2.0**-11 * 1.01}[level.dtype]
        torch.testing.assert_close(grad.double(), grad_truth, rtol=rounding, atol=smallest)


# What the kernels compute ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrange", [channels_last, channels_first, sliced])
@pytest.mark.parametrize("name", FAMILY)
def test_equals_the_reference(device, name, arrange):
    assert_equals_reference(*random_case(device, arrange=arrange), name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arrange", [channels_last, channels_first])
@pytest.mark.parametrize("name", KINDS)
def test_half_precision_is_rounded_once(device, name, arrange, dtype):
    assert_equals_reference(*random_case(device, arrange=arrange, dtype=dtype), name)


@pytest.mark.parametrize("num_classes", [1, 2, 80])
@pytest.mark.parametrize("arrange", [channels_last, channels_first, sliced])
def test_any_number_of_classes(device, num_classes, arrange):
    assert_equals_reference(*random_case(device, num_classes, arrange, num_images=1), "fl 2")


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
    grads = []
    for loss in (
        triton_batch_loss([row.expand(2, 4, 3)], labels, divisors, **FAMILY["fl 2"][0]),
        reference_loss([row.expand(2, 4, 3)], labels, divisors, "fl 2"),
    ):
        grads.extend(torch.autograd.grad(loss, row))
    torch.testing.assert_close(*grads)


@triton.jit
def elementwise_kernel(z, losses, slopes, scale, shift, kind: tl.constexpr, size: tl.constexpr):
    here = tl.arange(0, size)
    loss, slope = _loss_and_slope(tl.load(z + here), scale, shift, kind)
    tl.store(losses + here, loss)
    tl.store(slopes + here, slope)


def elementwise(z, options):
    """Loss and slope of each of a power of two logits."""
    kind, _, scale, shift = triton_loss._constants(**options)
    losses, slopes = torch.empty_like(z), torch.empty_like(z)
    elementwise_kernel[(1,)](z, losses, slopes, scale, shift, kind=kind, size=len(z), enable_fp_fusion=False)
    return losses, slopes


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
    # Against the loss in float64, relative to that or to the smallest normal number of float32. What a GPU flushes to 0
    # may have been multiplied by up to 1 + gamma in a slope.
    flushed = 0.0 if IS_INTERPRETED else (1 + gamma) * SMALLEST_NORMAL
    around = [
        center + sign * 10.0**-k for center in (0.0, math.log(3 / 7), 10.0) for k in range(1, 9) for sign in (-1, 1)
    ]
    z = torch.cat([torch.linspace(-100, 100, 4000), torch.rand(48) * 60 - 30, torch.tensor(around)])
    leaf = torch.cat([z, z.new_zeros(8192 - len(z))])[:, None].double().requires_grad_()
    labels = torch.zeros(len(leaf), dtype=torch.int64)
    truth = EXACT[kind](gamma, shift)(leaf, labels, reduction="none")
    (slope_truth,) = torch.autograd.grad(truth.sum(), leaf)
    found = elementwise(
        leaf.detach()[:, 0].float().to(device), {"kind": kind, "weights": (1, 1), "gamma": gamma, "shift": shift}
    )
    for values, expected in zip(found, (truth.detach(), slope_truth), strict=True):
        expected = expected[:, 0]
        error = (values.double().cpu() - expected).abs() - flushed
        error /= expected.abs().clamp(min=SMALLEST_NORMAL)
        worst = error.argmax()
        assert error[worst] < tolerance, (leaf[worst].item(), values[worst].item(), expected[worst].item())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILY)
def test_finite_at_every_extreme(device, name, dtype):
    limit = 6e4 if dtype == torch.float16 else 1e30
    x = torch.tensor([-limit, -1000.0, -100.0, -17.5, -1e-8, 0.0, 17.5, 100.0, 1000.0, limit], device=device)
    level = x.to(dtype)[None, :, None].repeat(3, 1, 2).requires_grad_()
    labels = torch.tensor([[0], [1], [2]], device=device).expand(3, 10)
    loss = triton_batch_loss([level], labels, torch.ones(3, device=device), **FAMILY[name][0])
    (grad,) = torch.autograd.grad(loss, level)
    assert loss.isfinite()
    assert grad.isfinite().all()


@pytest.mark.parametrize("name", FAMILY)
def test_nan_and_infinite_mistakes_show_in_the_loss(device, name):
    for logit, expected in ((math.nan, math.nan), (-math.inf, float(FAMILY[name][0]["shift"]) or math.inf)):
        if name.startswith("fl*"):
            expected = expected if math.isnan(expected) else math.inf
        level = torch.tensor([[[logit]]], device=device)
        labels, divisors = torch.zeros(1, 1, dtype=torch.int64, device=device), torch.ones(1, device=device)
        options = FAMILY[name][0] | ONES
        assert triton_batch_loss([level], labels, divisors, **options).item() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("name", KINDS)
def test_ignored_anchors_have_no_loss_and_no_gradient_even_if_not_finite(device, name):
    bad = torch.tensor([math.inf, -math.inf, math.nan], device=device)
    mistakes = torch.tensor([-0.3, 0.3, 0.3], device=device)
    level = torch.stack((mistakes, bad))[None].requires_grad_()  # (1, 2, 3)
    labels, divisors = torch.tensor([[0, -1]], device=device), torch.ones(1, device=device)
    loss = triton_batch_loss([level], labels, divisors, **FAMILY[name][0])
    alone = triton_batch_loss([level[:, :1]], labels[:, :1], divisors, **FAMILY[name][0])
    (grad,) = torch.autograd.grad(loss, level)
    assert loss.item() == alone.item()
    assert grad[0, 1].tolist() == [0.0, 0.0, 0.0]
    assert (grad[0, 0] != 0).all()


@pytest.mark.parametrize("label", [-1, 3])
def test_an_image_with_nothing_assigned(device, label):
    levels, labels, divisors = random_case(device)
    labels[1] = label
    assert_equals_reference(levels, labels, divisors, "fl 2")


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
    level = torch.full((1, 4, 1), -8.0, dtype=torch.float16, device=device, requires_grad=True)
    labels, divisors = torch.ones(1, 4, dtype=torch.int64, device=device), torch.ones(1, device=device)
    loss = triton_batch_loss([level], labels, divisors, **FAMILY["fl 2"][0])
    (plain,) = torch.autograd.grad(loss, level, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss * 65536.0, level)
    assert plain.abs().max().item() == 0
    assert scaled.float().flatten().tolist() == pytest.approx([8.5e-11 * 65536] * 4, rel=0.02)


def test_the_same_input_gives_the_same_bits(device):
    levels, labels, divisors = random_case(device, sizes=((23, 19), (5, 7)))
    losses = [triton_batch_loss(levels, labels, divisors, **FAMILY["fl 2"][0]) for _ in range(2)]
    first, second = (torch.autograd.grad(loss, levels) for loss in losses)
    assert losses[0].item() == losses[1].item()
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_nothing_of_the_logits_size_is_kept_for_the_backward(device):
    levels, labels, divisors = random_case(device)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        triton_batch_loss(levels, labels, divisors, **FAMILY["fl 2"][0])
    given = {tensor.data_ptr() for tensor in (*levels, labels, divisors)}
    assert {tensor.data_ptr() for tensor in kept} <= given


def test_second_derivative_is_refused(device):
    levels, labels, divisors = random_case(device)
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


def layout_of(levels):
    return triton_loss._layout(tuple((level.shape, level.stride()) for level in levels))


def test_levels_as_detectors_make_them_are_walked_in_the_order_of_memory():
    last, _, _ = random_case("cpu", 80)
    first, _, _ = random_case("cpu", 80, channels_first)
    assert layout_of(last).options == {"num_classes": 80, "run": 1, "is_dense": True}
    assert layout_of(first).options == {"num_classes": 80, "run": 64, "is_dense": False}
    assert len(layout_of(first).numbers[-1]) == 2  # height and width are one


def leaves(numbers):
    return [numbers] if isinstance(numbers, int) else [leaf for number in numbers for leaf in leaves(number)]


def test_no_number_of_a_layout_is_one_that_triton_compiles_anew_for():
    for side in range(1, 40):
        levels, _, _ = random_case("cpu", 1, channels_first, sizes=((side, 16), (1, 1)))
        assert all(number % 2 == 1 and number > 1 for number in leaves(layout_of(levels).numbers))


def signature_of(value, place, attributes):
    """The types that Triton gives arguments, and in `attributes` that tensors are aligned."""
    if isinstance(value, torch.Tensor):
        attributes[place] = [["tt.divisibility", 16]]
        return (
            "*"
            + {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64"}[value.dtype]
        )
    if isinstance(value, tuple):
        return tuple(signature_of(each, (*place, i), attributes) for i, each in enumerate(value))
    return "fp32" if isinstance(value, float) else "i32"


def compiled(kernel, arguments, options, capability):
    from triton.backends.compiler import GPUTarget

    attributes = {}
    signature = {
        name: signature_of(value, (i,), attributes)
        for i, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False))
    }
    constants = {name: options.pop(name) for name in kernel.arg_names[len(arguments) :]}
    signature |= dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def memory_beside_registers(kernel, path):
    """Bytes of stack and local memory of a thread, as the machine code says; spilled registers are there."""
    path.write_bytes(kernel.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [int(number) for number in re.findall(r"(?:STACK|LOCAL):(\d+)", usage)]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("arrange", [channels_last, channels_first, sliced])
def test_every_variant_compiles_and_spills_no_register(monkeypatch, tmp_path, capability, arrange):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launches = []

    class Recorded:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *arguments, **options: launches.append((self.kernel, arguments, options))

    for name in ("loss_kernel", "gradient_kernel"):
        monkeypatch.setattr(triton_kernels, name, Recorded(getattr(triton_kernels, name)))
    for name in KINDS:
        for dtype in DTYPES if name == "fl 2" else [torch.bfloat16]:
            levels, labels, divisors = random_case("cpu", 80, arrange, dtype)
            triton_batch_loss(levels, labels, divisors, **FAMILY[name][0]).backward()
    assert len(launches) == 2 * (len(KINDS) + 2)
    for kernel, arguments, options in launches:
        code = compiled(kernel, arguments, options, capability)
        assert memory_beside_registers(code, tmp_path / "kernel.cubin") == [0, 0]
        ptx = code.asm["ptx"]
        assert ".f64" not in ptx
        dtype = arguments[0][0].dtype
        if arrange is channels_last:  # 16 bytes at a time
            assert re.search(r"ld\.global\S*\.v4\.b32", ptx)
        if kernel.arg_names[1] == "grads" and dtype != torch.float32:
            assert "cvt.rn.bf16" in ptx if dtype == torch.bfloat16 else "cvt.rn.f16" in ptx


@pytest.mark.skipif(IS_INTERPRETED or not HAS_GPU, reason="the host cannot wait for a GPU that is not there")
@pytest.mark.parametrize("name", FAMILY)
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
