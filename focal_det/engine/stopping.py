"""Stopping on a signal: all ranks agree where they stop, save and leave."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from .agreement import Agreement
from .deferred_metrics import DeferredMetrics
from .listening import Listening
from .suspects import note_suspect

_current: Stopping | None = None


class TrainingStopped(BaseException):
    """A signal ended the training early and everything is saved. Not an Exception: nothing went wrong."""


class Stopping(Listening):
    """While open, SIGTERM, SIGINT and SIGUSR1 to any rank are a wish to stop; a second one ends its process at once.

    To be opened by all ranks at once, each in its main thread.

    Attributes:
        elsewhere: as `wish`, of another rank, as far as it is known here.
        agreed: the signal on which all ranks stop; 0 as long as they do not.
        done: iterations of the training that are done.
    """

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere = self.agreed = self.done = 0
        self.agreement = Agreement()

    def __enter__(self) -> Stopping:
        global _current
        self._outer, _current = _current, self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        global _current
        _current = self._outer
        super().__exit__(*error)

    def heard(self) -> None:
        # a launcher signals the ranks that are left when one has died, and they will not come to save
        alone = comm.get_world_size() == 1
        what = "finishing this step, then saving" if alone else "asking all ranks to finish this step and save"
        _log().warning(f"{signal.Signals(self.wish).name}: {what}; once more to end at once.")

    @property
    def asked(self) -> int:
        """The signal that came to any rank, as far as it is known here; 0 if none."""
        return self.wish or self.elsewhere

    def stop_if_agreed(self, number: int) -> None:
        """Raises TrainingStopped, if `number` is a signal's; to be called with the same number on all ranks."""
        if number:
            self.agreed = number
            raise TrainingStopped


def shared_agreement() -> Agreement:
    """That of the open `Stopping`, or one of its own; to be called by all ranks at once."""
    return _current.agreement if _current else Agreement()


class StoppableLoader:
    """A loader for a test set, which all ranks leave with `TrainingStopped` at its end or as soon as a wish is known.

    They leave it together: a rank that learns of the wish late has had more pictures, and no rank is left waiting.

    Args:
        loader: with a length; of this rank's share.
    """

    def __init__(self, loader: Any, stopping: Stopping) -> None:
        self._loader = loader
        self._stopping = stopping

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        stopping = self._stopping
        for batch in self._loader:
            if stopping.asked:
                break
            yield batch
        stopping.stop_if_agreed(stopping.agreement.now(stopping.asked))


def stoppable(loader: Any) -> Any:
    """The loader of a test set, as a `StoppableLoader` where a `Stopping` is open: not where one evaluates alone."""
    return loader if _current is None else StoppableLoader(loader, _current)


class StopOnSignal(HookBase):
    """Lets all ranks stop at the same step's end, with all saved; see `Stopping`, without which it does nothing.

    A wish is known to all one step later. To stand after what changes the state and saves it at its times, and before
    what evaluates: that is done after a resume.

    Args:
        checkpointer: of the run.

    Raises:
        TrainingStopped: before the first step, after a step, or before the final evaluation.
    """

    def __init__(self, checkpointer: Any) -> None:
        self.checkpointer = checkpointer
        self._stopping: Stopping | None = None

    def before_train(self) -> None:
        self._stopping = _current
        if self._stopping is not None:
            self._stopping.done = self.trainer.start_iter
            self._stopping.stop_if_agreed(self._stopping.agreement.now(self._stopping.asked))

    def after_step(self) -> None:
        if self._stopping is not None:
            self._stopping.done = self.trainer.iter + 1
            agreed = self._stopping.agreement.one_call_later(self._stopping.asked)
            if self.trainer.iter + 1 < self.trainer.max_iter:  # else it is asked once more in `after_train`
                self._stopping.stop_if_agreed(agreed)

    def after_train(self) -> None:
        stopping = self._stopping
        if stopping is None:
            return
        if self.trainer.iter >= self.trainer.max_iter:  # all steps are done, and the last is saved
            stopping.stop_if_agreed(stopping.agreement.now(stopping.asked))
        if stopping.agreed and stopping.done > self.trainer.start_iter:
            self._save()
            comm.synchronize()  # no rank leaves while the main one is still saving
        if self.trainer.iter + 1 >= self.trainer.max_iter:  # where the hooks behind this one would evaluate
            stopping.stop_if_agreed(stopping.agreed)

    def _save(self) -> None:
        step, name = getattr(self.trainer, "_trainer", None), f"model_{self.trainer.iter:07d}"
        if isinstance(step, DeferredMetrics):
            step.flush_metrics()  # nothing that diverged is saved
            self._check_weights()  # a finite loss may have had a gradient that was not, at a step where none looked
        if f"{name}.pth" not in self.checkpointer.written.names:  # else it was due anyway
            self.checkpointer.save(name, iteration=self.trainer.iter)

    def _check_weights(self) -> None:
        weights = [parameter.detach() for parameter in self.trainer.model.parameters()]
        if not torch.nn.utils.get_total_norm(weights).isfinite():
            note_suspect(self.checkpointer.save_dir, self.trainer.iter)
            raise FloatingPointError(
                f"Weights became infinite or NaN at iteration={self.trainer.iter} or shortly before, and are not "
                "saved; --resume looks at each step there, and keeps what did it"
            )


def stopped_words(number: int, done: int, started_with: int, max_iter: int) -> str:
    """What to say when a signal has stopped a training.

    Args:
        number: the signal's.
        done: iterations that are done, `started_with` of them before this start.
        max_iter: of the whole training.
    """
    name = signal.Signals(number).name
    if done == 0:
        return f"{name}: nothing was trained yet: the same command starts again"
    if done >= max_iter:
        return f"{name}: stopped with all {done} iterations done and saved. Run again with --resume to evaluate."
    if done == started_with:
        return f"{name}: nothing more was trained: the same command goes on after iteration {done - 1}"
    return f"{name}: stopped after iteration {done - 1}, all saved. Run again with --resume to go on."


def _log() -> logging.Logger:
    return logging.getLogger(__name__)
