"""Who ends whom: ranks watch each other, and one that fails, dies or hangs ends all of them, with its name."""

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

import torch.distributed as dist
from detectron2.utils import comm

from ..errors import EXIT_FAULT, first_line
from .failures import failure_message, is_lost_connection
from .graceful_stop import GracefulStop
from .heartbeat import PHASES, SILENT_PHASES, HeartbeatStore, Progress, StallCounter
from .signals import SignalListener, nothing_to_save

logger = logging.getLogger(__name__)
POLL_SECONDS = 1.0  # between two heartbeats, and between two looks at the others'
DEAD_AFTER = 60.0  # seconds without a heartbeat; in one of `SILENT_PHASES` --hang-timeout, if that is longer
DEAD_AFTER_LOST = 6.0  # likewise, once a rank has lost its connection to another
LEAVE_AFTER = 5.0  # seconds that a rank has to end by itself, once it knows the verdict


class RankWatchdog:
    """A thread on each rank that publishes its heartbeat in the job's store, and watches those of the others.

    While open, all ranks end with exit code 1 once one of them has failed (it says so itself), has had no heartbeat
    for `DEAD_AFTER` seconds, or when none has made progress for `hang_timeout` seconds; or with a signal's code once
    one came to any rank of an evaluation. Rank 0 watches all of them, the others watch rank 0. Time in which this
    process itself was stopped, as in a suspended job, does not count. A single rank has nobody to watch, and nothing
    is done. A `hang_timeout` of 0 is never.

    To be opened by all ranks as soon as they have a process group, and to be left by all of them: in success each waits
    for the others and destroys its groups; with an Exception all end at once, which one rank of each machine says.
    """

    def __init__(self, hang_timeout: float) -> None:
        self.rank, self.ranks = comm.get_rank(), comm.get_world_size()
        # Receives the signals to this rank, if there is one; a `GracefulStop` learns of those to others.
        self.listener: SignalListener | None = None
        self.progress, self._beats = Progress(), 0
        self._hang_timeout = hang_timeout
        self._verdict: str | None = None
        self._is_reported = False
        self._is_speaker: bool | None = None  # known once this rank knows the verdict
        self._moves, self._rounds = StallCounter(), 0
        self._closed = threading.Event()
        # Of a rank that the launcher or torchrun started; one that was started by hand may outlive its shell.
        is_a_child = multiprocessing.parent_process() is not None or "TORCHELASTIC_RUN_ID" in os.environ
        self._parent = os.getppid() if is_a_child else None

    def __enter__(self) -> RankWatchdog:
        if self.ranks == 1:
            return self
        self._beats_of = {rank: StallCounter() for rank in (range(1, self.ranks) if self.rank == 0 else [0])}
        self._machine, self._local_rank = divmod(self.rank, comm.get_local_size())
        self._store = HeartbeatStore(self.rank, self._beats_of, DEAD_AFTER)
        self.progress.begin()
        self._beat()
        self._threads = [threading.Thread(target=part, daemon=True) for part in (self._watch, self._watch_store)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.ranks == 1:
            return
        try:
            if isinstance(error, Exception):
                raise error
            self.progress.end()
            comm.all_gather(None)  # until all have come, the watch ends those that would wait in vain
        except Exception as failure:
            self._print(str(failure) if self._is_reported else self.report_failure(failure))
            os._exit(EXIT_FAULT)  # at once: to destroy process groups is to wait for ranks that are gone
        dist.destroy_process_group()  # none of its threads may meet Python's end, and NCCL's ranks do it together
        self._closed.set()
        for thread in self._threads:
            thread.join(DEAD_AFTER)

    def report_failure(self, error: BaseException) -> str:
        """Tell all ranks that this one has failed, and wait until they know.

        Returns which rank failed and why, in one line: another one, if this one only lost its connection to it.
        """
        self._is_reported = True
        message = failure_message(error)
        if self.ranks == 1:
            return message
        self._end_if_signalled()
        name = self._name(self.rank, self.progress.heartbeat)
        # A FloatingPointError says itself on which rank.
        own = verdict = message if isinstance(error, FloatingPointError) else f"{name} failed: {message}"
        try:
            if is_lost_connection(error):
                logger.error(f"{name} lost its connection to another rank: {message}")
                verdict = "rank 0 is gone: neither it nor the job's store answers" if self.rank else own
                self._store.announce("lost", "yes")
                deadline = time.monotonic() + DEAD_AFTER_LOST + 3 * POLL_SECONDS
                while not (self._verdict or self._store.read()[0]["verdict"]) and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS / 10)
                verdict = self._verdict or own  # this one's own, if rank 0 is dead and the store lives elsewhere
            self._speaks()  # for its machine, and before the others know, since it knows best
            verdict = self._settle(verdict)
            time.sleep(2 * POLL_SECONDS)  # until the others have looked; rank 0's process may hold the store
        except RuntimeError:
            pass  # all others are gone
        self._end_if_signalled()
        return self._verdict or verdict

    def _end_if_signalled(self) -> None:
        """End this process if all ranks leave on a signal: it has only lost another that was faster."""
        if self._verdict_signal:
            self._threads[0].join()  # which ends this process

    def _watch(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            try:
                self._verdict = self._verdict or self._look()
            except RuntimeError as error:
                who = "rank 0 no longer answers" if self.rank else "a rank has not started"
                self._verdict = f"{who} ({first_line(error)})"
            self._rounds += 1
            if self._verdict is not None:
                self._end()

    def _watch_store(self) -> None:
        """End where the store's process is stopped, whose answer `_watch` awaits for ever, and with the launcher.

        The launcher holds the folder's lock: without it another training may start there.
        """
        rounds = StallCounter()
        while not self._closed.wait(POLL_SECONDS):
            if self._parent not in (None, os.getppid()):
                self._print("the process that started this rank is gone")
                os._exit(EXIT_FAULT)
            rounds.update(self._rounds)
            if rounds.count * POLL_SECONDS >= DEAD_AFTER + POLL_SECONDS and self._verdict is None:
                self._is_speaker = self._local_rank == int(self._machine == 0)  # the store cannot be asked, which waits
                self._verdict = f"rank 0 has not answered for {DEAD_AFTER:g} s: it is stopped or cut off"
                self._end()

    def _look(self) -> str | None:
        """Publish a heartbeat and look at the others; return the verdict that ends all, if there is one."""
        self.progress.count_computing()
        self._beat()
        announcements, heartbeats = self._store.read()
        if announcements["verdict"]:
            self._speaks()  # before the store is gone
            return announcements["verdict"]
        received = self.listener.received if self.listener else 0
        if isinstance(self.listener, GracefulStop):  # a training: all ranks agree where to stop
            if announcements["stop"]:
                self.listener.received_elsewhere = int(announcements["stop"])
            elif received:
                self._store.announce("stop", str(received))
        elif received:  # an evaluation: nothing to save
            return self._settle(signal.Signals(received).name)
        for rank, beats in self._beats_of.items():
            dead_after = DEAD_AFTER_LOST if announcements["lost"] else DEAD_AFTER
            if heartbeats[rank]["phase"] in SILENT_PHASES and not announcements["lost"]:
                dead_after = max(dead_after, self._hang_timeout or math.inf)
            beats.update(heartbeats[rank]["beat"])
            if beats.count * POLL_SECONDS >= dead_after:
                dead = f"{self._name(rank, heartbeats[rank])} is dead or stopped: no heartbeat for {dead_after:g} s"
                return self._settle(dead) if self.rank == 0 else dead  # rank 0's process may hold the store
        return self._settle(self._hanging(heartbeats)) if self.rank == 0 and self._is_hanging(heartbeats) else None

    def _is_hanging(self, heartbeats: dict[int, dict[str, Any]]) -> bool:
        self._moves.update(sum(one["moves"] for one in (*heartbeats.values(), self.progress.heartbeat)))
        return 0 < self._hang_timeout <= self._moves.count * POLL_SECONDS

    def _hanging(self, heartbeats: dict[int, dict[str, Any]]) -> str:
        """Name the ranks that are furthest behind, for which the others wait."""
        of_all = {0: self.progress.heartbeat, **heartbeats}
        positions = {rank: (one["iteration"], one["phase"]) for rank, one in of_all.items()}
        iteration, phase = first = min(positions.values())
        behind = [rank for rank, position in positions.items() if position == first]
        message = f"no rank made progress for {self._hang_timeout:g} s (--hang-timeout)"
        if len(behind) == len(positions):
            return f"{message}; all are at iteration {iteration}, {PHASES[phase]}"
        names = " ".join(self._name(rank, of_all[rank]) for rank in behind[:3])
        return f"{message}; the others wait for {names} {PHASES[phase]}"

    def _beat(self) -> None:
        self._beats += 1
        self._store.publish(self.progress.heartbeat | {"beat": self._beats})

    def _settle(self, verdict: str) -> str:
        self._verdict = self._store.settle(verdict)
        return self._verdict

    def _speaks(self) -> bool:
        """Whether this rank is the one of its machine that says what all end with: the first that knows it."""
        if self._is_speaker is None:
            try:
                self._is_speaker = self._store.is_first(f"of machine {self._machine}")
            except RuntimeError:  # rank 0 is gone, and the store with it; its launcher says so, if it has one
                is_launched = multiprocessing.parent_process() is not None
                self._is_speaker = self._local_rank == int(self._machine == 0 and not is_launched)
        return self._is_speaker

    def _print(self, message: str) -> None:
        if self._speaks():
            print(f"error: {message}", file=sys.stderr, flush=True)

    def _name(self, rank: int, heartbeat: dict[str, Any]) -> str:
        return f"rank {rank} of {self.ranks} on {heartbeat['host']}, at iteration {heartbeat['iteration']},"

    @property
    def _verdict_signal(self) -> int:
        """The signal's number in the verdict, or 0."""
        verdict = self._verdict or ""
        return signal.Signals[verdict] if verdict in signal.Signals.__members__ else 0

    def _end(self) -> None:
        """End this process, whatever its main thread waits for, and its workers, which would watch for that for 5 s."""
        if self._closed.wait(2 * POLL_SECONDS if self._verdict_signal else LEAVE_AFTER):  # it leaves by itself
            return
        for worker in multiprocessing.active_children():
            worker.kill()
        if not self._verdict_signal:
            logger.error(f"Ending: {self._verdict}")
            self._print(str(self._verdict))
            os._exit(EXIT_FAULT)
        if self.rank == 0 and multiprocessing.parent_process() is None:  # else the launcher says it
            print(nothing_to_save(self._verdict_signal), file=sys.stderr, flush=True)
        os._exit(128 + self._verdict_signal)
