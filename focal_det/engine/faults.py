"""What went wrong in a training, in a line that says what helps."""

from __future__ import annotations

import torch
import torch.distributed as dist

_MEMORY_WORDS = ("out of memory", "can't allocate memory", "DefaultCPUAllocator")


def what_helps(error: BaseException) -> str:
    """What to do about a fault of a running training or evaluation; empty if that is not known."""
    if isinstance(error, FloatingPointError):
        return (
            "The training diverged. What helps: a lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS, "
            "SOLVER.CLIP_GRADIENTS.ENABLED True; and a look at the boxes, with --preflight-only"
        )
    of_memory = isinstance(error, RuntimeError) and any(word in str(error) for word in _MEMORY_WORDS)
    if of_memory or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return (
            "What helps: fewer pictures at once (SOLVER.IMS_PER_BATCH, with --scale-lr), smaller ones "
            "(INPUT.MIN_SIZE_TRAIN, INPUT.MAX_SIZE_TRAIN), SOLVER.AMP.ENABLED True"
        )
    return ""


def is_lost_connection(error: BaseException) -> bool:
    """Whether it says no more than that another rank went away; PyTorch says so in its own words."""
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
