"""Start the processes of a training by Detectron2's launcher, or be one of those that torchrun or SLURM started.

Either way the input is checked first, all processes join before anything long, and what rank 0 decided holds for all.
What ends them, and with which exit code, is in the docstring of `distributed`.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from .checkpoint.resume import folder_taken
from .config.plugins import load_plugins
from .data.catalog import prepare_shapes
from .distributed import signals
from .distributed.cluster import ClusterEnvironment
from .distributed.join import (
    WHICH_NETWORK,
    StartDeadline,
    check_shared_folder,
    join_process_group,
    joint_start,
    leave_errors_to_the_watch,
    reach_all,
)
from .distributed.rendezvous import Rendezvous
from .distributed.watchdog import RankWatchdog
from .engine.run import Job, run_job
from .environment import check_interface, gpu_id, gpu_of
from .errors import EXIT_DONE, EXIT_STOPPED, InputError, TrainingError, first_line
from .files import FolderLock
from .preflight.options import TrainOptions
from .preflight.plan import Plan, check, configured_device, write


def run_as_launcher(options: TrainOptions) -> int:
    """Check, write, meet the other machines if there are any, and start this machine's processes; return the exit code.

    Raises InputError for bad input or a port in use, TrainingError where a machine did not join.
    """
    if options.world_size > 1:
        check_interface()
    with ExitStack() as held:
        plan = _decide(options, held)
        if options.preflight_only:
            print("ready: nothing was written")
            return EXIT_DONE
        _write_and_meet(options, plan)
        job = plan.job
        del plan  # which may hold the contents of annotation files
        try:
            return _launch(options, job)
        finally:
            if options.world_size > 1:
                signals.ignore_signals()  # there is nothing left to forward them to


def _write_and_meet(options: TrainOptions, plan: Plan) -> None:
    """Write what the job reads, between opening the port, which shows whether it is free, and the roll call.

    The store is closed at the end, and its port is free for the ranks.
    """
    address = re.fullmatch(r"tcp://(.+):(\d+)", options.dist_url)
    if address is None or options.world_size == 1:
        write(plan)
        return
    on = plan.job.cfg.MODEL.DEVICE
    started = f"--num-machines {options.num_machines} --num-gpus {options.num_gpus} and trains on {on}"
    place = options.machine_rank, options.num_machines, "machine", address[1], int(address[2])
    rendezvous = Rendezvous(*place, started, options.start_timeout)
    store = rendezvous.open_store(is_host=options.machine_rank == 0)
    if options.machine_rank > 0 and not options.eval_only:
        prepare_shapes(plan.dataset_names)  # machine 0 writes into the OUTPUT_DIR of all
    else:
        write(plan)
    rendezvous.call_roll(store)


def _launch(options: TrainOptions, job: Job) -> int:
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # ranks that are ended say why
    if options.world_size == 1:  # the process that trains, which listens itself
        return _run_all(options, job, None)
    with _environment_of_ranks(job.cfg.MODEL.DEVICE):
        return _run_all(options, job, signals.SignalForwarder().requested)


@contextmanager
def _environment_of_ranks(device: str) -> Iterator[None]:
    """While open, the ranks that are started leave NCCL's errors to the watch, and see no GPU if they use none."""
    before = dict(os.environ)
    leave_errors_to_the_watch()
    if device == "cpu":  # else Detectron2 chooses NCCL, and takes memory of the GPUs
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run_all(options: TrainOptions, job: Job, requested: Any) -> int:
    """Start this machine's ranks, on another port if a free one was taken meanwhile; return the job's exit code."""
    stopped = multiprocessing.get_context("spawn").Event()
    first = options.machine_rank * options.num_gpus
    for tries_left in (1, 0):
        start = StartDeadline(options.num_gpus, first, options.start_timeout)
        try:
            with nullcontext() if requested is None else start:
                launch(
                    _run_rank,
                    options.num_gpus,
                    num_machines=options.num_machines,
                    machine_rank=options.machine_rank,
                    dist_url=options.dist_url,
                    args=(job, stopped, start.reached, requested, options.start_timeout),
                )
            break
        except ProcessRaisedException as error:
            if "EADDRINUSE" not in str(error):  # it was raised before the rank's own work, which tells what it raises
                raised = re.findall(r"^[\w.]*(?:Error|Exception): .*", str(error), re.MULTILINE)
                why, rank = raised[-1] if raised else first_line(error), first + error.error_index
                raise TrainingError(f"rank {rank} could not start ({why}): {WHICH_NETWORK}") from None
            if options.dist_url != "auto" or not tries_left:
                raise TrainingError(
                    f"the port of --dist-url {options.dist_url} was taken by another process while this one started: "
                    "run again, or name another port"
                ) from None
            print("warning: the free port was taken by another process; trying another", file=sys.stderr, flush=True)
        except ProcessExitedException as error:
            if start.message:
                raise TrainingError(start.message) from None
            return _exit_code(options, error, first + error.error_index, requested)
    return EXIT_STOPPED if stopped.is_set() else EXIT_DONE


def _exit_code(options: TrainOptions, error: ProcessExitedException, rank: int, requested: Any) -> int:
    """Return the job's exit code after the first rank that did not end with 0, and say why where the rank could not."""
    number = signals.stopping_signal(error.exit_code)
    if number and options.eval_only:
        print(signals.nothing_to_save(number), file=sys.stderr, flush=True)
        return 128 + number
    if error.exit_code >= 0:
        return error.exit_code  # the rank has said why
    if number and requested is not None and requested.value:  # it did not listen yet
        print(signals.nothing_trained(requested.value), file=sys.stderr, flush=True)
        return EXIT_STOPPED
    raise TrainingError(signals.killed_message(rank, error.exit_code, trains=not options.eval_only)) from None


def _run_rank(job: Job, stopped: Any, reached: Sequence[Any], requested: Any, start_timeout: float) -> None:
    """Run the job as rank 0's machine has decided it, with its seed and its checkpoint to resume from."""
    if requested is not None:
        signals.resend_requested(requested)
    with RankWatchdog(job.hang_timeout) as watchdog:
        load_plugins(job.plugins)
        reached[comm.get_local_rank()].set()
        reach_all(start_timeout)
        job = comm.all_gather(job)[0]
        if watchdog.ranks > job.processes_per_machine and not job.eval_only:
            with joint_start() as start:
                check_shared_folder(start, Path(job.cfg.OUTPUT_DIR))
        run_job(job, stopped, watchdog)


def run_as_rank(options: TrainOptions, cluster: ClusterEnvironment) -> int:
    """Be one of the processes that torchrun or SLURM started: rank 0 checks, writes and tells the others.

    Returns the exit code, the same in all processes. Raises InputError for flags that would start other processes,
    TrainingError where a rank did not join, or does not answer.
    """
    if (options.num_gpus, options.num_machines, options.machine_rank, options.dist_url) != (1, 1, 0, "auto"):
        raise InputError(
            f"{cluster.started_by} has started {cluster.world_size} processes; leave out --num-gpus, --num-machines, "
            "--machine-rank and --dist-url, which would start others"
            + (", or keep them with `env -u SLURM_STEP_ID python ...`" if cluster.started_by == "SLURM" else "")
        )
    per_machine, address = cluster.processes_per_machine, f"tcp://{cluster.host}:{cluster.port}"
    machines = cluster.world_size // per_machine
    options = replace(options, num_gpus=per_machine, num_machines=machines, dist_url=address)
    check_interface()
    gpu = ""
    if gpus := torch.cuda.device_count():
        torch.cuda.set_device(gpu_of(cluster.local_rank, gpus))
        gpu = gpu_id(torch.cuda.current_device())
    device = configured_device(options) if cluster.rank == 0 else ""
    join_process_group(cluster, options.start_timeout, gpu=gpu, gpus=gpus, device=device)
    with ExitStack() as held, RankWatchdog(options.hang_timeout) as watchdog:
        return _run_together(options, cluster, watchdog, held)


def _run_together(options: TrainOptions, cluster: ClusterEnvironment, watchdog: RankWatchdog, held: ExitStack) -> int:
    with joint_start() as start:
        reach_all(options.start_timeout)  # a rank that left it on a signal would be missed by the others
        own_gpu = torch.cuda.device_count() == 1
        plan = start.do(lambda: _decide(options, held, own_gpu=own_gpu) if cluster.rank == 0 else None)
        if options.preflight_only:
            if cluster.rank == 0:
                print("ready: nothing was written")
            return EXIT_DONE
        job, names = comm.all_gather((plan.job, plan.dataset_names) if plan else None)[0]
        # The first of each machine draws the shapes; rank 0 writes the rest, too.
        start.do(lambda: write(plan) if plan else prepare_shapes(names if cluster.local_rank == 0 else ()))
        if not options.eval_only:
            check_shared_folder(start, Path(job.cfg.OUTPUT_DIR))
    stopped = threading.Event()
    run_job(job, stopped, watchdog)
    return EXIT_STOPPED if stopped.is_set() else EXIT_DONE


def _decide(options: TrainOptions, held: ExitStack, *, own_gpu: bool = False) -> Plan:
    """Check, say what the run is about to do, and take its folder, where this is the process that writes there."""
    plan = check(options, own_gpu=own_gpu)
    print("\n".join(plan.summary), flush=True)
    if not options.preflight_only and options.machine_rank == 0:
        folder = plan.job.cfg.OUTPUT_DIR
        # an evaluation, too, writes the log and inference/
        held.enter_context(folder_taken(folder, plan.resumption) if plan.resumption else FolderLock(folder))
    return plan
