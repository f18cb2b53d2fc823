"""train_net.py: check everything, then hand a frozen configuration to Detectron2's launcher."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from ..errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAULT, EXIT_INTERRUPTED, EXIT_STOPPED, InputError, TrainingError
from .arguments import parse_arguments
from .common import silence_detectron2
from .signals import PassOn, killed_words, stopping_before_training


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 done, 1 a fault while running, 2 bad input and nothing started, 75 stopped by a signal after
        saving; of a signal before the training began that leaves as SystemExit.
    """
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    silence_detectron2()
    try:
        with stopping_before_training(trains=not (args.eval_only or args.preflight_only)):
            return _run(args)
    except (InputError, ImportError) as error:
        problems = error.problems if isinstance(error, InputError) else [str(error)]
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("stopped outside of training: nothing to save", file=sys.stderr)
        return EXIT_INTERRUPTED
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAULT


def _run(args: argparse.Namespace) -> int:
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..engine.lock import FolderLock
    from .prepare import check, write  # takes seconds to import, which --help need not wait for

    plan = check(args)
    print("\n".join(plan.summary), flush=True)
    if args.preflight_only:
        print("ready: nothing was written")
        return EXIT_DONE
    alone = args.machine_rank == 0 and not args.eval_only
    with FolderLock(plan.job.cfg.OUTPUT_DIR) if alone else nullcontext():
        write(plan)
        return _launch(args, plan.job)


def _launch(args: argparse.Namespace, job: Any) -> int:
    """Run the job in its processes; the exit code."""
    from detectron2.engine import launch
    from torch.multiprocessing import ProcessExitedException

    from ..engine.job import run_job

    stopped = multiprocessing.get_context("spawn").Event()
    # One alone is the process that trains, and listens itself.
    signals = PassOn() if args.num_gpus * args.num_machines > 1 else None
    try:
        launch(
            run_job,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(job, stopped),
        )
    except ProcessExitedException as error:
        if signals is not None and not args.eval_only and signals.ended_before_listening(error.exit_code):
            return EXIT_STOPPED
        if error.exit_code < 0:
            rank = args.machine_rank * args.num_gpus + error.error_index
            raise TrainingError(killed_words(rank, error.exit_code)) from None
        return error.exit_code  # the rank has said why
    return EXIT_STOPPED if stopped.is_set() else EXIT_DONE
