"""The signals that stop a training, and how its loader workers heed them from nobody else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# A terminal sends Ctrl-C to every process of the job and a launcher passes it on once more: one wish, not two.
SAME_WISH_SECONDS = 1.0

_is_shielding = False
_is_registered = False


@contextmanager
def workers_shielded() -> Iterator[None]:
    """While open, processes that this one forks heed `STOP_SIGNALS` from nobody but this one.

    Ctrl-C, `scancel` and `kill -- -PGID` reach every process of a job. A worker that dies of one leaves its training
    without pictures, which then fails where it was to save. A SIGTERM of the training itself, which PyTorch and Python
    send at the end to a worker that does not leave, ends it; and its own watchdog does when the training is gone.
    Where a signal's sender is not known (macOS) nothing is changed.
    """
    global _is_shielding, _is_registered
    if not _is_registered and hasattr(signal, "sigwaitinfo"):
        os.register_at_fork(after_in_child=_shield)
        _is_registered = True
    before, _is_shielding = _is_shielding, True
    try:
        yield
    finally:
        _is_shielding = before


def _shield() -> None:
    """In a process just forked; what it forks in turn is not shielded."""
    global _is_shielding
    if _is_shielding:
        _is_shielding = False
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(128 + signal.SIGTERM)


@contextmanager
def workers_ignored() -> Iterator[None]:
    """While open, PyTorch does not raise a loader worker's end in this process wherever that happens to be.

    To be opened in the main thread.
    """
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def end_workers() -> None:
    """End this process's loader workers, and wait a moment for each."""
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(1.0)  # not for one that a disk which does not answer holds


def start_workers_by_fork() -> None:
    """Let loaders fork their workers, also in a rank that was spawned, which else spawns them: seconds each time."""
    if sys.platform == "linux":
        multiprocessing.set_start_method("fork", force=True)
