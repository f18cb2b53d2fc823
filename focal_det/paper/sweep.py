"""Running a plan: one training after another, each in a process of its own, none twice."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from ..engine.lock import FolderLock
from ..errors import InputError
from .machine import commit, hardware, versions
from .runs import RECORD, Run
from .tables import ROOT

LOG = "reproduce.log"

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_SECONDS = 0.5
_EXIT_STOPPED = 75


class Status(str, Enum):
    """What became of a run."""

    DONE = "done"
    DIVERGED = "diverged"  # a result as well: it is not run again
    FAILED = "failed"
    UNFINISHED = "unfinished"
    ELSEWHERE = "in use by another process"


def status_of(run: Run) -> Status | None:
    """What became of a run; None if it was never started. It is done if its metrics say so, however it ended."""
    if run.metrics():
        return Status.DONE
    status = run.record.get("status")
    return Status(status) if status else None


def is_finished(run: Run) -> bool:
    """Whether it has its result."""
    return status_of(run) in (Status.DONE, Status.DIVERGED)


def run_all(runs: Sequence[Run], after_each: Callable[[], None]) -> bool:
    """Run what is not finished, and go on after one that failed.

    Args:
        after_each: is called whenever a run has ended.

    Returns:
        Whether a signal stopped it. The training in progress has then saved, and the same call goes on with it.

    Raises:
        OSError: a record cannot be written.
    """
    to_run = [run for run in runs if not is_finished(run)]
    if len(to_run) < len(runs):
        print(f"{len(runs) - len(to_run)} of {len(runs)} trainings are finished already")
    total = sum(run.iterations for run in to_run)
    with _passing_signals_on() as passing, tqdm(total=total, unit="it", disable=None, smoothing=0.05) as bar:
        for number, run in enumerate(to_run, start=1):
            place = f"[{number}/{len(to_run)}] {run.name}"
            bar.set_description(place)
            tqdm.write(f"{place}: {run.folder}")

            def show(done: int, start: int = int(bar.n)) -> None:
                bar.update(start + done - bar.n)

            status = _run_one(run, passing, show)
            show(run.iterations)
            tqdm.write(f"{place}: {outcome(run, status)}")
            after_each()
            if passing.received:
                return True
    return False


def outcome(run: Run, status: Status | None) -> str:
    """A run's state in words, with its AP or its error."""
    if status is None:
        return "not run"
    if status is Status.DONE:
        return f"AP {run.metrics()['AP']:.1f} after {run.record.get('seconds', 0) / 60:.1f} min"
    error = run.record.get("error", "")
    return f"{status.value}{f': {error}' if error else ''}" + (
        f"; see {run.folder / LOG}" if status is Status.FAILED else ""
    )


class _Passing:
    """The training that signals are passed on to, and the signal that came, 0 if none."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.received = 0

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.received = number
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)


@contextmanager
def _passing_signals_on() -> Iterator[_Passing]:
    """While this holds, a wish to stop goes to the training, which saves and ends."""
    passing = _Passing()
    before = {number: signal.signal(number, passing) for number in _SIGNALS}
    try:
        yield passing
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_one(run: Run, passing: _Passing, report: Callable[[int], object]) -> Status:
    try:
        with FolderLock(str(run.folder)):
            pass  # the training takes it itself; this only asks
    except InputError:
        return Status.ELSEWHERE
    record = run.record | {
        "command": shlex.join(run.command),
        "commit": commit(ROOT),
        "hardware": hardware(),
        "versions": versions(),
        "status": Status.UNFINISHED.value,
        "error": "",
        "config": dict(run.config),
    }
    _write(run, record)
    started = time.monotonic()
    with (run.folder / LOG).open("ab") as log:
        log_start = log.tell()
        # In a session of its own, so that Ctrl-C reaches its main process alone, and once.
        passing.child = subprocess.Popen(run.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    if passing.received:  # before there was a child to pass it on to
        passing.child.send_signal(signal.SIGTERM)
    while passing.child.poll() is None:
        time.sleep(_POLL_SECONDS)
        report(min(run.iteration(), run.iterations))
    code = passing.child.returncode
    passing.child = None
    status, error = _judge(run, code, _tail(run.folder / LOG, log_start), stopped=bool(passing.received))
    seconds = record.get("seconds", 0) + time.monotonic() - started
    _write(run, record | {"status": status.value, "error": error, "seconds": round(seconds, 1)})
    return status


def _judge(run: Run, code: int, tail: list[str], *, stopped: bool) -> tuple[Status, str]:
    """A run's status and its error, from its exit code and the last lines of its output."""
    if run.metrics():
        return Status.DONE, ""
    if stopped or code == _EXIT_STOPPED:
        return Status.UNFINISHED, ""
    if any("FloatingPointError" in line for line in tail):
        return Status.DIVERGED, f"the loss was no number after {run.iteration()} iterations"
    if code < 0:
        return Status.FAILED, f"ended by signal {-code}"
    errors = [line.removeprefix("error: ") for line in tail if line.startswith("error: ")]
    return Status.FAILED, f"exit code {code}, {(errors or tail or ['without a word'])[-1]}"


def _tail(path: Path, start: int) -> list[str]:
    """The last lines that were written from a position on, without empty ones."""
    with path.open("rb") as log:
        log.seek(max(start, path.stat().st_size - 10_000))
        return [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]


def _write(run: Run, record: dict[str, object]) -> None:
    """At once or not at all, so that a kill or a full disk leaves the record of before."""
    partial = run.folder / f".{RECORD}.{os.getpid()}"
    try:
        partial.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(partial, run.folder / RECORD)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(run.folder / RECORD)) from error  # a write names no file
    finally:
        partial.unlink(missing_ok=True)
