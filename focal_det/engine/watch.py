"""Ranks that watch each other: one that fails, dies or hangs ends all of them, with its name."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from ..errors import EXIT_FAULT, TrainingError
from .faults import is_lost_connection
from .steps import unwrapped
from .stopping import Stopping

PERIOD = 1.0  # seconds between two signs of life, and between two looks
DEAD_AFTER = 60.0  # seconds without a sign of life: reading a large annotation file holds a process for some
DEAD_AFTER_SETTING_UP = 120.0  # likewise, before the first step: all of them are read there
DEAD_AFTER_LOST = 6.0  # likewise, once a rank has lost its connection to another
LEAVE_AFTER = 5.0  # seconds that a rank which is told to end has for it

_WORDS = ("verdict", "stop", "lost")  # what all ranks read: empty, or what was said
_PLACES = ("start", "waiting for pictures", "step", "evaluating")


class Watch:
    """A thread on each rank that says through the job's store that it lives and how far it is, and looks at the others.

    While open, all ranks end with exit code 1 once one of them has failed (it says so itself), has given no sign of
    life for `DEAD_AFTER` seconds, before the first steps `DEAD_AFTER_SETTING_UP`, or when none has got any further for
    `hang_timeout` seconds. Rank 0 looks at all of them, the others at rank 0. Time in which this process itself stood
    still, as in a suspended job, does not count. One rank alone has nobody to watch, and nothing is done.

    Args:
        hang_timeout: seconds; 0 is never.

    Attributes:
        stopping: is told of a wish to stop that came to another rank, if there is one.
    """

    def __init__(self, hang_timeout: float) -> None:
        self.rank, self.ranks = comm.get_rank(), comm.get_world_size()
        self._hang_timeout, self._dead_after = hang_timeout, DEAD_AFTER_SETTING_UP
        self.stopping: Stopping | None = None
        self._sign: dict[str, Any] = {"host": socket.gethostname(), "iteration": 0, "place": 0, "done": False}
        self._sign |= {"moves": 0, "beat": 0, "steps": 0}  # which count up; steps that were begun
        self._verdict: str | None = None
        self._moves, self._rounds = _Unchanged(), 0
        self._closed = threading.Event()
        self._parent = os.getppid()

    def __enter__(self) -> Watch:
        if self.ranks == 1:
            return self
        world = dist.group.WORLD
        assert world is not None
        store = world.get_group_store().clone()  # a connection of its own: none waits for the other's answer
        store.set_timeout(timedelta(seconds=DEAD_AFTER_SETTING_UP))  # of what `multi_get` waits for
        self._store = dist.PrefixStore("focal_det/watch", store)
        seen = range(1, self.ranks) if self.rank == 0 else [0]
        self._seen = {rank: _Unchanged() for rank in seen}
        for key in _WORDS if self.rank == 0 else ():
            self._store.set(key, "")
        self._beat()
        self._threads = [threading.Thread(target=part, daemon=True) for part in (self._run, self._run_beside)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Leave; rank 0, whose process may hold the store, as the last."""
        if self.ranks == 1:
            return
        self._closed.set()
        self._threads[0].join(self._dead_after)
        self._sign["done"] = True
        try:
            self._beat()
            deadline = time.monotonic() + (LEAVE_AFTER if self.rank == 0 and self._verdict is None else 0)
            while time.monotonic() < deadline and not all(sign["done"] for sign in self._read()[1].values()):
                time.sleep(PERIOD / 10)
        except RuntimeError:
            pass  # nobody is there any more

    def follow(self, trainer: Any) -> None:
        """See from a trainer how far this rank is."""
        if self.ranks > 1:
            trainer.register_hooks([_Steps(self)])
            self.follow_model(trainer.model)

    def follow_model(self, model: nn.Module) -> None:
        """See from a model, which may be one that is only evaluated, that this rank gets further."""
        inner = unwrapped(model)
        inner.register_forward_pre_hook(lambda module, _: self.move(place=2 if module.training else 3))

    def move(self, *, place: int, iteration: int | None = None) -> None:
        """This rank has got further.

        Args:
            place: its place in the iteration, 1 waits for pictures, 2 in the step, 3 evaluating.
            iteration: the new one.
        """
        sign = self._sign
        if iteration is not None:
            sign["iteration"] = iteration
            sign["steps"] += 1
        sign["place"] = place
        sign["moves"] += 1

    def tell(self, error: BaseException) -> str:
        """Say to all ranks that this one has failed, and wait until they know.

        Returns:
            Which rank failed and why, in one line: another one, if this one only lost its connection to it.
        """
        what = str(error) if isinstance(error, TrainingError) else f"{type(error).__name__}: {error}"
        what = " ".join(what.split())
        if self.ranks == 1:
            return what
        of_all = isinstance(error, FloatingPointError)  # it says itself on which rank
        words = own = what if of_all else f"{self._name(self.rank, self._sign)} failed: {what}"
        try:
            if is_lost_connection(error):
                _log().error(f"{self._name(self.rank, self._sign)} lost its connection to another rank: {what}")
                words = "rank 0 is gone: neither it nor the job's store answers" if self.rank else own
                self._store.set("lost", "yes")
                deadline = time.monotonic() + DEAD_AFTER_LOST + 3 * PERIOD
                while not self._read()[0]["verdict"] and time.monotonic() < deadline:
                    time.sleep(PERIOD / 10)
                words = own
            words = self._settle(words)
            time.sleep(2 * PERIOD)  # the others look; rank 0's process may hold the store
        except RuntimeError:
            pass  # nobody is there any more
        return self._verdict or words

    def _run(self) -> None:
        while not self._closed.wait(PERIOD):
            try:
                self._verdict = self._verdict or self._once()
            except RuntimeError as error:
                who = "rank 0 does not answer any more" if self.rank else "a rank has not started"
                self._verdict = f"{who} ({str(error).splitlines()[0]})"
            self._rounds += 1
            if self._verdict is not None:
                self._end()

    def _run_beside(self) -> None:
        """End where the store's process is stopped: what is asked of it then waits without end; and with the launcher.

        The launcher holds the folder's lock: without it another training may start there.
        """
        rounds = _Unchanged()
        while not self._closed.wait(PERIOD):
            if os.getppid() != self._parent:
                print("error: the process that started this rank is gone", file=sys.stderr, flush=True)
                os._exit(EXIT_FAULT)
            rounds.look(self._rounds)
            if rounds.looks * PERIOD >= self._dead_after + PERIOD and self._verdict is None:
                self._verdict = f"rank 0 is stopped: it has not answered for {self._dead_after:g} s"
                self._end()

    def _once(self) -> str | None:
        """One sign of life and one look; what all have to end for, if anything."""
        self._beat()
        words, signs = self._read()
        if words["verdict"]:
            return words["verdict"]
        if self.stopping is not None and words["stop"]:
            self.stopping.elsewhere = int(words["stop"])
        elif self.stopping is not None and self.stopping.wish:
            self._store.set("stop", str(self.stopping.wish))
        if all(sign["steps"] > 1 for sign in (self._sign, *signs.values())):
            self._dead_after = DEAD_AFTER
        dead_after = DEAD_AFTER_LOST if words["lost"] else self._dead_after
        for rank, seen in self._seen.items():
            seen.look(signs[rank]["beat"])
            if seen.looks * PERIOD >= dead_after and not signs[rank]["done"]:
                said = f"{self._name(rank, signs[rank])} is dead or stopped: no sign of life for {dead_after:g} s"
                return self._settle(said) if self.rank == 0 else said  # rank 0's process may hold the store
        return self._settle(self._hanging(signs)) if self.rank == 0 and self._is_hanging(signs) else None

    def _is_hanging(self, signs: dict[int, dict[str, Any]]) -> bool:
        self._moves.look(sum(sign["moves"] for sign in (*signs.values(), self._sign)))
        is_over = all(sign["done"] for sign in signs.values())
        return self._hang_timeout > 0 and not is_over and self._moves.looks * PERIOD >= self._hang_timeout

    def _hanging(self, signs: dict[int, dict[str, Any]]) -> str:
        where = {0: self._sign, **signs}
        places = {rank: (sign["iteration"], sign["place"]) for rank, sign in where.items() if not sign["done"]}
        first = min(places.values())
        behind = [rank for rank, place in places.items() if place == first]
        words = f"no rank got any further for {self._hang_timeout:g} s (--hang-timeout)"
        if len(behind) == len(places):
            return f"{words}; all are at iteration {first[0]}, {_PLACES[first[1]]}"
        names = ", ".join(self._name(rank, where[rank]) for rank in behind[:3])
        return f"{words}; the others wait for {names}, {_PLACES[first[1]]}"

    def _beat(self) -> None:
        self._sign["beat"] += 1
        self._store.set(f"sign/{self.rank}", json.dumps(self._sign))

    def _read(self) -> tuple[dict[str, str], dict[int, dict[str, Any]]]:
        """What was said to all, and the signs of the ranks that this one looks at."""
        ranks = list(self._seen)
        values = self._store.multi_get([*_WORDS, *(f"sign/{rank}" for rank in ranks)])
        words = [value.decode() for value in values[: len(_WORDS)]]
        signs = map(json.loads, values[len(_WORDS) :])
        return dict(zip(_WORDS, words, strict=True)), dict(zip(ranks, signs, strict=True))

    def _settle(self, words: str) -> str:
        """The words that all end with: these, if no rank was faster."""
        self._verdict = self._store.compare_set("verdict", "", words).decode()
        return self._verdict

    def _name(self, rank: int, sign: dict[str, Any]) -> str:
        return f"rank {rank} of {self.ranks} on {sign['host']}, at iteration {sign['iteration']},"

    def _end(self) -> None:
        """End this process, whatever its main thread waits for."""
        if self._closed.wait(LEAVE_AFTER):  # it knows, and leaves by itself
            return
        _log().error(f"Ending: {self._verdict}")
        print(f"error: {self._verdict}", file=sys.stderr, flush=True)
        os._exit(EXIT_FAULT)


class _Unchanged:
    """For how many looks a number has stayed the same."""

    def __init__(self) -> None:
        self.looks = 0
        self._last = -1

    def look(self, number: int) -> None:
        self.looks = self.looks + 1 if number == self._last else 0
        self._last = number


class _Steps(HookBase):
    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def before_step(self) -> None:
        self.watch.move(place=1, iteration=self.trainer.iter)


def _log() -> logging.Logger:
    return logging.getLogger(__name__)
