"""What the command lines share."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..environment import source_version
from ..errors import (
    EXIT_BAD_INPUT,
    EXIT_FAULT,
    InputError,
    TrainingError,
    print_problems,
    silence_known_warnings,
    visible,
)
from ..extras import missing_message
from ..output_layout import CONFIG

T = TypeVar("T")

_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")  # the form of a configuration's keys

ENDING_ERRORS = (InputError, ImportError, OSError, TrainingError)


class CommandParser(argparse.ArgumentParser):
    """A parser that keeps the lines of the examples that follow a description."""

    def __init__(self, **options: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter if "epilog" in options else argparse.HelpFormatter
        super().__init__(formatter_class=formatter, **options)


class _ShowVersion(argparse.Action):
    """Print the version, and in a checkout the commit, which takes a run of git, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"focal_det {source_version()}")
        parser.exit()


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add --version."""
    text = "print the version of focal_det and exit"
    parser.add_argument("--version", action=_ShowVersion, nargs=0, dest=argparse.SUPPRESS, help=text)


def prepare_output() -> None:
    """Silence what PyTorch warns of without need, and let every file name be printed on any terminal."""
    silence_known_warnings()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_notes(notes: Iterable[str]) -> None:
    """Print each note on a line of its own, with control characters escaped."""
    for note in notes:
        print(visible(note))


def report_error(error: Exception) -> int:
    """Print one of ENDING_ERRORS and return the exit code."""
    text = missing_message(error) if isinstance(error, ImportError) else str(error)
    print_problems(error.problems if isinstance(error, InputError) else [text])
    return EXIT_BAD_INPUT if isinstance(error, (InputError, ImportError)) else EXIT_FAULT


def folder_name(text: str) -> Path:
    """Parse the value of --out; it must not be empty, as an unset variable would leave it."""
    if not text or "\0" in text:
        raise ValueError
    return Path(text)


folder_name.__name__ = "folder"  # argparse's name for it in an error


def list_of(parse: Callable[[str], T], name: str) -> Callable[[str], tuple[T, ...]]:
    """Return a type for argparse: values with commas between, each kept once; errors call it by its name."""

    def parse_list(text: str) -> tuple[T, ...]:
        return tuple(dict.fromkeys(map(parse, text.split(","))))

    parse_list.__name__ = f"list of {name}, with commas between"
    return parse_list


def add_out(parser: argparse.ArgumentParser, default: str = "output/plots") -> None:
    """Add --out, the folder of what is written."""
    parser.add_argument("--out", type=folder_name, default=Path(default), metavar="DIR", help=f"default: {default}")


def add_number(parser: argparse.ArgumentParser, flag: str, default: float, text: str) -> None:
    """Add a flag for a number of the default's type."""
    metavar = "N" if isinstance(default, int) else "T"
    parser.add_argument(flag, type=type(default), default=default, metavar=metavar, help=f"{text} (default: {default})")


def add_plugin_flag(parser: argparse._ActionsContainer) -> None:
    """Add --plugin; `config.plugins.load_plugins` imports what it names."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE|FILE.py",
        help="import this first: it registers losses, keys, data sets, ... of your own; may be given several times",
    )


def add_config(parser: argparse.ArgumentParser, text: str) -> None:
    """Add a configuration, as CONFIG or by --config-file, and KEY VALUE ...; see `configuration_of`."""
    parser.add_argument("config", nargs="?", metavar="CONFIG", help=f"{text}; the same as --config-file")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys to change")
    help_text = "YAML configuration; of several the later ones win"
    parser.add_argument("--config-file", action="append", default=[], metavar="FILE", help=help_text)


def configuration_of(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the configuration files, none if none is named, and KEY VALUE ... of `add_config`."""
    words = [*filter(None, [args.config]), *args.overrides]
    is_named = bool(words) and not args.config_file and not _KEY.fullmatch(words[0])
    return (words[:1], words[1:]) if is_named else (args.config_file, words)


def add_outside_flag(parser: argparse._ActionsContainer) -> None:
    """Add --allow-outside-images."""
    from ..formats.image_files import FLAG  # with Pillow, which `focal-det doctor` may find missing

    parser.add_argument(
        FLAG,
        dest="allow_outside",
        action="store_true",
        help="read images whose names in the annotations lead out of the folder of images (absolute, or by '..')",
    )


def add_tile_flags(parser: argparse._ActionsContainer, does: str = "detect", whose: str = "model") -> None:
    """Add --tile and --overlap, of what a command does in tiles, and where they come from if they are not given."""
    text = f"{does} in square tiles of large images too, of so many pixels; 0: in whole images (default: the {whose}'s)"
    parser.add_argument("--tile", type=int, metavar="N", help=text)
    text = f"share of a tile by which neighbours overlap, in [0, 0.9] (default: the {whose}'s, else 0.2)"
    parser.add_argument("--overlap", type=float, metavar="T", help=text)


def add_trust_flag(parser: argparse._ActionsContainer) -> None:
    """Add --trust-model."""
    parser.add_argument(
        "--trust-model", action="store_true", help="open --model though it is a .pt2, which can run any program"
    )


def too_low(args: argparse.Namespace, least: Mapping[str, int]) -> list[str]:
    """Name the flags whose numbers are below the least that they may be."""
    given = ((flag, getattr(args, flag[2:].replace("-", "_")), low) for flag, low in least.items())
    return [
        f"{flag} {number} must be at least {low}" for flag, number, low in given if number is not None and number < low
    ]


def config_files(given: list[str] | None, weights: str | Path) -> list[str]:
    """Return the values of --config-file, else the config.yaml beside the weights, or raise an InputError."""
    beside = Path(weights).parent / CONFIG
    if not given and not beside.is_file():
        raise InputError(f"{beside} is not there; name the model's configuration with --config-file")
    return given or [str(beside)]


def check_architecture(cfg: Any, what: str) -> None:
    """Raise an InputError for a model of another architecture than what can be analysed or exported."""
    if cfg.MODEL.META_ARCHITECTURE != "FocalRetinaNet":
        raise InputError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; only FocalRetinaNet can be {what}, which also "
            "loads the weights of Detectron2's RetinaNet: add MODEL.META_ARCHITECTURE FocalRetinaNet"
        )


def make_folder(folder: Path, *files: str) -> None:
    """Make the folder of --out, before anything is computed for it.

    Args:
        files: patterns of the names of what is to be written in it.

    Raises:
        InputError: it cannot be made or written, or a folder of such a name is in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: not a folder that can be made ({error}); name another") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"--out {folder}: the folder cannot be written; name another")
    if blocked := sorted(path for pattern in files for path in folder.glob(pattern) if path.is_dir()):
        raise InputError(f"--out {folder}: {blocked[0].name} is to be a file, and is a folder there; name another")
