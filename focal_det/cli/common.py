"""What the command lines share."""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from ..data.picture_names import FLAG as OUTSIDE_FLAG
from ..errors import InputError, visible_lines


def silence_detectron2() -> None:
    """Keep PyTorch's warning of Detectron2's use of torch.jit from the screen."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")


def print_any_name() -> None:
    """Let names of files be printed, which need not be in the terminal's encoding."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_problems(problems: Sequence[str], kind: str = "error") -> None:
    """Each on a line of its own, or several, on stderr, with what would command the terminal as escapes."""
    print(visible_lines("\n".join(f"{kind}: {problem}" for problem in problems)), file=sys.stderr, flush=True)


def folder_name(text: str) -> Path:
    """The type of --out; an empty name, as an unset variable leaves it, is none."""
    if not text or "\0" in text:
        raise ValueError
    return Path(text)


folder_name.__name__ = "folder"  # what argparse calls one that it cannot read


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add --out, the folder of figures."""
    default = Path("output/plots")
    parser.add_argument("--out", type=folder_name, default=default, metavar="DIR", help=f"default: {default}")


def add_outside_flag(parser: argparse._ActionsContainer) -> None:
    """Add --allow-outside-images."""
    parser.add_argument(
        OUTSIDE_FLAG,
        dest="allow_outside",
        action="store_true",
        help="read pictures whose names in the annotations lead out of the folder of pictures (absolute, or by '..')",
    )


def add_trust_flag(parser: argparse._ActionsContainer) -> None:
    """Add --trust-model."""
    parser.add_argument(
        "--trust-model", action="store_true", help="open --model though it is a .pt2, which can run any program"
    )


def make_folder(folder: Path) -> None:
    """Make the folder of --out.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: no folder that can be made ({error}); name another") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"--out {folder}: a folder that cannot be written; name another")
