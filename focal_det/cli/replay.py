"""focal-det replay: do a step again that gave a loss or gradient which is no number."""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import EXIT_DONE


def add_command(commands: Any) -> None:
    """Add `replay`."""
    parser = commands.add_parser(
        "replay", help="do a diverged training's last step again: which picture, loss, module and precision"
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="of OUTPUT_DIR/diverged")
    parser.set_defaults(run=run_replay)


def run_replay(args: argparse.Namespace) -> int:
    """Run the batch as a whole and each picture alone, in float32 and in the run's own precision; print a verdict."""
    import torch

    from .. import plugin  # noqa: F401
    from ..engine.divergence_file import read_divergence
    from ..engine.replay import Outcome, made_up, run, verdict

    found = read_divergence(args.file)
    record, amp = found.record, found.cfg.SOLVER.AMP
    dtypes: dict[str, torch.dtype | None] = {"float32": None}
    if amp.ENABLED:
        dtypes[amp.DTYPE] = torch.bfloat16 if amp.DTYPE == "bfloat16" else torch.float16
    for note in found.notes:
        print(f"warning: {note}", file=sys.stderr)
    noticed = "" if record["is_first"] else ", where it was noticed, which is not where it began"
    print(f"iteration {record['iteration']} of rank {record['rank']} of {record['ranks']}{noticed}")
    print(f"on the device there: {_numbers(record['losses'])}")

    def show(what: str, batch: list[Any]) -> dict[str, Outcome]:
        print(what)
        outcomes = {name: run(found, batch, dtype) for name, dtype in dtypes.items()}
        for name, outcome in outcomes.items():
            firsts = {"module": outcome.module, "gradient": outcome.gradient}
            bad = "".join(f"; first {kind} that is no number: {which}" for kind, which in firsts.items() if which)
            print(f"  {name}: {outcome.error or _numbers(outcome.losses)}{bad}")
        return outcomes

    whole: dict[str, Outcome] = {}
    pictures = iter(record["batch"])
    for place, count in enumerate(record["shares"]):
        of_rank = f" of rank {place}" if record["shares"][1:] else ""
        for name, outcome in show(f"all {count} pictures{of_rank}", list(islice(pictures, count))).items():
            if name not in whole or whole[name].is_finite:
                whole[name] = outcome
    noise = made_up(record["batch"][0])
    *alone, of_noise = [
        show(f"{name}: {picture['file_name']}, {_size(picture)}", [picture])
        for name, picture in [*((f"picture {n}", p) for n, p in enumerate(record["batch"], 1)), ("besides", noise)]
    ]
    print(f"verdict: {verdict(found, whole, alone, of_noise)}")
    return EXIT_DONE


def _numbers(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in losses.items())


def _size(picture: dict[str, Any]) -> str:
    height, width = picture["image"].shape[1:]
    return f"{width}x{height}, {len(picture['boxes'])} boxes"
