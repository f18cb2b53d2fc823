"""focal-det completion: the words that a shell completes on a command line."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import EXIT_DONE, InputError
from ..extras import install_command
from .common import CommandParser

_SHELLS = ("bash", "zsh", "tcsh")
_EPILOG = """examples:
  bash    focal-det completion bash > ~/.local/share/bash-completion/completions/focal-det
  zsh     focal-det completion zsh > ~/.zfunc/_focal-det    (with ~/.zfunc in fpath before compinit)
  tcsh    focal-det completion tcsh > ~/.focal-det.tcsh     (and `source` it in ~/.tcshrc)
"""
# What an argument takes, by the metavar that the help shows.
_FILES, _FOLDERS = ("FILE", "MODEL", "INPUT", "MODULE|FILE.py"), ("DIR", "DIR[:SPLIT]", "OUTPUT_DIR")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], summary: str) -> None:
    """Add "completion"."""
    completion = commands.add_parser(
        "completion",
        help=summary,
        description="Print a script by which a shell completes the commands of focal-det, their flags and their files.",
        epilog=_EPILOG,
    )
    completion.add_argument("shell", choices=_SHELLS)
    completion.set_defaults(run=_print_script)


def _print_script(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError as error:
        raise InputError(
            f"completions are written by shtab, which is not installed: {install_command('shtab')}"
        ) from error
    from .main import build_parser

    completed = {**dict.fromkeys(_FILES, shtab.FILE), **dict.fromkeys(_FOLDERS, shtab.DIRECTORY)}

    class Argument(argparse.Action):
        """An argument that says what completes it, in the attribute that shtab reads; it parses nothing."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            if options.get("metavar") in completed:
                self.complete = completed[options["metavar"]]

    class Parser(CommandParser):
        """A parser with such arguments; argparse makes the parsers of its commands of this class, too."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            for action in (None, "append"):
                self.register("action", action, Argument)

    print(shtab.complete(build_parser(kind=Parser), shell=args.shell))
    return EXIT_DONE
