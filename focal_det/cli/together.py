"""Ranks that start together leave together: what ends one of them before the training ends all, with one exit code."""

from __future__ import annotations

import secrets
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from detectron2.utils import comm

from ..engine.store import first_line
from ..errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAULT, EXIT_INTERRUPTED, InputError, TrainingError
from .common import print_problems
from .signals import STOP_SIGNALS

_SEEN_WITHIN = 60.0  # seconds; NFS may say for that long that a new folder is not there

T = TypeVar("T")


class Together:
    """While open, a signal to a rank that waits for the others is heeded when it works next.

    One that came in the last wait is left to the training.
    """

    def __enter__(self) -> Together:
        self._works, self._noted = False, 0
        before = {int(number): signal.getsignal(number) for number in STOP_SIGNALS}
        self._before = {number: handler for number, handler in before.items() if callable(handler)}
        for number in self._before:
            signal.signal(number, self._heed)
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:  # see `engine.stopping`, which lets them through again
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None and self._noted:
            signal.pthread_kill(threading.get_ident(), self._noted)

    def _heed(self, number: int, frame: Any) -> None:
        if self._works:
            self._before[number](number, frame)
        else:
            self._noted = number

    def do(self, work: Callable[[], T]) -> T:
        """This rank's part; returns what it returns, when all have done theirs.

        Raises:
            SystemExit: on all ranks, if one failed, with 2 for bad input, 1 for a fault, or a signal's code.
            TrainingError: a rank is gone.
        """
        result, code, words = self._done(work)
        try:
            said = comm.all_gather((code, words))
        except RuntimeError as error:
            raise TrainingError(
                f"a rank ended while all started: look at its messages ({first_line(error)})"
            ) from error
        codes = {code for code, _ in said} - {EXIT_DONE}
        if not codes:
            return result  # type: ignore[return-value]
        if comm.is_main_process():
            print_problems(list(dict.fromkeys(problem for _, of_rank in said for problem in of_rank)))
        comm.synchronize()  # none ends before that is said
        raise SystemExit(EXIT_BAD_INPUT if EXIT_BAD_INPUT in codes else min(codes))

    def _done(self, work: Callable[[], T]) -> tuple[T | None, int, list[str]]:
        """What the work returned, or with which exit code it ended, and what to say of that."""
        try:
            try:
                self._works = True
                if self._noted:
                    self._before[self._noted](self._noted, None)
                return work(), EXIT_DONE, []
            finally:
                self._works = False
        except InputError as error:
            return None, EXIT_BAD_INPUT, error.problems
        except TrainingError as error:
            return None, EXIT_FAULT, [str(error)]
        except KeyboardInterrupt:
            return None, EXIT_INTERRUPTED, []
        except SystemExit as error:
            return None, error.code if isinstance(error.code, int) else EXIT_FAULT, []
        except BaseException as error:
            if not isinstance(error, OSError | MemoryError):  # the system's need no trace
                traceback.print_exc()
            return None, EXIT_FAULT, [f"rank {comm.get_rank()}: {type(error).__name__}: {error}"]


def see_folder(together: Together, folder: Path) -> None:
    """See that all ranks have the same OUTPUT_DIR, by a file that rank 0 makes in it and removes.

    Raises:
        SystemExit: on all ranks, if one has not; rank 0 has said which.
    """
    mark = folder / f".shared-{comm.all_gather(secrets.token_hex(8))[0]}"
    try:
        together.do(mark.touch if comm.is_main_process() else lambda: None)
        together.do(lambda: _look_for(mark, comm.get_rank()))
    finally:
        if comm.is_main_process():
            mark.unlink(missing_ok=True)


def _look_for(mark: Path, rank: int) -> None:
    deadline = time.monotonic() + _SEEN_WITHIN
    while not mark.exists():
        if time.monotonic() > deadline:
            raise InputError(
                f"OUTPUT_DIR {mark.parent} of rank {rank} is not that of rank 0: name one that all machines share"
            )
        time.sleep(0.1)
