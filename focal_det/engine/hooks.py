"""What the trainer does beside Detectron2's hooks: stop on a signal, log the assignment, draw."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from ..modeling.criterion import DenseCriterion
from .deferred_metrics import DeferredMetrics

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# A terminal sends Ctrl-C to every process of the job and the launcher passes it on once more: one wish, not two.
_SAME_WISH_SECONDS = 1.0


class TrainingStopped(BaseException):
    """A signal ended the training early and everything is saved. Not an Exception: nothing went wrong."""


class StopOnSignal(HookBase):
    """On SIGTERM, SIGINT or SIGUSR1 to any rank, all ranks finish the step, save, and raise `TrainingStopped`.

    With several ranks they agree every `period` iterations, since asking costs a round trip. A second signal
    ends the process at once.
    """

    def __init__(self, checkpointer: Any, period: int = 10) -> None:
        self.checkpointer = checkpointer
        self.period = period
        self.received: str | None = None
        self._received_at = 0.0
        self._pid = 0
        self._previous: dict[signal.Signals, Any] = {}

    def before_train(self) -> None:
        self._pid = os.getpid()
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)

    def after_train(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def after_step(self) -> None:
        stop = self.received
        if comm.get_world_size() > 1:
            if (self.trainer.iter + 1) % self.period:
                return
            stop = next((name for name in comm.all_gather(self.received) if name), None)
        if stop is None or self.trainer.iter + 1 >= self.trainer.max_iter:
            return
        step = getattr(self.trainer, "_trainer", None)
        if isinstance(step, DeferredMetrics):
            step.flush_metrics()  # nothing that diverged is saved
        self.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
        logging.getLogger(__name__).warning(
            f"{stop}: stopped after iteration {self.trainer.iter}, all saved. Run again with --resume to go on."
        )
        comm.synchronize()  # no rank leaves while the main one is still saving
        raise TrainingStopped

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a loader's worker, forked with this handler; it ends with its parent
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        name, now = signal.Signals(number).name, time.monotonic()
        if self.received is not None:
            if now - self._received_at > _SAME_WISH_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        self.received, self._received_at = name, now
        logging.getLogger(__name__).warning(f"{name}: finishing this step, then saving; once more to end at once.")


class LogAssignment(HookBase):
    """Put the assigned anchors per image into the metrics every `period` iterations, as Detectron2's `num_pos_anchors`.

    If they are few, objects are missed.
    """

    def __init__(self, criterion: DenseCriterion, period: int = 20) -> None:
        self.criterion = criterion
        self.period = period

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0 and self.criterion.num_assigned is not None:
            assigned = self.criterion.num_assigned.float().mean().item()
            self.trainer.storage.put_scalar("num_pos_anchors", assigned, smoothing_hint=False)


class CheckGradients(HookBase):
    """Put the norm of all gradients into the metrics as "grad_norm", and end the training if it is no number.

    Else a checkpoint could save weights that one bad step has spoilt, before the next loss shows it. A hook of
    `SimpleTrainer`, whose gradients all ranks share, so that all of them end.

    Args:
        is_due: of an iteration, whether to look; to look at a GPU's gradients is to wait for it.

    Raises:
        FloatingPointError: from the step, before the weights are changed; names the iteration.
    """

    def __init__(self, is_due: Callable[[int], bool]) -> None:
        self.is_due = is_due

    def after_backward(self) -> None:
        if not self.is_due(self.trainer.iter):
            return
        named = {name: p.grad for name, p in self.trainer.model.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(list(named.values())).item()
        if not math.isfinite(norm):
            bad = next((name for name, grad in named.items() if not grad.isfinite().all()), "all of them together")
            bad = bad.removeprefix("module.")
            raise FloatingPointError(
                f"Gradients became infinite or NaN at iteration={self.trainer.iter}, the first of them of {bad}"
            )
        get_event_storage().put_scalar("grad_norm", norm)


class DrawDetections(HookBase):
    """Draw on the main process every `period` iterations (0: not before the end) and after the last."""

    def __init__(self, period: int) -> None:
        self.period = period

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if self.period > 0 and next_iter % self.period == 0 and next_iter < self.trainer.max_iter:
            self.trainer.draw(self.trainer.cfg, self.trainer.model)

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self.trainer.draw(self.trainer.cfg, self.trainer.model)
