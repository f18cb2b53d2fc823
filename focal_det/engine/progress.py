"""How far a rank is, as the others see it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.engine import HookBase
from torch import nn

from .steps import unwrapped

PLACES = ("start", "waiting for pictures", "step", "scoring", "evaluating")
_START, _WAITING, _STEP, SCORING, _EVALUATING = range(5)  # while one rank scores, the others have evaluated
_BUSY = 0.05  # of the time: who scores computes for more of it, who waits for less

_current: Progress | None = None


class Progress:
    """What this rank says of itself.

    Attributes:
        sign: "host", "iteration", "place" by its number in `PLACES`; "moves" and "steps" count up with all that was
            done and the steps that were begun; "done" at its end.
    """

    def __init__(self) -> None:
        self.sign: dict[str, Any] = {"host": socket.gethostname(), "iteration": 0, "place": _START}
        self.sign |= {"moves": 0, "steps": 0, "done": False}
        self._scores = False
        self._looked = time.monotonic(), time.process_time()

    def begin(self) -> None:
        """From here on `scoring` is of this one."""
        global _current
        _current = self

    def end(self) -> None:
        """This rank is done."""
        global _current
        _current = None
        self.sign["done"] = True

    def follow(self, trainer: Any) -> None:
        """See it from a trainer."""
        trainer.register_hooks([_Steps(self)])
        self.follow_model(trainer.model)

    def follow_model(self, model: nn.Module) -> None:
        """See it from a model, which may be one that is only evaluated."""
        inner = unwrapped(model)
        inner.register_forward_pre_hook(lambda module, _: self.move(_STEP if module.training else _EVALUATING))

    def move(self, place: int, *, iteration: int | None = None) -> None:
        """It has got further, to this place, and to a new iteration if one is named."""
        if iteration is not None:
            self.sign["iteration"] = iteration
            self.sign["steps"] += 1
        self.sign["place"] = place
        self.sign["moves"] += 1

    def look(self) -> None:
        """Count as a move that this process has computed since the last look, if it scores."""
        (before, cpu_before), self._looked = self._looked, (time.monotonic(), time.process_time())
        if self._scores and self._looked[1] - cpu_before > _BUSY * (self._looked[0] - before):
            self.sign["moves"] += 1

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        self.move(SCORING)
        self._scores = True
        try:
            yield
        finally:
            self._scores = False
            self.move(_EVALUATING)


@contextmanager
def scoring() -> Iterator[None]:
    """While open this rank computes for long, has no steps to count, and waits for no other rank."""
    if _current is None:
        yield
        return
    with _current._scoring():
        yield


class _Steps(HookBase):
    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def before_step(self) -> None:
        self.progress.move(_WAITING, iteration=self.trainer.iter)
