"""Do one training step, in float32, float16 or bfloat16, and read and gather its losses only when they are due."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer, create_ddp_model
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..distributed.accumulation import losses_and_gradients
from ..divergence.diverged_folder import RESUME_HINT, diverged_iterations, note_divergence
from ..modeling.convolutions import keep_top_in_float32

WRITE_PERIOD = 20  # iterations between two lines of the log, Detectron2's default


def in_parallel(model: torch.nn.Module) -> torch.nn.Module:
    """Wrap a model whose gradients several processes average; alone it stays as it is.

    Without `device_ids`, with which the wrapper would copy each image to the GPU itself, and the host wait for it; the
    model copies them without. Buffers are rank 0's at the start, and each rank's own from then on.
    """
    options = {"device_ids": None, "gradient_as_bucket_view": True}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters:
        return create_ddp_model(model, forward_sync_buffers=False, **options)
    if comm.get_world_size() > 1:  # PyTorch before 2.13 leaves the buffers as they are at the start, too
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
    return create_ddp_model(model, broadcast_buffers=False, **options)


def make_step(
    cfg: CfgNode,
    model: torch.nn.Module,
    data_loader: Any,
    optimizer: torch.optim.Optimizer,
    is_due: Callable[[int], bool],
) -> DeferredMetrics:
    """Build what does the training steps as SOLVER.AMP says; see `when_due`."""
    note = partial(note_divergence, cfg.OUTPUT_DIR)
    parts = cfg.MODEL.FOCAL_DET.ACCUMULATION
    return step_class(cfg)(model, data_loader, optimizer, is_due=is_due, note=note, parts=parts)


def step_class(cfg: CfgNode) -> type[DeferredMetrics]:
    """Return the class that does a training step as SOLVER.AMP says."""
    if not cfg.SOLVER.AMP.ENABLED:
        return DeferredMetrics
    return BFloat16Trainer if cfg.SOLVER.AMP.DTYPE == "bfloat16" else Float16Trainer


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


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Begin the momentum of a fused update with zeros, with which its first step does what it would without.

    PyTorch's fused kernel leaves new momentum as whatever was in memory if float16's first step overflows, as it does.
    """
    for group in optimizer.param_groups:
        if group.get("fused") and group.get("momentum") and not group.get("dampening"):
            for parameter in group["params"]:
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def fused(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return an SGD like this one, of which one kernel updates all parameters."""
    groups = [{**group, "fused": True, "foreach": False} for group in optimizer.param_groups]
    # anew, since only when it is built PyTorch's takes note that it can take a scaler
    optimizer = type(optimizer)(groups, fused=True)  # type: ignore[call-arg]
    start_momentum(optimizer)
    return optimizer


def with_last_lr(cfg: CfgNode, scheduler: Any) -> Any:
    """Return Detectron2's scheduler; it is asked for an lr after the last step too, which one kind does not have."""
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR":  # which would end the training with an error
        multiplier, last = scheduler._multiplier, 1 - 0.5 / cfg.SOLVER.MAX_ITER
        scheduler._multiplier = lambda where: multiplier(min(where, last))
    return scheduler


class DeferredMetrics(SimpleTrainer):
    """`SimpleTrainer`, whose batch may be passed in parts, and whose losses stay on the device until they are due.

    Then the ranks gather them at once, and they are written, and checked to be finite, one step after the other, as
    `SimpleTrainer` does.

    Args:
        is_due: whether losses are read at an iteration, alike on all ranks; None if at each.
        note: called with the first iteration whose losses are not finite.
        parts: in which a batch is passed one after the other, see `focal_det.distributed.accumulation`.

    Attributes:
        batch, losses: of the last step, from its backward pass on.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        is_due: Callable[[int], bool] | None = None,
        note: Callable[[int], None] | None = None,
        parts: int = 1,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self._is_due = (lambda _: True) if is_due is None else is_due
        self._note = note
        self._parts = parts
        self._pending: list[tuple[int, float, dict[str, Tensor]]] = []
        self.batch: Any = None
        self.losses: dict[str, Tensor] = {}

    def run_step(self) -> None:
        """Do one step: data, losses and gradients, update."""
        start = time.perf_counter()
        self.batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.losses = losses_and_gradients(
            self.model, self.batch, self._parts, self.precision, self.backward, before_first=self.optimizer.zero_grad
        )
        self.after_backward()
        self._write_metrics(self.losses, data_time)
        self.update()

    def precision(self) -> AbstractContextManager[Any]:
        """Return what a forward pass is done within."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the loss."""
        loss.backward()

    def update(self) -> None:
        """Change the weights."""
        self.optimizer.step()

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        losses = {prefix + name: loss for name, loss in loss_dict.items()}
        self._pending.append((self.iter if iter is None else iter, data_time, losses))
        if self._is_due(self.iter):
            self.flush_metrics()

    def flush_metrics(self) -> None:
        """Write the losses that are pending, on rank 0 the means over the ranks, which all call this at once.

        Raises FloatingPointError on rank 0, with the iteration of a loss that is not finite.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        values = torch.stack([loss.reshape(()) for *_, losses in pending for loss in losses.values()]).tolist()  # waits
        following = iter(values)
        own = [(data_time, {name: next(following) for name in losses}) for _, data_time, losses in pending]
        storage, of_ranks = get_event_storage(), comm.gather(own)
        for place, (iteration, data_time, losses) in enumerate(pending):
            storage.put_scalar("rank_data_time", data_time, cur_iter=iteration)
            if not comm.is_main_process():
                continue
            slowest = max(steps[place][0] for steps in of_ranks)  # for which the others wait
            storage.put_scalar("data_time", slowest, cur_iter=iteration)
            means = {name: float(np.mean([steps[place][1][name] for steps in of_ranks])) for name in losses}
            total = sum(means.values())
            if not np.isfinite(total):
                if self._note is not None:
                    self._note(iteration)
                raise FloatingPointError(
                    f"Loss became infinite or NaN at iteration={iteration}!\nloss_dict = {means}; {RESUME_HINT}"
                )
            storage.put_scalar("total_loss", total, cur_iter=iteration)
            if len(means) > 1:
                storage.put_scalars(cur_iter=iteration, **means)


class _AutocastTrainer(DeferredMetrics):
    """A step with the forward pass under autocast."""

    dtype: torch.dtype

    def precision(self) -> AbstractContextManager[Any]:
        """Return autocast to the number format."""
        return torch.autocast(next(self.model.parameters()).device.type, dtype=self.dtype)


class BFloat16Trainer(_AutocastTrainer):
    """A step in bfloat16, which has float32's range, so that no loss is scaled."""

    dtype = torch.bfloat16

    def __init__(self, model: torch.nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        keep_top_in_float32(model)


class Float16Trainer(_AutocastTrainer):
    """A step in float16 with a scaled loss, as Detectron2's `AMPTrainer` does it and saves its scale.

    An optimizer that takes the scaler's numbers, as PyTorch's fused ones do, skips the update itself where a gradient
    is not finite: the host does not wait to know. Otherwise it does, once a step.
    """

    dtype = torch.float16

    def __init__(self, model: torch.nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        self.grad_scaler = torch.amp.GradScaler(next(model.parameters()).device.type)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the scaled loss."""
        self.grad_scaler.scale(loss).backward()

    def update(self) -> None:
        """Change the weights unless a gradient is not finite; what clips them does so before they are scaled."""
        # A fused optimizer would unscale within its kernel, behind the clipping, which Detectron2 puts into its step.
        if any(group.get("fused") for group in self.optimizer.param_groups):
            self.grad_scaler.unscale_(self.optimizer)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return Detectron2's state, and the scale."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load it; a run in another precision has saved no scale."""
        super().load_state_dict(state_dict)
        if "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
