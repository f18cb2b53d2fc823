"""train_net.py: from the command line to an exit code."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from ..engine.listening import nothing_to_save
from ..errors import EXIT_BAD_INPUT, EXIT_FAULT, EXIT_INTERRUPTED, InputError, TrainingError
from .arguments import parse_arguments
from .common import print_any_name, print_problems, silence_detectron2
from .signals import stopping_before_training


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 done, 1 a fault while running, 2 bad input and nothing started, 75 stopped by a signal after
        saving; of a signal before the training began that leaves as SystemExit.
    """
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    silence_detectron2()
    print_any_name()
    try:
        with stopping_before_training(trains=not (args.eval_only or args.preflight_only)):
            return _run(args)
    except (InputError, ImportError) as error:
        print_problems(error.problems if isinstance(error, InputError) else [str(error)])
        return EXIT_BAD_INPUT
    except (OSError, TrainingError) as error:
        print_problems([str(error)])
        return EXIT_FAULT
    except KeyboardInterrupt:
        print(nothing_to_save(signal.SIGINT), file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            # when the first rank has ended, torchrun sends a SIGTERM to the others, which are about to end likewise
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _run(args: argparse.Namespace) -> int:
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..engine.processes import place_from_environment
    from .launching import run_as_launcher, run_as_rank  # takes seconds to import, which --help need not wait for

    place = place_from_environment(os.environ)
    return run_as_launcher(args) if place is None else run_as_rank(args, place)
