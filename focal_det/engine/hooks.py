"""Do what Detectron2's hooks do not: log the assignment, act with the evaluations, stop on a signal with all saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..distributed.graceful_stop import GracefulStop
from ..distributed.signals import ignore_signals
from ..divergence.check import weights_are_finite
from ..divergence.diverged_folder import RESUME_HINT, note_divergence
from ..modeling.criterion import DenseCriterion
from ..output_layout import periodic_checkpoint
from .train_step import WRITE_PERIOD, DeferredMetrics


class LogAssignment(HookBase):
    """Put the assigned anchors per image into the metrics every `period` iterations: if few, objects are missed."""

    def __init__(self, criterion: DenseCriterion, period: int = WRITE_PERIOD) -> None:
        self.criterion, self.period = criterion, period

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0 and self.criterion.num_assigned is not None:
            assigned = self.criterion.num_assigned.float().mean().item()
            self.trainer.storage.put_scalar("num_pos_anchors", assigned, smoothing_hint=False)


class PeriodicAndFinal(HookBase):
    """Call `act` every `period` iterations (0: not before the end) and after the last, as `EvalHook` evaluates.

    Unlike there no rank waits for the others.
    """

    def __init__(self, period: int) -> None:
        self.period = period

    def act(self) -> None:
        raise NotImplementedError

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if self.period > 0 and next_iter % self.period == 0 and next_iter < self.trainer.max_iter:
            self.act()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self.act()


class StopOnSignal(HookBase):
    """Let all ranks stop at the end of the same step, with all saved.

    A signal to any rank is known to all one step later. To be placed after what changes the state and saves it when
    that is due, and before what evaluates, which is done after a resume. `stopping` is open and receives the signals.

    Raises:
        TrainingStopped: before the first step, after a step, or before the final evaluation.
    """

    def __init__(self, checkpointer: Any, stopping: GracefulStop) -> None:
        self.checkpointer, self.stopping = checkpointer, stopping

    def before_train(self) -> None:
        self.stopping.started_with = self.stopping.done = self.trainer.start_iter
        self.stopping.stop_if_requested()

    def after_step(self) -> None:
        self.stopping.done = self.trainer.iter + 1
        agreed = self.stopping.agreement.one_call_later(self.stopping.requested)
        if self.trainer.iter + 1 < self.trainer.max_iter:  # else `after_train` looks once more
            self.stopping.stop_if_agreed(agreed)

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:  # all steps are done, and the last is saved
            self.stopping.stop_if_requested()
        if self.stopping.agreed and self.stopping.done > self.trainer.start_iter:
            self._save()
            comm.synchronize()  # no rank leaves while the main one is still saving
            ignore_signals()  # all is saved: a second one must not end a rank with its own code
        if self.trainer.iter + 1 >= self.trainer.max_iter:  # where the hooks behind this one would evaluate
            self.stopping.stop_if_agreed(self.stopping.agreed)

    def _save(self) -> None:
        step = getattr(self.trainer, "_trainer", None)
        if isinstance(step, DeferredMetrics):
            step.flush_metrics()  # nothing that diverged is saved
            # a finite loss may have had a gradient that was not, at a step where none looked
            if not weights_are_finite(self.trainer.model):
                note_divergence(self.checkpointer.save_dir, self.trainer.iter)
                raise FloatingPointError(
                    f"Weights became infinite or NaN at iteration={self.trainer.iter} or shortly before, and are not "
                    f"saved; {RESUME_HINT}"
                )
        name = periodic_checkpoint(self.trainer.iter)
        if name not in self.checkpointer.written.names:  # else it was due anyway
            self.checkpointer.save(Path(name).stem, iteration=self.trainer.iter)
