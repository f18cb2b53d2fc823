"""Ranks that start together leave together: what ends one of them before the training ends all, with one exit code."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.utils import comm

from .. import errors
from .cluster import ClusterEnvironment
from .rendezvous import Rendezvous, in_time
from .signals import STOP_SIGNALS, handlers

# Of every process group: what ends a wait is --hang-timeout, which leaves out the time of a suspended job.
NO_TIMEOUT = timedelta(days=365)
_SEEN_WITHIN = 60.0  # seconds; NFS may say for that long that a new folder is not there
WHICH_NETWORK = (
    "Is there a firewall between the machines, or does the own name of one lead to itself (127.0.1.1 in /etc/hosts)? "
    "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network to use; NCCL_DEBUG=INFO says what NCCL tries"
)
T = TypeVar("T")


def join_process_group(cluster: ClusterEnvironment, seconds: float, *, gpu: str, gpus: int, device: str) -> None:
    """Join the process group of a job that torchrun or SLURM started, and Detectron2's group of this machine.

    The options are those of `Rendezvous`. Raises TrainingError where a rank did not join, or does not answer.
    """
    per_machine = cluster.processes_per_machine
    started = f"{cluster.world_size} processes, {per_machine} on each machine"
    place = cluster.rank, cluster.world_size, "rank", cluster.host, cluster.port
    rendezvous = Rendezvous(*place, started, seconds, gpu, gpus, device, f"{cluster.rank // per_machine}")
    server = rendezvous.open_store(is_host=cluster.rank == 0 and not cluster.store_is_there)
    store = rendezvous.call_roll(server)
    server.set_timeout(timedelta(seconds=seconds))
    leave_errors_to_the_watch()
    backend, spare = store.get("go").decode(), store.clone()  # the group keeps the store, and may be stuck at it

    def join() -> None:
        dist.init_process_group(backend, store=store, rank=cluster.rank, world_size=cluster.world_size)
        comm.create_local_process_group(per_machine)

    try:  # gloo connects to all others at once, and would wait for half an hour
        in_time(join, seconds)
    except (RuntimeError, futures.TimeoutError) as error:
        why = errors.first_line(error) if isinstance(error, RuntimeError) else f"not within {seconds:g} s"
        rendezvous.end(spare, f"rank {cluster.rank} did not reach the others ({why}): {WHICH_NETWORK}")


def reach_all(seconds: float) -> None:
    """Sum a number over all ranks, on the device that they train on, and then let all groups wait without limit.

    With one rank nothing is done. Raises TrainingError if that is not done within `seconds`, with the ranks that are
    missing where they can be known; a thread of this process may then be stuck in it.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    limit, on_gpu = timedelta(seconds=seconds), dist.get_backend() == "nccl"
    try:
        group = dist.new_group(backend="gloo", timeout=limit)
        assert isinstance(group, dist.ProcessGroup)  # all ranks are in it
        dist.monitored_barrier(group, timeout=limit, wait_all_ranks=True)
    except RuntimeError as error:
        raise errors.TrainingError(
            f"not all ranks answer within {seconds:g} s ({errors.first_line(error)}): {WHICH_NETWORK}"
        ) from error
    what = "all ranks answer, but their GPUs" if on_gpu else "all ranks answer, but they"
    gpu = torch.cuda.current_device() if on_gpu else None

    def add_up() -> float:
        if gpu is not None:
            torch.cuda.set_device(gpu)  # of this thread
        total = torch.ones(1, device="cpu" if gpu is None else "cuda")
        dist.all_reduce(total)
        return total.item()

    try:  # where NCCL finds no network, it waits for ever
        added = in_time(add_up, seconds)
    except futures.TimeoutError:
        raise errors.TrainingError(f"{what} did not add up a number within {seconds:g} s: {WHICH_NETWORK}") from None
    except RuntimeError as error:
        why = errors.first_line(error)
        raise errors.TrainingError(f"{what} cannot add up a number ({why}): {WHICH_NETWORK}") from error
    if added != dist.get_world_size():
        raise errors.TrainingError(f"the sum of ones over {dist.get_world_size()} ranks is {added:g}")
    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # before PyTorch 2.15
    for each in (dist.group.WORLD, comm.get_local_process_group(), comm._get_global_gloo_group()):
        set_timeout(NO_TIMEOUT, each)


def leave_errors_to_the_watch() -> None:
    """Let NCCL not abort the ranks that are left when one is gone: `RankWatchdog` ends them, with that one's name.

    To be called before the process group is made; ranks that are started then inherit it. The user's value wins.
    """
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")


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

        Raises SystemExit on all ranks, if one failed, with 2 for bad input, 1 for a fault, or a signal's code.
        """
        result, code, problems = self._outcome(work)
        outcomes = comm.all_gather((code, problems))
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
    """While open, watch that the ranks of this machine get as far as their own work in time; else kill them.

    They have `seconds`; `first` is the number of the first of them.
    """

    def __init__(self, ranks: int, first: int, seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.reached = [context.Event() for _ in range(ranks)]  # which the ranks set
        self.message = ""  # which ranks were late, if they were killed
        self._first, self._timer = first, threading.Timer(seconds, self._kill_if_late)

    def __enter__(self) -> StartDeadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _kill_if_late(self) -> None:
        late = [str(self._first + rank) for rank, event in enumerate(self.reached) if not event.is_set()]
        if late:
            self.message = (
                f"rank{'s' if len(late) > 1 else ''} {', '.join(late)} did not reach the others within "
                f"{self._timer.interval:g} s (--start-timeout): has one ended on another machine? {WHICH_NETWORK}"
            )
            for process in multiprocessing.active_children():
                process.kill()
