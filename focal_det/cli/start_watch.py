"""Ends ranks that Detectron2's launcher has started and that do not reach one another; alone they wait half an hour."""

from __future__ import annotations

import multiprocessing
import threading
import time


class StartWatch:
    """From `begin` to `end` watches that the ranks of this machine get as far as their own work.

    Args:
        ranks: of this machine.
        machine: its number.
        seconds: for all of them, after which they are killed.

    Attributes:
        reached: an event for each rank, which it sets.
        words: what to say, if they were killed; else "".
    """

    def __init__(self, ranks: int, machine: int, seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.reached = [context.Event() for _ in range(ranks)]
        self.words = ""
        self._first, self._seconds = machine * ranks, seconds
        self._over = threading.Event()

    def begin(self, world_size: int) -> None:
        """Watch, if there is more than one rank of all machines."""
        if world_size > 1:
            threading.Thread(target=self._watch, daemon=True).start()

    def end(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        deadline = time.monotonic() + self._seconds
        while not self._over.wait(0.5):
            late = [str(self._first + rank) for rank, event in enumerate(self.reached) if not event.is_set()]
            if not late:
                return
            if time.monotonic() > deadline:
                self.words = (
                    f"rank{'s' if len(late) > 1 else ''} {', '.join(late)} did not reach the others within "
                    f"{self._seconds:g} s (--start-timeout and a minute): has a rank ended on another machine? Else "
                    "set NCCL_SOCKET_IFNAME to the network between the machines; NCCL_DEBUG=INFO says what NCCL tries"
                )
                for process in multiprocessing.active_children():
                    process.kill()
                return
