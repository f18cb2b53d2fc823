"""The command focal-det: which of its commands a line means, and how each ends."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ..distributed.signals import EndedBySignal, handlers
from ..errors import EXIT_FAULT, EXIT_INTERRUPTED
from .common import ENDING_ERRORS, CommandParser, add_version, prepare_output, report_error

# Each in the module of its name, imported for that command alone: some work where the packages of others are missing.
_COMMANDS: tuple[str, ...] = ("train", "doctor", "data", "predict", "export", "evaluate", "report", "replay")
_COMMANDS += ("reproduce", "plot", "analyze", "completion")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 done, 1 a fault while running or writing, 2 bad input and nothing written, 75 stopped by a
        signal with all saved, 130 interrupted. A SIGTERM leaves as SystemExit 143.
    """
    line = sys.argv[1:] if argv is None else argv
    if line and line[0] == "train":  # which handles signals and reads its line in ways of its own
        from .train import COMMAND
        from .train import main as train

        return train(line[1:], prog=COMMAND, ends_process=argv is None)
    parser = build_parser(line[:1] if line and line[0] in _COMMANDS else _COMMANDS)
    args, rest = parser.parse_known_args(line)
    if rest and (not hasattr(args, "overrides") or any(word.startswith("--") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # KEY VALUE behind a flag, where argparse no longer looks for them
        args.overrides = [*args.overrides, *rest]
    prepare_output()
    try:
        with _ended_by_sigterm():
            if getattr(args, "plugin", None):
                from ..config.plugins import load_plugins

                load_plugins(args.plugin)
            return int(args.run(args))
    except BrokenPipeError:  # from `--list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAULT
    except ENDING_ERRORS as error:
        return report_error(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def build_parser(names: Sequence[str] = _COMMANDS, kind: type[CommandParser] = CommandParser) -> CommandParser:
    """Return the parser of some commands, or of all."""
    parser = kind(prog="focal-det", description="Train a detector and use it.")
    add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in names:
        importlib.import_module(f".{name}", __package__).add_command(commands)
    return parser


def _ended_by_sigterm() -> AbstractContextManager[Any]:
    """While open, a SIGTERM ends the process as Ctrl-C does, and what is half written is removed."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        return nullcontext()
    return handlers({signal.SIGTERM: _end})


def _end(number: int, _: Any) -> None:
    raise EndedBySignal(128 + number)
