"""Signals to a process of a job: who handles them, who forwards them, and which processes ignore them.

Every handler of the package is installed here; who does what, and in which order, is in the docstring of this folder.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ..errors import EXIT_STOPPED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# A terminal sends Ctrl-C to every process of the job and a launcher forwards it once more: one request, not two.
SAME_REQUEST_SECONDS = 1.0
_Handler = Callable[[int, Any], Any] | int | None


def in_main_thread() -> bool:
    """Tell whether this is the thread in which Python handles signals, the only one that may install handlers."""
    return threading.current_thread() is threading.main_thread()


def install(table: Mapping[int, _Handler]) -> dict[int, _Handler]:
    """Install the handlers of some signals, and return those that they replace; nothing outside of the main thread."""
    if not in_main_thread():
        return {}
    return {number: signal.signal(number, handler) for number, handler in table.items()}


@contextmanager
def handlers(table: Mapping[int, _Handler]) -> Iterator[dict[int, _Handler]]:
    """Install the handlers of some signals, in the main thread; at the end restore those before, which it yields."""
    before = install(table)
    try:
        yield before
    finally:
        install(before)


def ignore_signals() -> None:
    """Let stop signals change nothing from now on. Blocking them would not do, since other threads get them."""
    install(dict.fromkeys(STOP_SIGNALS, signal.SIG_IGN))


# --- before a training, and where nothing trains ----------------------------------------------------------------------


class EndedBySignal(SystemExit):
    """A signal ends the command; whoever catches the SystemExit of somebody's program lets this one pass."""


@contextmanager
def stopping_before_training(*, trains: bool, ends_process: bool) -> Iterator[None]:
    """While open, a signal ends the command, and what is half written is removed.

    A command that trains leaves as SystemExit 75, since nothing is lost and it can be given again; any other as
    SystemExit 143 on a SIGTERM and as KeyboardInterrupt on Ctrl-C. A training listens itself while it runs.

    Args:
        ends_process: the process ends with this command: from then on signals are ignored, else handled as before.
    """
    table: dict[int, _Handler] = {signal.SIGTERM: _end, signal.SIGUSR1: _end}
    if trains:
        table = dict.fromkeys(STOP_SIGNALS, _end_untrained)
    before = install(table)
    try:
        yield
    finally:
        install(dict.fromkeys(before, signal.SIG_IGN) if ends_process else before)


def _end_untrained(number: int, _: Any) -> None:
    print(nothing_trained(number), file=sys.stderr, flush=True)
    raise EndedBySignal(EXIT_STOPPED)


def _end(number: int, _: Any) -> None:
    print(nothing_to_save(number), file=sys.stderr, flush=True)
    raise EndedBySignal(128 + number)


def nothing_trained(number: int) -> str:
    """Return the message for a signal that came before the first step."""
    return f"{signal.Signals(number).name}: nothing was trained yet: run the same command again to start"


def nothing_to_save(number: int) -> str:
    """Return the message for a signal that stopped anything but a training."""
    return f"{signal.Signals(number).name}: stopped outside of training: nothing to save"


# --- in a rank --------------------------------------------------------------------------------------------------------


class SignalListener:
    """While open, the first stop signal is a request to stop; a second one ends the process at once.

    Outside of the main thread it listens to none. A thread receives the signals, whatever the main thread waits for,
    and the loader workers ignore them. Once closed, the process ignores them: what it did is saved or has failed, its
    exit code is settled, and srun and torchrun signal the ranks that are still leaving as soon as the first one has
    left.
    """

    def __init__(self) -> None:
        self.received = 0  # number of the first signal, once one has come

    def __enter__(self) -> SignalListener:
        self._open = self._listening() if in_main_thread() else workers_shielded()
        self._open.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        read, write = os.pipe()
        os.set_blocking(write, False)
        thread = threading.Thread(target=self._receive, args=(read,), daemon=True)
        thread.start()
        wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)  # Python writes each signal's number there
        install(dict.fromkeys(STOP_SIGNALS, _leave_to_the_thread))
        try:
            with workers_shielded():
                # a rank that starts blocks them (train_net.py, __main__.py, JointStart)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
                yield
        finally:
            ignore_signals()
            signal.set_wakeup_fd(wakeup)
            os.write(write, b"\0")
            thread.join()
            os.close(read)
            os.close(write)

    def on_first_signal(self) -> None:
        """Do something when the first signal has come; called in the thread."""

    def _receive(self, read: int) -> None:
        since, launcher = 0.0, multiprocessing.parent_process()
        while (number := os.read(read, 1)[0]) != 0:
            # PyTorch has a rank get SIGINT when its launcher is killed: no request, and the rank's watchdog ends it.
            if number not in STOP_SIGNALS or (launcher is not None and not launcher.is_alive()):
                continue
            now = time.monotonic()
            if not self.received:
                self.received, since = number, now
                self.on_first_signal()
            elif now - since > SAME_REQUEST_SECONDS:
                os._exit(128 + number)


def _leave_to_the_thread(number: int, frame: Any) -> None:
    """Do nothing: without a handler the signal would end the process."""


# --- in the launcher --------------------------------------------------------------------------------------------------


class SignalForwarder:
    """From its construction on, forward stop signals to the processes that this one started; a second one kills all."""

    def __init__(self) -> None:
        # Number of the first signal, once one has come; for `resend_requested` in ranks that are still starting.
        self.requested = multiprocessing.get_context("spawn").Value("i", 0, lock=False)
        self._since = 0.0
        install(dict.fromkeys(STOP_SIGNALS, self._forward))  # until the ranks have left, when signals are ignored

    def _forward(self, number: int, _: Any) -> None:
        now = time.monotonic()
        is_second = self.requested.value and now - self._since > SAME_REQUEST_SECONDS
        if not self.requested.value:
            self.requested.value, self._since = number, now
        for process in multiprocessing.active_children():
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGKILL if is_second else number)
        if is_second:
            os._exit(128 + number)


def resend_requested(requested: Any) -> None:
    """Send this rank the signal that the launcher got before the rank was there, if any.

    As long as the rank blocks signals, the same one from both is delivered once. `requested` is `SignalForwarder`'s.
    """
    if requested.value:
        os.kill(os.getpid(), requested.value)


def killed_message(rank: int, exit_code: int, *, trains: bool) -> str:
    """Return the message for a rank that a signal ended, whose negative number is the exit code."""
    name = signal.Signals(-exit_code).name
    why = ": the system does that when memory runs out (see dmesg)" if -exit_code == signal.SIGKILL else ""
    again = ". Run again with --resume auto to resume from what was saved" if trains else ""
    return f"rank {rank} was ended by {name}{why}{again}"


def stopping_signal(exit_code: int) -> int:
    """Return the stop signal that ended a process, by its exit code of -number or 128 + number; 0 if none did."""
    number = -exit_code if exit_code < 0 else exit_code - 128
    return number if number in STOP_SIGNALS else 0


# --- loader workers ---------------------------------------------------------------------------------------------------

_is_shielding = False  # global, since a hook of os.fork is registered for good and takes no arguments


@contextmanager
def workers_shielded() -> Iterator[None]:
    """While open, processes that this one forks obey `STOP_SIGNALS` from this one alone, and keep what it held.

    Ctrl-C, `scancel` and `kill -- -PGID` reach every process of a job. A worker that dies of one leaves its training
    without images, which then fails where it was to save. A SIGTERM from the training itself, which PyTorch and Python
    send at the end to a worker that does not leave, ends it; and its own watchdog does when the training is gone.
    Where a signal's sender is not known (macOS) nothing is changed.
    """
    global _is_shielding
    before, _is_shielding = _is_shielding, True
    try:
        yield
    finally:
        _is_shielding = before


def _shield() -> None:
    """Shield this process, just forked; what it forks in turn is not shielded."""
    global _is_shielding
    if _is_shielding:
        _is_shielding = False
        # What is garbage here is the training's: to destroy a group or a store is to join threads that only that has.
        gc.freeze()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(128 + signal.SIGTERM)


if hasattr(signal, "sigwaitinfo"):
    os.register_at_fork(after_in_child=_shield)


def workers_ignored() -> AbstractContextManager[Any]:
    """While open, in the main thread, PyTorch does not raise a worker's death in the midst of whatever runs here."""
    return handlers({signal.SIGCHLD: signal.SIG_DFL})


def end_workers() -> None:
    """Kill the loader workers of this process, and wait a moment for each."""
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(1.0)  # no longer: a disk that does not answer may hold it


def start_workers_by_fork() -> None:
    """Let loaders fork their workers, even in a rank that was spawned, which would spawn them: seconds each time."""
    if sys.platform == "linux":
        multiprocessing.set_start_method("fork", force=True)
