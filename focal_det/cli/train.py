"""train_net.py: check everything, then hand a frozen configuration to Detectron2's launcher."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from ..errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    InputError,
    TrainingError,
)
from .arguments import parse_arguments
from .common import silence_detectron2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 done, 1 a fault that says what to do, 2 bad input and nothing started, 75 stopped by a signal
        after saving. Any other fault while running leaves as its exception, which Python turns into 1.
    """
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    silence_detectron2()
    before = signal.signal(signal.SIGTERM, _end)
    try:
        return _run(args)
    except (InputError, ImportError) as error:
        problems = error.problems if isinstance(error, InputError) else [str(error)]
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAULT
    except KeyboardInterrupt:
        print("stopped outside of training: nothing to save", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(args: argparse.Namespace) -> int:
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..engine.lock import FolderLock
    from .prepare import check, write  # takes seconds to import, which --help need not wait for
    from .resuming import take_folder

    plan = check(args)
    print("\n".join(plan.summary), flush=True)
    if args.preflight_only:
        print("ready: nothing was written")
        return EXIT_DONE
    alone = args.machine_rank == 0 and not args.eval_only
    with FolderLock(plan.job.cfg.OUTPUT_DIR) if alone else nullcontext():
        if alone and plan.resumption is not None:
            take_folder(plan.job.cfg.OUTPUT_DIR, plan.resumption)
        write(plan)
        return EXIT_STOPPED if _launch(args, plan.job) else EXIT_DONE


def _end(number: int, _: Any) -> None:
    """Outside of training a SIGTERM ends the process as Ctrl-C does, with what is half made removed."""
    raise SystemExit(128 + number)


def _launch(args: argparse.Namespace, job: Any) -> bool:
    """Run the job in its processes; whether a signal stopped it."""
    from detectron2.engine import launch

    from ..engine.hooks import STOP_SIGNALS
    from ..engine.job import run_job

    stopped = multiprocessing.get_context("spawn").Event()
    if args.num_gpus * args.num_machines > 1:  # else this process is the one that trains, and listens itself
        for number in STOP_SIGNALS:
            signal.signal(number, _pass_on)
    launch(
        run_job,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(job, stopped),
    )
    return stopped.is_set()


def _pass_on(number: int, _: Any) -> None:
    for process in multiprocessing.active_children():
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, number)
