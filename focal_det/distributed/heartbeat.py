"""What ranks tell each other through the job's store: that they live, how far they are, and announcements to all."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any

import torch.distributed as dist
from detectron2.engine.hooks import CallbackHook
from torch import nn

from .cluster import unwrapped

_jobs = count()  # global, since a process may run one job after another, and the store keeps what the first one said
_ANNOUNCEMENTS = ("verdict", "stop", "lost")  # what all ranks read: each is empty until a rank says it
PHASES = ("start", "waiting for images", "step", "scoring", "evaluating")
_START, _WAITING, _STEP, SCORING, _EVALUATING = range(5)  # while one rank scores, the others have evaluated
_BUSY = 0.05  # of the time: a rank that scores computes for more of it, one that waits for less


class HeartbeatStore:
    """The store of this job as one rank sees it; every method raises RuntimeError where it does not answer.

    It reads the heartbeats of the `watched` ranks, and waits some `seconds` for one that is not there yet.
    """

    def __init__(self, rank: int, watched: Iterable[int], seconds: float) -> None:
        self._rank, self._watched = rank, list(watched)
        world = dist.group.WORLD
        assert world is not None
        store = world.get_group_store().clone()  # a connection of its own: none waits for the other's answer
        store.set_timeout(timedelta(seconds=seconds))  # of what `multi_get` waits for
        self._store = dist.PrefixStore(f"focal_det/watch/{next(_jobs)}", store)  # all ranks count alike
        for key in _ANNOUNCEMENTS:
            self._store.compare_set(key, "", "")  # not over what a faster rank may have said

    def publish(self, heartbeat: dict[str, Any]) -> None:
        """Publish this rank's heartbeat."""
        self._store.set(f"heartbeat/{self._rank}", json.dumps(heartbeat))

    def announce(self, key: str, text: str) -> None:
        """Tell all ranks, under "stop", the number of a signal, or, under "lost", that a connection is lost."""
        self._store.set(key, text)

    def read(self) -> tuple[dict[str, str], dict[int, dict[str, Any]]]:
        """Return the announcements, and the watched ranks' heartbeats, once each rank has published its first."""
        values = self._store.multi_get([*_ANNOUNCEMENTS, *(f"heartbeat/{rank}" for rank in self._watched)])
        texts = [value.decode() for value in values[: len(_ANNOUNCEMENTS)]]
        heartbeats = map(json.loads, values[len(_ANNOUNCEMENTS) :])
        return dict(zip(_ANNOUNCEMENTS, texts, strict=True)), dict(zip(self._watched, heartbeats, strict=True))

    def settle(self, verdict: str) -> str:
        """Return the verdict that ends all ranks: this one, unless another rank was faster."""
        return str(self._store.compare_set("verdict", "", verdict).decode())


class StallCounter:
    """How often in a row a number was found unchanged: `count`, which is 0 when it was found changed."""

    def __init__(self) -> None:
        self.count, self._last = 0, -1

    def update(self, number: int) -> None:
        """Compare the number with that of the last call."""
        self.count = self.count + 1 if number == self._last else 0
        self._last = number


# Global for `scoring` alone: Detectron2 builds evaluators in a class method, which can be handed nothing.
_current: Progress | None = None


class Progress:
    """How far this rank is."""

    def __init__(self) -> None:
        # "phase" is an index of `PHASES`; "moves" counts everything that was done, "steps" those that were begun.
        self.heartbeat: dict[str, Any] = {"host": socket.gethostname(), "iteration": 0, "phase": _START}
        self.heartbeat |= {"moves": 0, "steps": 0, "done": False}
        self.is_scoring = False
        self._checked = time.monotonic(), time.process_time()

    def begin(self) -> None:
        """Let `scoring` count here from now on."""
        global _current
        _current = self

    def end(self) -> None:
        """Say that this rank is done."""
        global _current
        _current = None
        self.heartbeat["done"] = True

    def follow(self, trainer: Any) -> None:
        """Count the steps of a trainer."""
        trainer.register_hooks([CallbackHook(before_step=lambda t: self.move(_WAITING, iteration=t.iter))])
        self.follow_model(trainer.model)

    def follow_model(self, model: nn.Module) -> None:
        """Count the calls of a model, which may be one that is only evaluated."""
        inner = unwrapped(model)
        inner.register_forward_pre_hook(lambda module, _: self.move(_STEP if module.training else _EVALUATING))

    def move(self, phase: int, *, iteration: int | None = None) -> None:
        """Count progress: this phase has begun, and a new iteration if one is named."""
        if iteration is not None:
            self.heartbeat["iteration"] = iteration
            self.heartbeat["steps"] += 1
        self.heartbeat["phase"] = phase
        self.heartbeat["moves"] += 1

    def count_scoring(self) -> None:
        """Count it as progress if this process scores and has computed since the last call."""
        (before, cpu_before), self._checked = self._checked, (time.monotonic(), time.process_time())
        if self.is_scoring and self._checked[1] - cpu_before > _BUSY * (self._checked[0] - before):
            self.heartbeat["moves"] += 1


@contextmanager
def scoring() -> Iterator[None]:
    """While open, this rank computes for long, has no steps to count, and waits for no other rank."""
    progress = _current
    if progress is None:
        yield
        return
    progress.move(SCORING)
    progress.is_scoring = True
    try:
        yield
    finally:
        progress.is_scoring = False
        progress.move(_EVALUATING)
