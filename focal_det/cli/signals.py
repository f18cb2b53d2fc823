"""Signals to the command that trains, as long as no rank of it listens; and how they reach its ranks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..engine.listening import nothing_to_save
from ..engine.workers import SAME_WISH_SECONDS, STOP_SIGNALS
from ..errors import EXIT_STOPPED


@contextmanager
def stopping_before_training(*, trains: bool) -> Iterator[None]:
    """While open, a signal ends the command with what is half made removed.

    A command that trains leaves as SystemExit 75, since nothing is lost and it can be given again; another as
    SystemExit 143 of a SIGTERM and KeyboardInterrupt of Ctrl-C. A training listens itself while it runs.
    """
    handlers = dict.fromkeys(STOP_SIGNALS, _end_untrained) if trains else {signal.SIGTERM: _end, signal.SIGUSR1: _end}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_untrained(number: int, _: Any) -> None:
    print(_nothing_trained(number), file=sys.stderr, flush=True)
    raise SystemExit(EXIT_STOPPED)


def _end(number: int, _: Any) -> None:
    print(nothing_to_save(number), file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


def _nothing_trained(number: int) -> str:
    return f"{signal.Signals(number).name}: nothing was trained yet: the same command starts again"


class PassOn:
    """Made by a process whose children train: passes signals on to them, and ends all at once at a second one.

    Attributes:
        asked: the first signal's number, 0 if none came, for a child that was not there yet: see `hear_what_was_asked`.
    """

    def __init__(self) -> None:
        self.asked = multiprocessing.get_context("spawn").Value("i", 0, lock=False)
        self._since = 0.0
        for number in STOP_SIGNALS:
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, _: Any) -> None:
        now = time.monotonic()
        is_second = self.asked.value and now - self._since > SAME_WISH_SECONDS
        if not self.asked.value:
            self.asked.value, self._since = number, now
        for process in multiprocessing.active_children():
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGKILL if is_second else number)
        if is_second:
            os._exit(128 + number)

    def ended_before_listening(self, exit_code: int) -> bool:
        """Whether a child that ended so did of a signal that came before it could listen, so that nothing was trained.

        Then that is said.

        Args:
            exit_code: of the child, of a signal's death its negative number.
        """
        is_so = self.asked.value != 0 and -exit_code in STOP_SIGNALS
        if is_so:
            print(_nothing_trained(self.asked.value), file=sys.stderr, flush=True)
        return is_so


def hear_what_was_asked(asked: Any) -> None:
    """Send this process the signal that came before it was there, if any; while it holds signals back, two are one.

    Args:
        asked: of the launcher's `PassOn`.
    """
    if asked.value:
        os.kill(os.getpid(), asked.value)


def killed_words(rank: int, exit_code: int, *, trains: bool) -> str:
    """What to say of a rank that a signal has ended.

    Args:
        exit_code: the signal's negative number.
    """
    name = signal.Signals(-exit_code).name
    why = ": the system does that when memory runs out (see dmesg)" if -exit_code == signal.SIGKILL else ""
    again = ". Run again with --resume auto to go on from what was saved" if trains else ""
    return f"rank {rank} was ended by {name}{why}{again}"


def stopping_signal(exit_code: int) -> int:
    """The signal that has stopped an evaluation, of a rank of which this is the exit code; 0 if it was none."""
    number = -exit_code if exit_code < 0 else exit_code - 128
    return number if number in STOP_SIGNALS else 0
