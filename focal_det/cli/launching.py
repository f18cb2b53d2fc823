"""Start the processes of a training by Detectron2's launcher, or be one of those that torchrun or SLURM started.

Either way the input is checked first, all are called before anything long, and what rank 0 decided holds for all.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import re
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import DEFAULT_TIMEOUT, launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from ..data.catalog import prepare_shapes
from ..engine.devices import gpu_id, gpu_of
from ..engine.job import Job, run_job
from ..engine.listening import nothing_to_save
from ..engine.processes import Place
from ..engine.roll_call import call_roll, reach_all
from ..engine.store import Caller, first_line, open_store
from ..errors import EXIT_DONE, EXIT_FAULT, EXIT_STOPPED, InputError, TrainingError
from .common import print_problems
from .prepare import Plan, check, write
from .resuming import folder_taken
from .signals import PassOn, hear_what_was_asked, killed_words, stopping_signal
from .start_watch import StartWatch
from .together import Together, see_folder

_REACH_SECONDS = 60.0  # for ranks that have started to reach one another


def run_as_launcher(args: argparse.Namespace) -> int:
    """Check, write, call the other machines if there are any, and start this machine's processes.

    Returns:
        The exit code.

    Raises:
        InputError: bad input, or a port in use.
        TrainingError: a machine did not come.
    """
    plan = check(args)
    print("\n".join(plan.summary), flush=True)
    if args.preflight_only:
        print("ready: nothing was written")
        return EXIT_DONE
    with ExitStack() as held:
        if args.machine_rank == 0 and plan.resumption is not None:
            held.enter_context(folder_taken(plan.job.cfg.OUTPUT_DIR, plan.resumption))
        _come_together(args, plan)
        return _launch(args, plan.job)


def _come_together(args: argparse.Namespace, plan: Plan) -> None:
    """Write what the job reads, between opening the port, which shows whether it is free, and the roll call.

    The store is closed at the end, and its port is free for the ranks.
    """
    address = re.fullmatch(r"tcp://(.+):(\d+)", args.dist_url)
    if address is None or args.num_gpus * args.num_machines == 1:
        write(plan)
        return
    draws_alone = args.machine_rank > 0 and not args.eval_only  # machine 0 writes into the OUTPUT_DIR of all
    started = f"--num-machines {args.num_machines} --num-gpus {args.num_gpus}"
    caller = Caller(
        args.machine_rank, args.num_machines, "machine", address[1], int(address[2]), started, args.start_timeout
    )
    deadline = time.monotonic() + args.start_timeout
    store = open_store(caller, deadline, is_host=args.machine_rank == 0)
    if draws_alone:
        prepare_shapes(plan.dataset_names)
    else:
        write(plan)
    call_roll(store, caller, deadline)


def _launch(args: argparse.Namespace, job: Job) -> int:
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # ranks that are ended say why
    stopped = multiprocessing.get_context("spawn").Event()
    # One alone is the process that trains, and listens itself.
    signals = PassOn() if args.num_gpus * args.num_machines > 1 else None
    for tries_left in (1, 0):
        start = StartWatch(args.num_gpus, args.machine_rank, args.start_timeout + _REACH_SECONDS)
        try:
            start.begin(args.num_gpus * args.num_machines)
            launch(
                _run_rank,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(job, stopped, start.reached, signals.asked if signals else None),
            )
            break
        except ProcessRaisedException as error:
            if "EADDRINUSE" not in str(error):
                raise
            if args.dist_url != "auto" or not tries_left:
                raise TrainingError(
                    f"the port of --dist-url {args.dist_url} was taken by another process while this one started: "
                    "run again, or name another port"
                ) from None
            print("warning: the free port was taken by another process; trying another", file=sys.stderr, flush=True)
        except ProcessExitedException as error:
            if start.words:
                raise TrainingError(start.words) from None
            if args.eval_only and (number := stopping_signal(error.exit_code)):
                print(nothing_to_save(number), file=sys.stderr, flush=True)
                return 128 + number
            if signals is not None and not args.eval_only and signals.ended_before_listening(error.exit_code):
                return EXIT_STOPPED
            if error.exit_code < 0:
                rank = args.machine_rank * args.num_gpus + error.error_index
                raise TrainingError(killed_words(rank, error.exit_code, trains=not args.eval_only)) from None
            return error.exit_code  # the rank has said why
        finally:
            start.end()
    return EXIT_STOPPED if stopped.is_set() else EXIT_DONE


def _run_rank(job: Job, stopped: Any, reached: Sequence[Any], asked: Any) -> None:
    """The job as rank 0's machine has decided it, with its seed and its checkpoint to go on from."""
    if asked is not None:
        hear_what_was_asked(asked)
    reached[comm.get_local_rank()].set()
    try:
        reach_all()
        job = comm.all_gather(job)[0]
        if comm.get_world_size() > job.processes_per_machine and not job.eval_only:
            with Together() as together:
                see_folder(together, Path(job.cfg.OUTPUT_DIR))
        run_job(job, stopped)
    except TrainingError as error:
        if comm.get_world_size() == 1:  # this is the process that was started, which says it
            raise
        print_problems([str(error)])
        raise SystemExit(EXIT_FAULT) from None


def run_as_rank(args: argparse.Namespace, place: Place) -> int:
    """Be one of the processes that torchrun or SLURM started: rank 0 checks, writes and tells the others.

    Returns:
        The exit code, the same in all processes.

    Raises:
        InputError: flags that would start other processes.
        TrainingError: a rank did not come, or does not answer.
    """
    if (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url) != (1, 1, 0, "auto"):
        raise InputError(
            f"{place.started_by} has started {place.world_size} processes; leave out --num-gpus, --num-machines, "
            "--machine-rank and --dist-url, which would start others"
            + (", or keep them with `env -u SLURM_STEP_ID python ...`" if place.started_by == "SLURM" else "")
        )
    args.num_gpus, args.num_machines = place.processes_per_machine, place.world_size // place.processes_per_machine
    args.dist_url = f"tcp://{place.host}:{place.port}"
    _join(place, args.start_timeout)
    try:
        return _run_together(args, place)
    finally:
        dist.destroy_process_group()


def _join(place: Place, seconds: float) -> None:
    gpus = torch.cuda.device_count()
    gpu = ""
    if gpus:
        torch.cuda.set_device(gpu_of(place.local_rank, gpus))
        gpu = gpu_id(torch.cuda.current_device())
    started = f"{place.world_size} processes, {place.processes_per_machine} on each machine"
    caller = Caller(place.rank, place.world_size, "rank", place.host, place.port, started, seconds, gpu)
    deadline = time.monotonic() + seconds
    is_host = place.rank == 0 and not place.store_is_there
    server = open_store(caller, deadline, is_host=is_host)
    store = call_roll(server, caller, deadline)
    server.set_timeout(timedelta(seconds=60))
    try:
        dist.init_process_group(
            "nccl" if gpus else "gloo",
            store=store,
            rank=place.rank,
            world_size=place.world_size,
            timeout=DEFAULT_TIMEOUT,
        )
    except RuntimeError as error:
        raise TrainingError(f"rank {place.rank} did not reach the others: {first_line(error)}") from error
    reach_all()
    comm.create_local_process_group(place.processes_per_machine)


def _run_together(args: argparse.Namespace, place: Place) -> int:
    with ExitStack() as held:
        with Together() as together:
            plan = together.do(lambda: _decide(args, held) if place.rank == 0 else None)
            if args.preflight_only:
                if place.rank == 0:
                    print("ready: nothing was written")
                return EXIT_DONE
            job, names = comm.all_gather((plan.job, plan.dataset_names) if plan else None)[0]
            # its machine's first draws the shapes, unless that is rank 0, which writes the rest, too
            together.do(lambda: write(plan) if plan else prepare_shapes(names if place.local_rank == 0 else ()))
            if not args.eval_only:
                see_folder(together, Path(job.cfg.OUTPUT_DIR))
        stopped = threading.Event()
        run_job(job, stopped)
        return EXIT_STOPPED if stopped.is_set() else EXIT_DONE


def _decide(args: argparse.Namespace, held: ExitStack) -> Plan:
    plan = check(args, own_gpu=torch.cuda.device_count() == 1)
    print("\n".join(plan.summary), flush=True)
    if not args.preflight_only and plan.resumption is not None:
        held.enter_context(folder_taken(plan.job.cfg.OUTPUT_DIR, plan.resumption))
    return plan
