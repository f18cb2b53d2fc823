"""Do one training step, in float32, float16 or bfloat16, and read its losses from a GPU only when they are due."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import Tensor

from ..divergence.diverged_folder import RESUME_HINT, diverged_iterations, note_divergence
from ..modeling.autocast import keep_top_in_float32

WRITE_PERIOD = 20  # iterations between two lines of the log, Detectron2's default


def make_step(
    cfg: CfgNode,
    model: torch.nn.Module,
    data_loader: Any,
    optimizer: torch.optim.Optimizer,
    is_due: Callable[[int], bool],
) -> SimpleTrainer:
    """Build what does the training steps; on a GPU it does not wait for their losses."""
    step = step_class(cfg)
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return step(model, data_loader, optimizer)
    deferred = type(f"Deferred{step.__name__}", (DeferredMetrics, step), {})
    return deferred(model, data_loader, optimizer, is_due=is_due, note=partial(note_divergence, cfg.OUTPUT_DIR))


def step_class(cfg: CfgNode) -> type[SimpleTrainer]:
    """Return the class that does a training step as SOLVER.AMP says."""
    if not cfg.SOLVER.AMP.ENABLED:
        return SimpleTrainer
    return BFloat16Trainer if cfg.SOLVER.AMP.DTYPE == "bfloat16" else AMPTrainer


def when_due(cfg: CfgNode) -> Callable[[int], bool]:
    """Return a function that says whether an iteration's losses and gradients are looked at, alike on all ranks.

    On a CPU they always are. On a GPU, which has to be waited for, they are before they are logged, before a checkpoint
    could save what diverged, and at each step where the run has diverged before. To be called by all ranks at once.
    """
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return lambda _: True
    periods = (WRITE_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER)
    diverged = diverged_iterations(cfg.OUTPUT_DIR, WRITE_PERIOD)
    return lambda iteration: (
        iteration in diverged or any(period > 0 and (iteration + 1) % period == 0 for period in periods)
    )


def lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded state, such as momentum, its parameter's strides, which the saved run may not have had.

    PyTorch's fused kernels take both in the order of memory.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class BFloat16Trainer(SimpleTrainer):
    """`SimpleTrainer` with the forward pass under autocast; bfloat16 has float32's range, so no loss is scaled."""

    def __init__(self, model: torch.nn.Module, data_loader: Any, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(model, data_loader, optimizer)
        keep_top_in_float32(model)

    def run_step(self) -> None:
        """Do one step: data, losses, gradients, update."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, dtype=torch.bfloat16):
            losses = self.model(data)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()


class DeferredMetrics:
    """Mix-in before a `SimpleTrainer`: every step's losses stay on the device until `is_due` of an iteration.

    Then they are written, and checked to be finite, one step after the other, as `SimpleTrainer` does. `note` is called
    with the first iteration whose losses are not finite.
    """

    iter: int

    def __init__(self, *args: Any, is_due: Callable[[int], bool], note: Callable[[int], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self._is_due, self._note = is_due, note
        self._pending: list[tuple[int, float, dict[str, Tensor]]] = []

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        losses = {prefix + name: loss.detach() for name, loss in loss_dict.items()}
        self._pending.append((self.iter if iter is None else iter, data_time, losses))
        if self._is_due(self.iter):
            self.flush_metrics()

    def flush_metrics(self) -> None:
        """Write the losses that are pending; raise FloatingPointError with the iteration of one that is not finite."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        flat = torch.stack([loss.reshape(()) for _, _, losses in pending for loss in losses.values()]).cpu()  # one wait
        for iteration, data_time, losses in pending:
            values, flat = flat.split([len(losses), len(flat) - len(losses)])
            try:
                SimpleTrainer.write_metrics(dict(zip(losses, values, strict=True)), data_time, iteration)
            except FloatingPointError as error:
                self._note(iteration)
                raise FloatingPointError(f"{error}; {RESUME_HINT}") from None
