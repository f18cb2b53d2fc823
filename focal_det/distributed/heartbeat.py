"""What ranks tell each other through the job's store: that they live, how far they are, and announcements to all."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from glob import iglob
from itertools import count
from pathlib import Path
from typing import Any

import torch.distributed as dist
from detectron2.engine.hooks import CallbackHook
from detectron2.utils import comm
from torch import nn

from .cluster import unwrapped

_jobs = count()  # global, since a process may run one job after another, and the store keeps what the first one said
_ANNOUNCEMENTS = ("verdict", "stop", "lost")  # what all ranks read: each is empty until a rank says it
# In the order in which a rank that is behind comes to them: while one scores, the others have evaluated.
PHASES = ("start", "waiting for images", "compiling", "step", "reading", "scoring", "evaluating", "done")
_START, _WAITING, _COMPILING, _STEP, READING, SCORING, _EVALUATING, _DONE = range(8)
# Where one call into C, as of the JSON parser, may keep all other threads of Python waiting.
SILENT_PHASES = (_START, READING)
_BUSY = 0.05  # of the time: a rank that is busy computes for more of it, one that waits for less


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

    def is_first(self, group: str) -> bool:
        """Whether this is the first rank of some to ask; always the same answer."""
        own = str(self._rank)
        return str(self._store.compare_set(f"first/{group}", "", own).decode()) == own

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


# Global for `busy` and `begin_step`: Detectron2 builds evaluators in a class method, which can be handed nothing.
_current: Progress | None = None


class Progress:
    """How far this rank is."""

    def __init__(self) -> None:
        # "phase" is an index of `PHASES`; "moves" counts everything that was done.
        self.heartbeat: dict[str, Any] = {"host": socket.gethostname(), "iteration": 0, "phase": _START, "moves": 0}
        self.is_busy = True  # until the first step it reads files and builds the model
        self._checked: tuple[float, float] | None = None  # time and processor time at the last look, while busy

    def begin(self) -> None:
        """Let `busy` count here from now on."""
        global _current
        _current = self

    def end(self) -> None:
        """Say that this rank is done."""
        global _current
        _current = None
        self.move(_DONE)

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
        self.heartbeat["phase"] = phase
        self.heartbeat["moves"] += 1
        self.is_busy = False

    def count_computing(self) -> None:
        """Count it as progress if this process is busy and has computed since the last call."""
        before = self._checked
        self._checked = (time.monotonic(), cpu_seconds()) if self.is_busy else None
        if before and self._checked and self._checked[1] - before[1] > _BUSY * (self._checked[0] - before[0]):
            self.heartbeat["moves"] += 1


@contextmanager
def busy(phase: int = READING) -> Iterator[None]:
    """While open, this rank computes for long, has no steps to count, and waits for no other rank."""
    progress = _current
    if progress is None:
        yield
        return
    before = progress.heartbeat["phase"], progress.is_busy
    progress.move(phase)
    progress.is_busy = True
    try:
        yield
    finally:
        progress.move(before[0])
        progress.is_busy = before[1]


def begin_step() -> None:
    """Say that this rank has its images, before it waits for the other ranks outside of a model's forward pass."""
    if _current is not None:
        _current.move(_STEP)


def compiling() -> AbstractContextManager[None]:
    """While open, this rank, or a compiler that it has started, computes for long, in the middle of a step."""
    return busy(_COMPILING)


@contextmanager
def scored_by_rank_0() -> Iterator[None]:
    """While open, rank 0 scores what all ranks have evaluated; at the end the others wait for it.

    They wait over gloo, without limit: over NCCL they would keep their GPUs busy with it.
    """
    comm.synchronize()  # from here on none waits for another's images
    with busy(SCORING) if comm.is_main_process() else nullcontext():
        yield
    comm.all_gather(None)


def cpu_seconds() -> float:
    """Return the processor time of this process and, where Linux tells, of all that it and they have started."""
    return sum(os.times()[:4]) + _ticks_of_started("self") / os.sysconf("SC_CLK_TCK")


def _ticks_of_started(pid: str) -> int:
    ticks = 0
    for path in iglob(f"/proc/{pid}/task/*/children"):
        with suppress(OSError):  # a thread or process that has just ended
            for child in Path(path).read_text().split():
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(") ")[2].split()  # behind the name
                ticks += sum(map(int, fields[11:15])) + _ticks_of_started(child)  # its own and the ended ones'
    return ticks
