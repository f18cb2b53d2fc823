"""The command focal-det: what there is to do besides training."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import EXIT_BAD_INPUT, EXIT_FAULT, EXIT_INTERRUPTED, InputError, TrainingError
from .common import print_any_name, print_problems, silence_detectron2

# Each in the module of its name, imported for that command alone: some work where the packages of others are missing.
_COMMANDS = ("doctor", "data", "predict", "export", "evaluate", "report", "replay", "reproduce", "plot", "analyze")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 done, 1 a fault while running or writing, 2 bad input and nothing written, 75 stopped by a
        signal with all saved, 130 interrupted. A SIGTERM leaves as SystemExit 143.
    """
    words = sys.argv[1:] if argv is None else argv
    parser = _parser(words)
    args, rest = parser.parse_known_args(words)
    if rest and (not hasattr(args, "overrides") or any(word.startswith("--") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # KEY VALUE behind a flag, where argparse no longer looks for them
        args.overrides = [*args.overrides, *rest]
    silence_detectron2()
    print_any_name()
    try:
        with _ended_by_sigterm():
            return int(args.run(args))
    except (InputError, ImportError) as error:
        print_problems(error.problems if isinstance(error, InputError) else [str(error)])
        return EXIT_BAD_INPUT
    except BrokenPipeError:  # of `--list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAULT
    except (OSError, TrainingError) as error:
        print_problems([str(error)])
        return EXIT_FAULT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """While open, a SIGTERM ends the process as Ctrl-C does, with what is half made removed."""
    if threading.current_thread() is not threading.main_thread():  # where none can be heeded
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="focal-det", description="Tools around the detector.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in words[:1] if words and words[0] in _COMMANDS else _COMMANDS:
        importlib.import_module(f".{name}", __package__).add_command(commands)
    return parser
