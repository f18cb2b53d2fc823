"""How all ranks of a training agree to stop at the same step, so that all is saved and none waits for another."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm

from .join import NO_TIMEOUT
from .signals import SignalListener, nothing_trained

logger = logging.getLogger(__name__)


class Agreement:
    """The largest of the ranks' numbers, over a gloo group of its own: no GPU has to wait for it.

    To be made by all ranks at once. With one rank it is that rank's number.
    """

    def __init__(self) -> None:
        of_several = comm.get_world_size() > 1
        self._group: Any = dist.new_group(backend="gloo", timeout=NO_TIMEOUT) if of_several else None
        self._pending: tuple[Any, torch.Tensor] | None = None

    def now(self, number: int) -> int:
        """Wait for all ranks, and return the largest of their numbers, each >= 0."""
        if self._group is None:
            return number
        tensor = torch.tensor([number])
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return int(tensor)

    def one_call_later(self, number: int) -> int:
        """Return the largest of the ranks' numbers at the call before, 0 at the first.

        The result has a whole training step to arrive, so no rank waits. With one rank there is no delay.
        """
        if self._group is None:
            return number
        largest = 0
        if self._pending is not None:
            work, tensor = self._pending
            work.wait()
            largest = int(tensor)
        tensor = torch.tensor([number])
        self._pending = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group, async_op=True), tensor
        return largest

    def close(self) -> None:
        """Wait for the number that is on its way, after as many calls on all ranks.

        Python's end meets none of the group's threads then: one that comes back with a tensor at that moment aborts.
        """
        if self._pending is not None:
            self._pending[0].wait()
        self._pending = None


class TrainingStopped(BaseException):
    """A signal ended the training early and everything is saved. Not an Exception: nothing went wrong."""


# Global for the loaders of test sets alone: Detectron2 builds them in class methods, which can be handed nothing.
_open: GracefulStop | None = None


class GracefulStop(SignalListener):
    """While open, a signal to any rank asks all ranks to stop; a second one ends its process at once.

    To be opened by all ranks at once, each in its main thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received_elsewhere = 0  # number of a signal to another rank, once the watchdog knows of it
        self.agreed = 0  # the signal on which all ranks stop, once they do
        self.started_with = self.done = 0  # iterations before this start of the training, and now
        self.agreement = Agreement()

    def __enter__(self) -> GracefulStop:
        global _open
        _open = self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        global _open
        _open = None
        super().__exit__(*error)
        if error[0] is None:
            self.agreement.close()

    def on_first_signal(self) -> None:
        # A launcher also signals the ranks that are left when one has died, and those will not come to save.
        alone = comm.get_world_size() == 1
        what = "finishing this step, then saving" if alone else "asking all ranks to finish this step and save"
        logger.warning(f"{signal.Signals(self.received).name}: {what}; send it again to end at once.")

    @property
    def requested(self) -> int:
        """The signal that came to any rank, as far as this one knows; 0 if none."""
        return self.received or self.received_elsewhere

    def stop_if_requested(self) -> None:
        """Wait for all ranks, and raise TrainingStopped on all of them if any knows of a signal."""
        self.stop_if_agreed(self.agreement.now(self.requested))

    def stop_if_agreed(self, number: int) -> None:
        """Raise TrainingStopped if the number, the same on all ranks, is that of a signal."""
        if number:
            self.agreed = number
            raise TrainingStopped

    def stopped_message(self, max_iter: int) -> str:
        """Return the message for the end of a training of `max_iter` iterations that was stopped."""
        name, done = signal.Signals(self.agreed).name, self.done
        if done == 0:
            return nothing_trained(self.agreed)
        if done >= max_iter:
            return f"{name}: stopped with all {done} iterations done and saved. Run again with --resume to evaluate."
        if done == self.started_with:
            return f"{name}: nothing more was trained: the same command resumes after iteration {done - 1}"
        return f"{name}: stopped after iteration {done - 1}, all saved. Run again with --resume to continue."


class StoppableLoader:
    """A loader of a test set, which all ranks leave by `TrainingStopped`, soon after a signal or at its end.

    They leave it together: a rank that learns of the signal late has had more images, and none is left waiting.
    """

    def __init__(self, loader: Any, stopping: GracefulStop) -> None:
        self._loader, self._stopping = loader, stopping

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            if self._stopping.requested:
                break
            yield batch
        self._stopping.stop_if_requested()


def stoppable(loader: Any) -> Any:
    """Return the loader of a test set, as a `StoppableLoader` within a training, as it is in a mere evaluation."""
    return loader if _open is None else StoppableLoader(loader, _open)
