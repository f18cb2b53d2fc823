"""The command focal-det: what there is to do besides training."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError

EXIT_DONE, EXIT_FAULT, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 done, 1 a fault while writing, 2 bad input and nothing written, 130 interrupted.
    """
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except InputError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAULT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="focal-det", description="Tools around the detector.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    plot = commands.add_parser("plot", help="draw a figure of the paper", allow_abbrev=False)
    figures = plot.add_subparsers(required=True, metavar="FIGURE")
    _add_losses(figures)
    return parser


def _add_losses(figures: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    losses = figures.add_parser(
        "losses",
        help="figures 1, 5 and 6: the losses and their derivatives",
        description="Draw figures 1, 5 and 6 as PNG and SVG, from the functions that train. Needs no Detectron2.",
        allow_abbrev=False,
    )
    losses.add_argument(
        "--gamma",
        type=float,
        nargs="+",
        default=[0.0, 0.5, 1.0, 2.0, 5.0],
        metavar="G",
        help="of the focal losses of figure 1, >= 0 (default: 0 0.5 1 2 5; 0 is cross-entropy)",
    )
    losses.add_argument(
        "--compared-gamma",
        type=float,
        nargs="+",
        default=[2.0],
        metavar="G",
        help="of the focal losses of figures 5 and 6 (default: 2)",
    )
    losses.add_argument(
        "--star",
        type=_gamma_and_beta,
        nargs="+",
        default=[(2.0, 1.0), (4.0, 0.0)],
        metavar="GAMMA,BETA",
        help="of the FL* of figures 5 and 6 (default: 2,1 4,0)",
    )
    losses.add_argument("--alpha", type=float, metavar="A", help="weight of positives, in (0, 1) (default: no weights)")
    losses.add_argument("--out", type=Path, default=Path("output/plots"), metavar="DIR", help="default: output/plots")
    losses.set_defaults(run=_plot_losses)


def _gamma_and_beta(text: str) -> tuple[float, float]:
    gamma, beta = text.split(",")  # argparse turns a ValueError of either line into its message
    return float(gamma), float(beta)


_gamma_and_beta.__name__ = "GAMMA,BETA"  # what argparse calls a value that it cannot read


def _plot_losses(args: argparse.Namespace) -> int:
    from ..paper.loss_figures import (
        loss_figures,
        save_figures,
    )  # takes seconds to import, which --help need not wait for

    try:
        figures = loss_figures(
            gammas=args.gamma, compared_gammas=args.compared_gamma, stars=args.star, alpha=args.alpha
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {args.out}: no folder that can be made ({error}); name another") from error
    if not os.access(args.out, os.W_OK):
        raise InputError(f"--out {args.out}: a folder that cannot be written; name another")
    for path in save_figures(figures, args.out):
        print(path)
    return EXIT_DONE
