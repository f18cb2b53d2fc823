"""Run a plan: one training after another, each in a process of its own, none twice."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from types import FrameType
from typing import Any

from tqdm import tqdm

from .. import __version__
from ..distributed.signals import EndedBySignal, handlers
from ..environment import hardware, source_commit, versions
from ..errors import EXIT_STOPPED, InputError
from ..files import FolderLock
from ..output_layout import LAST_CHECKPOINT
from .cost import milliseconds, trained_config
from .results import Record, Status, iterations_done, write_record
from .runs import SweepRun

LOG = "reproduce.log"

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_POLL_SECONDS = 0.5
_TIMED_IMAGES = 10


def run_all(runs: Sequence[SweepRun], *, num_gpus: int, after_each: Callable[[SweepRun], None]) -> bool:
    """Run what is not finished, one after the other, whether or not the one before failed.

    Args:
        num_gpus: of each training, for its record.
        after_each: is given every run after its turn.

    Returns:
        Whether a signal stopped it. The same call then continues.

    Raises:
        OSError: a record cannot be written.
    """
    to_run = [run for run in runs if not run.is_finished]
    if len(to_run) < len(runs):
        print(f"{len(runs) - len(to_run)} of {len(runs)} trainings are finished already", flush=True)
    forwarder = _Forwarder()
    bar = tqdm(total=sum(run.iterations for run in to_run), unit="it", disable=None, smoothing=0.05)
    with handlers(dict.fromkeys(_heard(), forwarder)), bar:
        for number, run in enumerate(to_run, start=1):
            title = f"[{number}/{len(to_run)}] {run.name}"
            bar.set_description(title)

            def show(done: int, start: int = int(bar.n)) -> None:
                bar.update(start + done - bar.n)

            tqdm.write(f"{title}: {run.folder}, where log.txt says how far it is")
            status = _run_alone(run, num_gpus, forwarder, show)
            show(run.iterations)
            tqdm.write(f"{title}: {outcome(run, status)}")
            after_each(run)
            if forwarder.received:
                return True
    return False


def ended_by_signals() -> AbstractContextManager[Any]:
    """While open, a signal that would stop a training ends the command as stopped; `run_all` handles its own."""
    return handlers(dict.fromkeys(_heard(), _end))


def _heard() -> list[signal.Signals]:
    """Return the signals that stop; what nohup ignores stays ignored."""
    return [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _end(number: int, _: FrameType | None) -> None:
    raise EndedBySignal(EXIT_STOPPED)


def outcome(run: SweepRun, status: Status | None) -> str:
    """Return a run's state as a message, with its AP or its error."""
    if status is None:
        return "not run"
    record = run.record
    if status is Status.DONE:
        minutes = f" after {record.seconds / 60:.1f} min" if record and record.seconds else ""
        return f"AP {run.metrics()['AP']:.1f}{minutes}"
    error = f": {record.error}" if record and record.error and status is not Status.ELSEWHERE else ""
    return f"{status.value}{error}" + (f"; see {run.folder / LOG}" if status is Status.FAILED else "")


class _Forwarder:
    """A handler that forwards signals to the training, which saves and ends."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None  # that runs now, if any
        self.received = 0  # the last signal

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.received = number
        print(
            f"{signal.Signals(number).name}: the training is saving and will end shortly", file=sys.stderr, flush=True
        )
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)


def _run_alone(run: SweepRun, num_gpus: int, forwarder: _Forwarder, show: Callable[[int], object]) -> Status:
    """Run it unless another process trains it or has finished it; several may work on one plan."""
    with ExitStack() as held:
        try:
            held.enter_context(FolderLock(str(run.folder), ".reproduce.lock"))
        except InputError:
            return Status.ELSEWHERE
        status = run.status
        if status in (Status.DONE, Status.DIVERGED):
            return status
        return _run(run, num_gpus, forwarder, show)


def _run(run: SweepRun, num_gpus: int, forwarder: _Forwarder, show: Callable[[int], object]) -> Status:
    before = run.record
    record = Record(
        command=shlex.join(run.command),
        commit=source_commit() or f"none, version {__version__}",
        hardware=hardware(0 if run.config["MODEL.DEVICE"] == "cpu" else num_gpus),
        versions=versions(),
        config=dict(run.config),
        seconds=before.seconds if before else 0.0,
    )
    write_record(run.folder, record)
    if not (run.folder / LAST_CHECKPOINT).is_file():  # a kill or a full disk ended the start before one was complete
        for path in run.folder.glob("*.pth"):
            path.rename(path.with_suffix(".torn"))
    started = time.monotonic()
    with (run.folder / LOG).open("ab") as log:
        log_start = log.tell()
        # In a session of its own, so that Ctrl-C reaches its main process alone, and once.
        child = subprocess.Popen(run.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    forwarder.child = child
    try:
        if forwarder.received:  # before there was a child to forward it to
            child.send_signal(signal.SIGTERM)
        while child.poll() is None:
            time.sleep(_POLL_SECONDS)
            show(min(iterations_done(run.folder), run.iterations))
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
        forwarder.child = None
    with (run.folder / LOG).open("rb") as written:
        written.seek(max(log_start, (run.folder / LOG).stat().st_size - 10_000))
        output = written.read().decode(errors="replace")
    status, error = _judge(run, child.returncode, output, stopped=bool(forwarder.received))
    seconds = round(record.seconds + time.monotonic() - started, 3)
    timed = trained_config(run) if status is Status.DONE else None
    ms = round(milliseconds(timed, _TIMED_IMAGES), 3) if timed else 0.0
    write_record(run.folder, replace(record, status=status, error=error, seconds=seconds, ms_per_image=ms))
    return status


def _judge(run: SweepRun, code: int, output: str, *, stopped: bool) -> tuple[Status, str]:
    """Return a run's status and its error, judged by its exit code and the end of its output."""
    if run.metrics():
        return Status.DONE, ""
    if code == EXIT_STOPPED:
        return Status.UNFINISHED, ""
    if stopped:
        return Status.UNFINISHED, "stopped before it could save"
    if "FloatingPointError" in output:
        return Status.DIVERGED, f"the loss was not finite after {iterations_done(run.folder)} iterations"
    if code < 0:
        return Status.FAILED, f"ended by signal {-code}"
    if code == 0:
        return Status.FAILED, "ended without an AP"
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return Status.FAILED, f"exit code {code}, {(errors or lines or ['without a message'])[-1]}"
