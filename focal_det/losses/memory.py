"""Memory of large tensors on a processor without thousands of page faults, each of which takes a microsecond or two.

A step writes a gradient as large as the logits into fresh memory: 21,000 pages of 4 KiB for two images of 800x1216 px,
which took a quarter of the class loss's time.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_HUGE_PAGE = 2 << 20


def empty_in_huge_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return `torch.empty` on the CPU, its memory in pages of 2 MiB where the system has such to give (madvise(2))."""
    tensor = torch.empty(shape, dtype=dtype, device="cpu")  # whatever `torch.set_default_device` says
    advise = _madvise()
    if advise is not None and tensor.nbytes >= _HUGE_PAGE:
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # an address between pages is refused
        advise(first, tensor.data_ptr() + tensor.nbytes - first, mmap.MADV_HUGEPAGE)
    return tensor


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """Return the system's function of address, bytes and advice; None where it has no advice on huge pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


@functools.cache
def keep_freed_memory() -> None:
    """Make glibc keep the memory of a block's temporaries for the next block.

    It gives freed memory back to the system, and the next block has every page mapped anew, which takes four times as
    long as the focal loss itself. Once a piece of up to 32 MiB was freed, it keeps twice as much (mallopt(3)).
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")
