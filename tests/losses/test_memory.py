"""Memory for large tensors: what the system was told about it."""

import mmap
from pathlib import Path

import pytest
import torch

from focal_det.losses import memory
from focal_det.losses.focal import focal_formula
from focal_det.losses.fused import batch_loss
from focal_det.losses.memory import empty_in_huge_pages

SMAPS = Path("/proc/self/smaps")
MIB = 1 << 20


def flags_at(address):
    """Return the kernel's flags of the mapping in which an address lies; "hg" is advice to use huge pages."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            start, end = (int(x, 16) for x in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            return rest
    raise AssertionError(f"no mapping holds {address:#x}")


needs_flags = pytest.mark.skipif(
    not (hasattr(mmap, "MADV_HUGEPAGE") and SMAPS.is_file() and Path("/sys/kernel/mm/transparent_hugepage").is_dir()),
    reason="a Linux with huge pages tells them",
)


@needs_flags
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_tensor_is_advised_to_its_end(dtype):
    tensor = empty_in_huge_pages((80, MIB), dtype)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == ((80, MIB), dtype, True)
    for place in (0, tensor.nbytes // 2, tensor.nbytes - 1):
        # the first page may begin before the tensor, and is then left as it was
        assert "hg" in flags_at(max(tensor.data_ptr() + place, tensor.data_ptr() + mmap.PAGESIZE))


def test_the_memory_is_the_processors_whatever_the_default_device():
    logits, labels = torch.zeros(1, 2, 3, requires_grad=True), torch.full((1, 2), 3)
    with torch.device("meta"):
        loss = batch_loss([logits], labels, torch.ones(1, device="cpu"), focal_formula(0.25, 2.0))
        (grad,) = torch.autograd.grad(loss, logits)
    assert grad.device.type == "cpu"


@needs_flags
def test_the_gradient_of_the_class_loss_lies_in_huge_pages():
    logits = torch.zeros(1, 80, 1 << 18, requires_grad=True) * 1  # 80 MiB, not a leaf: gets the gradient that was kept
    labels = torch.full((1, 80), 1 << 18)
    (grad,) = torch.autograd.grad(batch_loss([logits], labels, torch.ones(1), focal_formula(0.25, 2.0)), logits)
    assert "hg" in flags_at(grad.data_ptr() + 40 * MIB)
    assert grad[0, 0, 0].item() == pytest.approx(0.75 * 0.25 * (0.5 + 0.6931472), rel=1e-6)  # q^2 (q + 2 p s)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="a system without advice on huge pages")
@pytest.mark.parametrize(("size", "advised"), [(2 * MIB, 1), (2 * MIB - 1, 0)])
def test_advice_is_of_whole_pages_within_the_tensor_and_not_for_small_ones(monkeypatch, size, advised):
    calls = []
    monkeypatch.setattr(memory, "_madvise", lambda: lambda *call: calls.append(call))
    tensor = empty_in_huge_pages((size,), torch.uint8)
    assert len(calls) == advised
    for first, length, advice in calls:
        assert (first % mmap.PAGESIZE, advice) == (0, mmap.MADV_HUGEPAGE)
        assert tensor.data_ptr() <= first < tensor.data_ptr() + mmap.PAGESIZE
        assert first + length == tensor.data_ptr() + size
