"""focal-det replay: repeat a step whose loss or gradient was not finite."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import EXIT_DONE, print_problems
from .common import add_plugin_flag


def add_command(commands: Any, summary: str) -> None:
    """Add `replay`."""
    parser = commands.add_parser("replay", help=summary)
    parser.add_argument("file", type=Path, metavar="FILE", help="of OUTPUT_DIR/diverged")
    add_plugin_flag(parser)
    parser.set_defaults(run=_replay)


def _replay(args: argparse.Namespace) -> int:
    from .. import plugin  # noqa: F401
    from ..divergence.dump import read_divergence
    from ..divergence.replay import StepOutcome, replay

    found = read_divergence(args.file)
    record = found.record
    print_problems(found.notes, "warning")
    noticed = "" if record["is_first"] else ", where it was noticed; it began earlier"
    print(f"iteration {record['iteration']} of rank {record['rank']} of {record['ranks']}{noticed}")
    print(f"in the training: {_numbers(record['losses'])}")

    def show(title: str, outcomes: Iterator[tuple[str, StepOutcome]]) -> None:
        print(title, flush=True)
        for name, outcome in outcomes:
            firsts = {"module": outcome.module, "gradient": outcome.gradient}
            bad = "".join(f"; first non-finite {kind}: {which}" for kind, which in firsts.items() if which)
            print(f"  {name}: {outcome.error or _numbers(outcome.losses)}{bad}", flush=True)

    print(f"verdict: {replay(found, show)}")
    return EXIT_DONE


def _numbers(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
