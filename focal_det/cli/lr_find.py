"""focal-det lr-find: a learning-rate range test with a run's own configuration and data."""

from __future__ import annotations

import argparse
import html
import json
import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..distributed.signals import SignalListener
from ..errors import EXIT_DONE, InputError
from ..preflight.options import KeyFlag
from .common import add_number, add_out, make_folder
from .train import add_arguments, options_of

if TYPE_CHECKING:
    from ..engine.lr_range_test import Measurement, Suggestion

NAME = "lr_range"  # of the files in --out
_LOWEST, _HIGHEST = 1e-3, 1e2  # times SOLVER.BASE_LR
_REFUSED = {"eval_only": "--eval-only", "resume": "--resume", "preflight_only": "--preflight-only"}


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], summary: str) -> None:
    """Add "lr-find", which takes the flags of "train" and a few of its own."""
    parser = commands.add_parser(
        "lr-find",
        help=summary,
        description="Raise the learning rate step by step, with a training's own flags, and see where the loss falls "
        "and where it diverges. Warm-up and schedule are off, nothing is written but --out, and no run is touched.",
    )
    add_arguments(parser)
    add_number(parser, "--iterations", 100, "steps")
    parser.add_argument("--from", dest="lowest", type=float, metavar="LR", help="default: SOLVER.BASE_LR / 1000")
    parser.add_argument("--to", dest="highest", type=float, metavar="LR", help="default: SOLVER.BASE_LR x 100")
    add_number(parser, "--stop-at", 1.25, "end where the loss is so many times its lowest value, above 1")
    add_out(parser, "output/lr_find")
    parser.set_defaults(run=_find)


def _find(args: argparse.Namespace) -> int:
    given = [flag for name, flag in _REFUSED.items() if vars(args)[name]]
    refused = [f"lr-find trains from the start, and only tries: leave out {flag}" for flag in given]
    if args.iterations < 20:
        refused.append(f"--iterations is {args.iterations}; it must be at least 20")
    if not 1 < args.stop_at < math.inf:
        refused.append(f"--stop-at is {args.stop_at:g}; it must be a number above 1")
    for flag, lr in (("--from", args.lowest), ("--to", args.highest)):
        if lr is not None and not 0 < lr < math.inf:
            refused.append(f"{flag} is {lr:g}; it must be a number above 0")
    options = options_of(args)
    if "OUTPUT_DIR" in options.overrides[::2]:
        refused.append("lr-find writes to --out, and touches no run: leave out OUTPUT_DIR")
    if options.world_size > 1:
        refused.append(
            "lr-find takes one process; MODEL.FOCAL_DET.ACCUMULATION passes the batch of several in parts, by the same "
            "step"
        )
    if refused:
        raise InputError(refused)
    from .. import plugin  # noqa: F401 - these take seconds to import, which --help need not wait for
    from ..engine.lr_range_test import range_test, suggest, until_it_rises
    from ..preflight.plan import check, write

    with TemporaryDirectory() as temporary:  # of the annotations that the job reads
        plan = check(replace(options, of_flags=(*options.of_flags, KeyFlag("--out", "OUTPUT_DIR", temporary))))
        base_lr = plan.job.cfg.SOLVER.BASE_LR
        lowest = _LOWEST * base_lr if args.lowest is None else args.lowest
        highest = _HIGHEST * base_lr if args.highest is None else args.highest
        if not lowest < highest:
            raise InputError(f"--from {lowest:g} --to {highest:g}: the lr must rise")
        make_folder(args.out, f"{NAME}.*")
        images = plan.job.cfg.SOLVER.IMS_PER_BATCH
        print(f"lr from {lowest:.3g} to {highest:.3g} in {args.iterations} steps of {images} images", flush=True)
        write(plan)
        measured: list[Measurement] = []
        with SignalListener() as listener:
            for one in until_it_rises(range_test(plan.job, lowest, highest, args.iterations), args.stop_at):
                measured.append(one)
                if len(measured) % 10 == 0:
                    about = f"lr {one.lr:.3g}, loss {one.smoothed:.4g}"
                    print(f"step {len(measured)} of {args.iterations}: {about}", flush=True)
                if listener.received:
                    break
    _write_and_say(args.out, measured, suggest(measured, args.stop_at), base_lr, bool(listener.received))
    return 128 + listener.received if listener.received else EXIT_DONE


def _write_and_say(folder: Path, measured: list[Measurement], found: Suggestion, base_lr: float, stopped: bool) -> None:
    from ..files import write_text_whole
    from ..paper.figures import new_axes, save_figures

    figure, axes = new_axes("learning rate", "loss")
    finite = [one for one in measured if math.isfinite(one.loss) and math.isfinite(one.smoothed)]
    axes.plot([one.lr for one in finite], [one.loss for one in finite], color="0.7", linewidth=0.8, label="of a step")
    axes.plot([one.lr for one in finite], [one.smoothed for one in finite], label="smoothed")
    axes.set_xscale("log")
    for lr, label, style in ((found.lr, "suggested", "--"), (base_lr, "SOLVER.BASE_LR", ":")):
        if lr is not None:
            axes.axvline(lr, color="0.3", linestyle=style, linewidth=1, label=f"{label} {lr:.3g}")
    if finite:
        axes.set_ylim(0, 1.5 * max(one.smoothed for one in finite[:10]))
    axes.legend(frameon=False)
    suggestion = f"SOLVER.BASE_LR {found.lr:.2g}" if found.lr is not None else "no suggestion"
    text = f"{suggestion}: {found.rule}. The configuration's is {base_lr:g}"
    steps = [{name: x if math.isfinite(x) else None for name, x in one._asdict().items()} for one in measured]
    row: dict[str, Any] = {**found._asdict(), "base_lr": base_lr, "steps": steps}
    write_text_whole(folder / f"{NAME}.json", json.dumps(row, indent=1) + "\n")
    svg = save_figures({NAME: figure}, folder)[1].read_text().partition("<svg")
    page = f'<!doctype html><meta charset="utf-8"><title>{NAME}</title><p>{html.escape(text)}</p>{svg[1]}{svg[2]}'
    write_text_whole(folder / f"{NAME}.html", page)
    how = "stopped by a signal" if stopped else "done"
    print(f"{how} after {len(measured)} steps: {text}; curve: {folder / NAME}.html, .png, .svg, .json", flush=True)
