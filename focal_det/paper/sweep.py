"""Running a plan: one training after another, each in a process of its own, none twice."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from ..engine.environment import commit
from ..engine.lock import FolderLock
from ..engine.machine import hardware, versions
from ..errors import EXIT_STOPPED, InputError
from .results import Record, Status, iterations_done, write_record
from .runs import Run
from .tables import ROOT

LOG = "reproduce.log"

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_POLL_SECONDS = 0.5


def run_all(runs: Sequence[Run], *, num_gpus: int, after_each: Callable[[], None], wait: bool = False) -> bool:
    """Run what is not finished, and go on after one that failed.

    Args:
        num_gpus: of each training, for its record.
        after_each: is called whenever a run has ended.
        wait: for a run that another process is at; else it is left to it.

    Returns:
        Whether a signal stopped it. The same call then goes on.

    Raises:
        OSError: a record cannot be written.
    """
    to_run = [run for run in runs if not run.is_finished]
    if len(to_run) < len(runs):
        print(f"{len(runs) - len(to_run)} of {len(runs)} trainings are finished already", flush=True)
    total = sum(run.iterations for run in to_run)
    with _passing_signals_on() as passing, tqdm(total=total, unit="it", disable=None, smoothing=0.05) as bar:
        for number, run in enumerate(to_run, start=1):
            place = f"[{number}/{len(to_run)}] {run.name}"
            bar.set_description(place)

            def show(done: int, start: int = int(bar.n)) -> None:
                bar.update(start + done - bar.n)

            tqdm.write(f"{place}: {run.folder}, where log.txt says how far it is")
            status = _run_alone(run, num_gpus, passing, show)
            while wait and status is Status.ELSEWHERE and not passing.received:
                time.sleep(_POLL_SECONDS)
                status = _run_alone(run, num_gpus, passing, show)
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
    record = run.record
    if status is Status.DONE:
        minutes = f" after {record.seconds / 60:.1f} min" if record and record.seconds else ""
        return f"AP {run.metrics()['AP']:.1f}{minutes}"
    error = f": {record.error}" if record and record.error and status is not Status.ELSEWHERE else ""
    return f"{status.value}{error}" + (f"; see {run.folder / LOG}" if status is Status.FAILED else "")


class _Passing:
    """The training that signals are passed on to, and the signal that came, 0 if none."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.received = 0

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.received = number
        print(f"{signal.Signals(number).name}: the training saves and ends, a moment", file=sys.stderr, flush=True)
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)


@contextmanager
def _passing_signals_on() -> Iterator[_Passing]:
    """While this holds, a wish to stop goes to the training, which saves and ends. What nohup ignores stays ignored."""
    passing = _Passing()
    heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, passing) for number in heeded}
    try:
        yield passing
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_alone(run: Run, num_gpus: int, passing: _Passing, show: Callable[[int], object]) -> Status:
    """Run it unless another process is at it or has finished it; several may work at one plan."""
    with ExitStack() as held:
        try:
            held.enter_context(FolderLock(str(run.folder), ".reproduce.lock"))
        except InputError:
            return Status.ELSEWHERE
        status = run.status
        if status in (Status.DONE, Status.DIVERGED):
            return status
        return _run(run, num_gpus, passing, show)


def _run(run: Run, num_gpus: int, passing: _Passing, show: Callable[[int], object]) -> Status:
    before = run.record
    record = Record(
        command=shlex.join(run.command),
        commit=commit(ROOT),
        hardware=hardware(0 if run.config["MODEL.DEVICE"] == "cpu" else num_gpus),
        versions=versions(),
        config=dict(run.config),
        seconds=before.seconds if before else 0.0,
    )
    write_record(run.folder, record)
    _set_torn_checkpoints_aside(run.folder)
    started = time.monotonic()
    with (run.folder / LOG).open("ab") as log:
        log_start = log.tell()
        # In a session of its own, so that Ctrl-C reaches its main process alone, and once.
        child = subprocess.Popen(run.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    passing.child = child
    try:
        if passing.received:  # before there was a child to pass it on to
            child.send_signal(signal.SIGTERM)
        while child.poll() is None:
            time.sleep(_POLL_SECONDS)
            show(min(iterations_done(run.folder), run.iterations))
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
        passing.child = None
    status, error = _judge(run, child.returncode, _tail(run.folder / LOG, log_start), stopped=bool(passing.received))
    seconds = round(record.seconds + time.monotonic() - started, 3)
    write_record(run.folder, replace(record, status=status, error=error, seconds=seconds))
    return status


def _set_torn_checkpoints_aside(folder: Path) -> None:
    """Rename checkpoints of a start that a kill or a full disk ended before its first was whole: none is named."""
    if not (folder / "last_checkpoint").is_file():
        for path in folder.glob("*.pth"):
            path.rename(path.with_suffix(".torn"))


def _judge(run: Run, code: int, tail: list[str], *, stopped: bool) -> tuple[Status, str]:
    """A run's status and its error, from its exit code and the last lines of its output."""
    if run.metrics():
        return Status.DONE, ""
    if code == EXIT_STOPPED:
        return Status.UNFINISHED, ""
    if stopped:
        return Status.UNFINISHED, "stopped before it could save"
    if any("FloatingPointError" in line for line in tail):
        return Status.DIVERGED, f"the loss was no number after {iterations_done(run.folder)} iterations"
    if code < 0:
        return Status.FAILED, f"ended by signal {-code}"
    if code == 0:
        return Status.FAILED, "ended without an AP"
    errors = [line.removeprefix("error: ") for line in tail if line.startswith("error: ")]
    return Status.FAILED, f"exit code {code}, {(errors or tail or ['without a word'])[-1]}"


def _tail(path: Path, start: int) -> list[str]:
    """The last lines that were written from a position on, without empty ones."""
    with path.open("rb") as log:
        log.seek(max(start, path.stat().st_size - 10_000))
        return [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
