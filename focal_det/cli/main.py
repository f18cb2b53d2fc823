"""The command focal-det: which of its commands a line means, and how each ends."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Container, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ..distributed.signals import EndedBySignal, handlers
from ..errors import EXIT_FAULT, EXIT_INTERRUPTED
from .common import ENDING_ERRORS, CommandParser, add_version, prepare_output, report_error

# What the help says of each command. Each is in the module of its name, or in that of _ELSEWHERE, which is imported for
# that command alone: some work where the packages of others are missing, and the help takes no time.
_COMMANDS = {
    "train": "train, evaluate or resume",
    "lr-find": "find a learning rate by a range test",
    "doctor": "what is installed here, what fits together, and what fixes what does not",
    "data": "look at data sets",
    "predict": "detect objects in images, folders and videos",
    "export": "write a trained detector as ONNX or as a program of torch.export, checked against the model",
    "evaluate": "score an exported model against annotations, without Detectron2",
    "report": "one page about a run: scores, curves, confusions, images, configuration",
    "compare": "two runs side by side: keys that differ, curves, AP by class, images where one alone is right",
    "replay": "repeat a diverged training's last step: which image, loss, module and precision",
    "reproduce": "train the rows of a table of the paper and compare the results with the published ones",
    "plot": "draw a figure of the paper",
    "analyze": "count what the focal loss balances, in a training set and in a trained model",
    "completion": "print a script that completes commands, flags and files in a shell",
}

_ELSEWHERE = {"compare": ("report", "add_compare")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 done, 1 a fault while running or writing, 2 bad input and nothing written, 75 stopped by a
        signal with all saved, 130 interrupted. A SIGTERM leaves as SystemExit 143.
    """
    line = list(sys.argv[1:] if argv is None else argv)
    line = line[1:] if line[:1] == ["--"] else line
    if line and line[0] == "train":  # which handles signals and reads its line in ways of its own
        from .train import COMMAND
        from .train import main as train

        return train(line[1:], prog=COMMAND, ends_process=argv is None)
    words = [word for word in line if not word.startswith("-")]  # a flag before the command is an error that names it
    parser = build_parser([word for word in words[:1] if word != "train"])
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


def build_parser(
    complete: Container[str] = tuple(_COMMANDS), kind: type[CommandParser] = CommandParser
) -> CommandParser:
    """Return a parser that knows all commands, and the flags of some, or of all."""
    parser = kind(prog="focal-det", description="Train a detector and use it.")
    add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, summary in _COMMANDS.items():
        if name in complete:
            module, function = _ELSEWHERE.get(name, (name.replace("-", "_"), "add_command"))
            getattr(importlib.import_module(f".{module}", __package__), function)(commands, summary)
        else:
            commands.add_parser(name, help=summary)
    return parser


def _ended_by_sigterm() -> AbstractContextManager[Any]:
    """While open, a SIGTERM ends the process as Ctrl-C does, and what is half written is removed."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        return nullcontext()
    return handlers({signal.SIGTERM: _end})


def _end(number: int, _: Any) -> None:
    raise EndedBySignal(128 + number)
