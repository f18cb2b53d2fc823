"""What an exception of a training means, in a line, and what helps."""

from __future__ import annotations

import traceback

import torch.distributed as dist

from ..errors import InputError, TrainingError, is_out_of_memory


def failure_message(error: BaseException) -> str:
    """Return what went wrong, in one line."""
    is_message = isinstance(error, InputError | TrainingError)
    message = str(error) if is_message else f"{type(error).__name__}: {error}"
    message = " ".join(message.split()).removesuffix(":")
    return f"a worker of its loader was killed ({message})" if is_killed_worker(error) else message


def what_helps(error: BaseException) -> str:
    """Return what to do about a fault of a running training or evaluation; empty if that is not known."""
    if is_killed_worker(error):
        why = "The system does that when memory runs out (see dmesg)"
        return f"{why}. What helps: fewer DATALOADER.NUM_WORKERS, or more memory for the job"
    if isinstance(error, FloatingPointError):
        return (
            "The training diverged. What helps: a lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS, "
            "SOLVER.CLIP_GRADIENTS.ENABLED True; and a look at the boxes, with --preflight-only"
        )
    if is_out_of_memory(error):
        return (
            "What helps: fewer images at once (SOLVER.IMS_PER_BATCH, with --scale-lr), smaller ones "
            "(INPUT.MIN_SIZE_TRAIN, INPUT.MAX_SIZE_TRAIN), SOLVER.AMP.ENABLED True"
        )
    return ""


def is_lost_connection(error: BaseException) -> bool:
    """Whether the error only means that another rank went away: then that rank, or its watchers, know why."""
    if is_killed_worker(error):
        return False
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and any(text in str(error) for text in ("gloo", "NCCL", "Connection"))


def is_killed_worker(error: BaseException) -> bool:
    """Whether a loader worker of this rank is gone, which means that something has killed it.

    PyTorch says so; or, if the worker was handing images over, the connection to it is lost. That counts where the
    loader fetches from its workers, not where it reads images itself or raises again what a worker raised.
    """
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return "is killed by signal" in str(error) or "exited unexpectedly" in str(error)
    frames = traceback.walk_tb(error.__traceback__) if isinstance(error, ConnectionError | EOFError) else ()
    return any(frame.f_code.co_name == "_try_get_data" for frame, _ in frames)
