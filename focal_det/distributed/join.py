"""Ranks that start together leave together: what ends one of them before the training ends all, with one exit code."""

from __future__ import annotations

import multiprocessing
import secrets
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.engine import DEFAULT_TIMEOUT
from detectron2.utils import comm

from .. import errors
from .cluster import ClusterEnvironment
from .rendezvous import REACH_SECONDS, Rendezvous, reach_all
from .signals import STOP_SIGNALS, handlers

_SEEN_WITHIN = 60.0  # seconds; NFS may say for that long that a new folder is not there
T = TypeVar("T")


def join_process_group(cluster: ClusterEnvironment, seconds: float, gpu: str) -> None:
    """Join the process group of a job that torchrun or SLURM started, and Detectron2's group of this machine.

    `seconds` and `gpu` are those of `Rendezvous`. Raises TrainingError where a rank did not join, or does not answer.
    """
    started = f"{cluster.world_size} processes, {cluster.processes_per_machine} on each machine"
    place = cluster.rank, cluster.world_size, "rank", cluster.host, cluster.port
    rendezvous = Rendezvous(*place, started, seconds, gpu)
    server = rendezvous.open_store(is_host=cluster.rank == 0 and not cluster.store_is_there)
    store = rendezvous.call_roll(server)
    server.set_timeout(timedelta(seconds=60))
    try:
        backend, size = "nccl" if torch.cuda.device_count() else "gloo", cluster.world_size
        dist.init_process_group(backend, store=store, rank=cluster.rank, world_size=size, timeout=DEFAULT_TIMEOUT)
    except RuntimeError as error:
        message = f"rank {cluster.rank} did not reach the others: {errors.first_line(error)}"
        raise errors.TrainingError(message) from error
    reach_all()
    comm.create_local_process_group(cluster.processes_per_machine)


class JointStart:
    """Work that all ranks do at once before the training, each its part; see `joint_start`."""

    def __init__(self) -> None:
        self.works, self.pending = False, 0  # whether this rank works rather than waits; the signal that came in a wait
        self.before: dict[int, Any] = {}

    def on_signal(self, number: int, frame: Any) -> None:
        """Let a signal end the work, or note it in a wait, which it cannot end."""
        if self.works:
            self.before[number](number, frame)
        else:
            self.pending = number

    def do(self, work: Callable[[], T]) -> T:
        """Do this rank's part; return what it returns, when all ranks have done theirs.

        Raises:
            SystemExit: on all ranks, if one failed, with 2 for bad input, 1 for a fault, or a signal's code.
            TrainingError: a rank is gone.
        """
        result, code, problems = self._outcome(work)
        try:
            outcomes = comm.all_gather((code, problems))
        except RuntimeError as error:
            message = f"a rank ended while all started: look at its messages ({errors.first_line(error)})"
            raise errors.TrainingError(message) from error
        codes = {code for code, _ in outcomes} - {errors.EXIT_DONE}
        if not codes:
            return result  # type: ignore[return-value]
        if comm.is_main_process():
            errors.print_problems(list(dict.fromkeys(problem for _, of_rank in outcomes for problem in of_rank)))
        comm.synchronize()  # none ends before that is said
        raise SystemExit(errors.EXIT_BAD_INPUT if errors.EXIT_BAD_INPUT in codes else min(codes))

    def _outcome(self, work: Callable[[], T]) -> tuple[T | None, int, list[str]]:
        """Return what the work returned, the exit code that it ended with, and the problems to print."""
        try:
            try:
                self.works = True
                if self.pending:
                    self.before[self.pending](self.pending, None)
                return work(), errors.EXIT_DONE, []
            finally:
                self.works = False
        except errors.InputError as error:
            return None, errors.EXIT_BAD_INPUT, error.problems
        except errors.TrainingError as error:
            return None, errors.EXIT_FAULT, [str(error)]
        except KeyboardInterrupt:
            return None, errors.EXIT_INTERRUPTED, []
        except SystemExit as error:
            return None, error.code if isinstance(error.code, int) else errors.EXIT_FAULT, []
        except BaseException as error:
            if not isinstance(error, OSError | MemoryError):  # the system's need no trace
                traceback.print_exc()
            return None, errors.EXIT_FAULT, [f"rank {comm.get_rank()}: {type(error).__name__}: {error}"]


@contextmanager
def joint_start() -> Iterator[JointStart]:
    """While open, a signal to a rank that waits for the others takes effect when it works next.

    One that came in the last wait is left to the training: signals are blocked from the end on, see `SignalListener`.
    """
    start = JointStart()
    ours = [number for number in STOP_SIGNALS if callable(signal.getsignal(number))]
    with handlers(dict.fromkeys(ours, start.on_signal)) as start.before:
        yield start
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if start.pending:
        signal.pthread_kill(threading.get_ident(), start.pending)


def check_shared_folder(start: JointStart, folder: Path) -> None:
    """Check that all ranks have the same OUTPUT_DIR, by a file that rank 0 makes in it and removes.

    Raises SystemExit on all ranks if one has not; rank 0 has said which.
    """
    mark = folder / f".shared-{comm.all_gather(secrets.token_hex(8))[0]}"
    try:
        start.do(mark.touch if comm.is_main_process() else lambda: None)
        start.do(lambda: _look_for(mark, comm.get_rank()))
    finally:
        if comm.is_main_process():
            mark.unlink(missing_ok=True)


def _look_for(mark: Path, rank: int) -> None:
    deadline = time.monotonic() + _SEEN_WITHIN
    while not mark.exists():
        if time.monotonic() > deadline:
            raise errors.InputError(
                f"OUTPUT_DIR {mark.parent} of rank {rank} is not that of rank 0: name one that all machines share"
            )
        time.sleep(0.1)


class StartDeadline:
    """While open, watch that the `ranks` of this machine get as far as their own work; else kill them.

    They have `start_timeout` seconds, and a minute more to reach one another. The only rank of a job is not watched.
    """

    def __init__(self, ranks: int, machine: int, world_size: int, start_timeout: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.reached = [context.Event() for _ in range(ranks)]  # which the ranks set
        self.message = ""  # which ranks were late, if they were killed
        self._first, self._world_size, self._seconds = machine * ranks, world_size, start_timeout + REACH_SECONDS
        self._over = threading.Event()

    def __enter__(self) -> StartDeadline:
        if self._world_size > 1:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        deadline = time.monotonic() + self._seconds
        while not self._over.wait(0.5):
            late = [str(self._first + rank) for rank, event in enumerate(self.reached) if not event.is_set()]
            if not late:
                return
            if time.monotonic() > deadline:
                self.message = (
                    f"rank{'s' if len(late) > 1 else ''} {', '.join(late)} did not reach the others within "
                    f"{self._seconds:g} s (--start-timeout and a minute): has a rank ended on another machine? Else "
                    "set NCCL_SOCKET_IFNAME to the network between the machines; NCCL_DEBUG=INFO says what NCCL tries"
                )
                for process in multiprocessing.active_children():
                    process.kill()
                return
