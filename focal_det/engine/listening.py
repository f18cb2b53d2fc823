"""Signals to a process that works with others, noticed though its main thread waits for a rank that never answers."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from .workers import SAME_WISH_SECONDS, STOP_SIGNALS, workers_shielded


class Listening:
    """While open, SIGTERM, SIGINT and SIGUSR1 are a wish to stop; a second one ends the process at once.

    To be opened in the main thread. A thread notices the signals, and loader workers do not.

    Attributes:
        wish: the signal's number; 0 as long as none came.
    """

    def __init__(self) -> None:
        self.wish = 0

    def __enter__(self) -> Listening:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, _leave_to_the_listener) for number in STOP_SIGNALS}
        self._shield = workers_shielded()
        self._shield.__enter__()
        # a rank that starts holds them back, see train_net.py; and again as it leaves, where one would end it
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return self

    def __exit__(self, *error: Any) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        self._shield.__exit__(*error)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._write, b"\0")
        self._listener.join()
        os.close(self._read)
        os.close(self._write)

    def heard(self) -> None:
        """Called once, when the wish came; in the thread."""

    def _listen(self) -> None:
        since = 0.0
        while (number := os.read(self._read, 1)[0]) != 0:
            if number not in STOP_SIGNALS:
                continue
            now = time.monotonic()
            if not self.wish:
                self.wish, since = number, now
                self.heard()
            elif now - since > SAME_WISH_SECONDS:
                os._exit(128 + number)


def nothing_to_save(number: int) -> str:
    """What is said when a signal has stopped something that is no training."""
    return f"{signal.Signals(number).name}: stopped outside of training: nothing to save"


def _leave_to_the_listener(number: int, frame: Any) -> None:
    """So that the signal does nothing else."""
