"""Which class does a training step, and when its numbers are looked at."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import nn

from .bfloat16 import BFloat16Trainer
from .deferred_metrics import DeferredMetrics
from .suspects import note_suspect, suspects

# Iterations between two lines of the log, Detectron2's default.
WRITE_PERIOD = 20


def step_of(cfg: CfgNode) -> type[SimpleTrainer]:
    """The class that does a training step as SOLVER.AMP says."""
    if not cfg.SOLVER.AMP.ENABLED:
        return SimpleTrainer
    return BFloat16Trainer if cfg.SOLVER.AMP.DTYPE == "bfloat16" else AMPTrainer


def make_step(
    cfg: CfgNode,
    model: torch.nn.Module,
    data_loader: Any,
    optimizer: torch.optim.Optimizer,
    is_due: Callable[[int], bool],
) -> SimpleTrainer:
    """What does the training steps; on a GPU without waiting for their losses."""
    step = step_of(cfg)
    if not is_on_gpu(cfg):
        return step(model, data_loader, optimizer)
    deferred = type(f"Deferred{step.__name__}", (DeferredMetrics, step), {})
    return deferred(model, data_loader, optimizer, is_due=is_due, note=partial(note_suspect, cfg.OUTPUT_DIR))


def is_on_gpu(cfg: CfgNode) -> bool:
    """Whether it trains on GPUs."""
    return bool(cfg.MODEL.DEVICE.startswith("cuda"))


def when_due(cfg: CfgNode) -> Callable[[int], bool]:
    """Of an iteration, whether losses and gradients are looked at, on all ranks; of a processor they always are.

    Of a GPU, which is waited for: before they are logged or a checkpoint could save what diverged, and at each step
    where the run has diverged before.
    """
    if not is_on_gpu(cfg):
        return lambda _: True
    periods = (WRITE_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER)
    again = suspects(cfg.OUTPUT_DIR, WRITE_PERIOD)
    return lambda iteration: (
        iteration in again or any(period > 0 and (iteration + 1) % period == 0 for period in periods)
    )


def lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give what was loaded, such as momentum, its parameter's strides, which the saved run may not have had.

    PyTorch's fused kernels take both in the order of memory.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without its wrapper for several processes."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
