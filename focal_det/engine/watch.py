"""Ranks that watch each other: one that fails, dies or hangs ends all of them, with its name."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import Any

from detectron2.utils import comm

from ..errors import EXIT_FAULT
from .faults import is_lost_connection, told
from .listening import Listening, nothing_to_save
from .progress import PLACES, SCORING, Progress
from .signs import Signs, Unchanged
from .stopping import Stopping

PERIOD = 1.0  # seconds between two signs of life, and between two looks
DEAD_AFTER = 60.0  # seconds without a sign of life: reading a large annotation file holds a process for some
DEAD_AFTER_SETTING_UP = 120.0  # likewise, before the first step: all of them are read there
DEAD_AFTER_LOST = 6.0  # likewise, once a rank has lost its connection to another
LEAVE_AFTER = 5.0  # seconds that a rank which is told to end has for it


class Watch:
    """A thread on each rank that says through the job's store that it lives and how far it is, and looks at the others.

    While open, all ranks end with exit code 1 once one of them has failed (it says so itself), has given no sign of
    life for `DEAD_AFTER` seconds, before the first steps `DEAD_AFTER_SETTING_UP`, or when none has got any further for
    `hang_timeout` seconds; or with a signal's code once one came to any rank of an evaluation. Rank 0 looks at all of
    them, the others at rank 0. Time in which this process itself stood still, as in a suspended job, does not count.
    One rank alone has nobody to watch, and nothing is done.

    Args:
        hang_timeout: seconds; 0 is never.

    Attributes:
        progress: of this rank.
        listening: hears the signals to this rank, if it is there; a `Stopping` is told of those to another.
    """

    def __init__(self, hang_timeout: float) -> None:
        self.rank, self.ranks = comm.get_rank(), comm.get_world_size()
        self._hang_timeout, self._dead_after = hang_timeout, DEAD_AFTER_SETTING_UP
        self.listening: Listening | None = None
        self.progress, self._beats = Progress(), 0
        self._verdict: str | None = None
        self._moves, self._rounds = Unchanged(), 0
        self._closed = threading.Event()
        # Of a rank that the launcher or torchrun started; one that was started by hand may outlive its shell.
        is_a_child = multiprocessing.parent_process() is not None or "TORCHELASTIC_RUN_ID" in os.environ
        self._parent = os.getppid() if is_a_child else None

    def __enter__(self) -> Watch:
        if self.ranks == 1:
            return self
        self._seen = {rank: Unchanged() for rank in (range(1, self.ranks) if self.rank == 0 else [0])}
        self._signs = Signs(self.rank, self._seen, DEAD_AFTER_SETTING_UP)
        self.progress.begin()
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
        self.progress.end()
        try:
            self._beat()
            deadline = time.monotonic() + (LEAVE_AFTER if self.rank == 0 and self._verdict is None else 0)
            while time.monotonic() < deadline and not all(sign["done"] for sign in self._signs.read()[1].values()):
                time.sleep(PERIOD / 10)
        except RuntimeError:
            pass  # nobody is there any more

    def follow(self, trainer: Any) -> None:
        """See from a trainer how far this rank is."""
        if self.ranks > 1:
            self.progress.follow(trainer)

    def tell(self, error: BaseException) -> str:
        """Say to all ranks that this one has failed, and wait until they know.

        Returns:
            Which rank failed and why, in one line: another one, if this one only lost its connection to it.
        """
        what = told(error)
        if self.ranks == 1:
            return what
        self._wait_if_stopped()
        of_all = isinstance(error, FloatingPointError)  # it says itself on which rank
        words = own = what if of_all else f"{self._name(self.rank, self.progress.sign)} failed: {what}"
        try:
            if is_lost_connection(error):
                _log().error(f"{self._name(self.rank, self.progress.sign)} lost its connection to another rank: {what}")
                words = "rank 0 is gone: neither it nor the job's store answers" if self.rank else own
                self._signs.say("lost", "yes")
                deadline = time.monotonic() + DEAD_AFTER_LOST + 3 * PERIOD
                while not self._signs.read()[0]["verdict"] and time.monotonic() < deadline:
                    time.sleep(PERIOD / 10)
                words = own
            words = self._settle(words)
            time.sleep(2 * PERIOD)  # the others look; rank 0's process may hold the store
        except RuntimeError:
            pass  # nobody is there any more
        self._wait_if_stopped()
        return self._verdict or words

    def _wait_if_stopped(self) -> None:
        """If all leave on a signal: this rank has lost another one that was faster."""
        if self._number:
            self._threads[0].join()  # which ends this process

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
        rounds = Unchanged()
        while not self._closed.wait(PERIOD):
            if self._parent not in (None, os.getppid()):
                print("error: the process that started this rank is gone", file=sys.stderr, flush=True)
                os._exit(EXIT_FAULT)
            rounds.look(self._rounds)
            if rounds.looks * PERIOD >= self._dead_after + PERIOD and self._verdict is None:
                self._verdict = f"rank 0 is stopped: it has not answered for {self._dead_after:g} s"
                self._end()

    def _once(self) -> str | None:
        """One sign of life and one look; what all have to end for, if anything."""
        self.progress.look()
        self._beat()
        words, signs = self._signs.read()
        if words["verdict"]:
            return words["verdict"]
        if isinstance(self.listening, Stopping) and words["stop"]:
            self.listening.elsewhere = int(words["stop"])
        elif isinstance(self.listening, Stopping) and self.listening.wish:
            self._signs.say("stop", str(self.listening.wish))
        elif self.listening is not None and self.listening.wish:
            return self._settle(signal.Signals(self.listening.wish).name)
        if all(sign["steps"] > 1 for sign in (self.progress.sign, *signs.values())):
            self._dead_after = DEAD_AFTER
        for rank, seen in self._seen.items():
            dead_after = DEAD_AFTER_LOST if words["lost"] else self._dead_after
            if signs[rank]["place"] == SCORING:  # in C++, which lets no other thread run
                dead_after = max(dead_after, self._hang_timeout or math.inf)
            seen.look(signs[rank]["beat"])
            if seen.looks * PERIOD >= dead_after and not signs[rank]["done"]:
                said = f"{self._name(rank, signs[rank])} is dead or stopped: no sign of life for {dead_after:g} s"
                return self._settle(said) if self.rank == 0 else said  # rank 0's process may hold the store
        return self._settle(self._hanging(signs)) if self.rank == 0 and self._is_hanging(signs) else None

    def _is_hanging(self, signs: dict[int, dict[str, Any]]) -> bool:
        self._moves.look(sum(sign["moves"] for sign in (*signs.values(), self.progress.sign)))
        is_over = all(sign["done"] for sign in signs.values())
        return self._hang_timeout > 0 and not is_over and self._moves.looks * PERIOD >= self._hang_timeout

    def _hanging(self, signs: dict[int, dict[str, Any]]) -> str:
        where = {0: self.progress.sign, **signs}
        places = {rank: (sign["iteration"], sign["place"]) for rank, sign in where.items() if not sign["done"]}
        first = min(places.values())
        behind = [rank for rank, place in places.items() if place == first]
        words = f"no rank got any further for {self._hang_timeout:g} s (--hang-timeout)"
        if len(behind) == len(places):
            return f"{words}; all are at iteration {first[0]}, {PLACES[first[1]]}"
        names = " ".join(self._name(rank, where[rank]) for rank in behind[:3])
        return f"{words}; the others wait for {names} {PLACES[first[1]]}"

    def _beat(self) -> None:
        self._beats += 1
        self._signs.give(self.progress.sign | {"beat": self._beats})

    def _settle(self, words: str) -> str:
        """The words that all end with: these, if no rank was faster."""
        self._verdict = self._signs.settle(words)
        return self._verdict

    def _name(self, rank: int, sign: dict[str, Any]) -> str:
        return f"rank {rank} of {self.ranks} on {sign['host']}, at iteration {sign['iteration']},"

    @property
    def _number(self) -> int:
        """Of the signal that all end with; 0 if that is something else."""
        verdict = self._verdict or ""
        return signal.Signals[verdict] if verdict in signal.Signals.__members__ else 0

    def _end(self) -> None:
        """End this process, whatever its main thread waits for, and its loader's, which would look for it for 5 s."""
        if self._closed.wait(2 * PERIOD if self._number else LEAVE_AFTER):  # it knows, and leaves by itself
            return
        for worker in multiprocessing.active_children():
            worker.kill()
        if not self._number:
            _log().error(f"Ending: {self._verdict}")
            print(f"error: {self._verdict}", file=sys.stderr, flush=True)
            os._exit(EXIT_FAULT)
        if self.rank == 0 and multiprocessing.parent_process() is None:  # else the launcher says it
            print(nothing_to_save(self._number), file=sys.stderr, flush=True)
        os._exit(128 + self._number)


def _log() -> logging.Logger:
    return logging.getLogger(__name__)
