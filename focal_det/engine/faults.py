"""What went wrong in a training, in a line that says what helps."""

from __future__ import annotations

import traceback

import torch
import torch.distributed as dist

from ..errors import TrainingError

_MEMORY_WORDS = ("out of memory", "can't allocate memory", "DefaultCPUAllocator")


def told(error: BaseException) -> str:
    """What went wrong, in one line."""
    what = str(error) if isinstance(error, TrainingError) else f"{type(error).__name__}: {error}"
    what = " ".join(what.split()).removesuffix(":")
    return f"a worker of its loader was killed ({what})" if is_killed_worker(error) else what


def what_helps(error: BaseException) -> str:
    """What to do about a fault of a running training or evaluation; empty if that is not known."""
    if is_killed_worker(error):
        return (
            "The system does that when memory runs out (see dmesg). What helps: fewer DATALOADER.NUM_WORKERS, or more "
            "memory for the job"
        )
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
    if is_killed_worker(error):
        return False
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and any(word in str(error) for word in ("gloo", "NCCL", "Connection"))


def is_killed_worker(error: BaseException) -> bool:
    """Whether a process of a loader of this rank is gone, so that something has killed it.

    PyTorch says so, or that the connection to it is lost if it was just giving pictures away: where the loader fetches
    them from its workers, not where it reads them itself or raises anew what a worker has met.
    """
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return "is killed by signal" in str(error) or "exited unexpectedly" in str(error)
    frames = traceback.walk_tb(error.__traceback__) if isinstance(error, ConnectionError | EOFError) else ()
    return any(frame.f_code.co_name == "_try_get_data" for frame, _ in frames)
