"""focal-det plot: figures of the paper."""

from __future__ import annotations

import argparse
import sys

from ..errors import EXIT_DONE, Findings, InputError
from ..paper.tables import SCALES, default_out
from .common import (
    add_config,
    add_number,
    add_out,
    add_plugin_flag,
    check_architecture,
    configuration_of,
    folder_name,
    make_folder,
    too_low,
)

_PAPERS = "focal_det://paper/table1b.yaml"


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], summary: str) -> None:
    """Add "plot" and its figures."""
    plot = commands.add_parser("plot", help=summary)
    figures = plot.add_subparsers(required=True, metavar="FIGURE")
    losses = figures.add_parser(
        "losses",
        help="figures 1, 5 and 6: the losses and their derivatives",
        description="Draw figures 1, 5 and 6 as PNG and SVG, from the functions that train. Needs no Detectron2.",
    )
    text = "gammas of figure 1, >= 0 (default: 0 0.5 1 2 5; 0 is cross-entropy)"
    losses.add_argument("--gamma", type=float, nargs="+", default=[0.0, 0.5, 1.0, 2.0, 5.0], metavar="G", help=text)
    text = "gammas of the focal losses in figures 5 and 6 (default: 2)"
    losses.add_argument("--compared-gamma", type=float, nargs="+", default=[2.0], metavar="G", help=text)
    text, default = "constants of the FL* in figures 5 and 6 (default: 2,1 4,0)", [(2.0, 1.0), (4.0, 0.0)]
    losses.add_argument("--star", type=_gamma_and_beta, nargs="+", default=default, metavar="GAMMA,BETA", help=text)
    losses.add_argument("--alpha", type=float, metavar="A", help="weight of positives, in [0, 1] (default: no weights)")
    add_out(losses)
    losses.set_defaults(run=_plot_losses)

    speed = figures.add_parser(
        "speed-accuracy",
        help="figure 2: AP against time, depth by scale",
        description="Time every model of Table 1e on this machine and draw it beside the paper's points, its "
        "competitors' and the envelope of all. The AP comes from `focal-det reproduce table1e` where its trainings are "
        "finished; else, at full scale, it is the published one, and the time excludes the suppression, since an "
        "untrained model detects nothing.",
    )
    speed.add_argument("--scale", choices=SCALES, default=SCALES[0], help="that of focal-det reproduce (default: full)")
    text = "reproduce's --out (default: output/reproduce/<scale>)"
    speed.add_argument("--runs", type=folder_name, metavar="DIR", help=text)
    add_number(speed, "--repeats", 5, "images timed for each model")
    add_out(speed)
    speed.set_defaults(run=_plot_speed_accuracy)

    architecture = figures.add_parser(
        "architecture",
        help="figure 3: backbone, pyramid and subnets of a configuration",
        description="Draw figure 3 as PNG and SVG from the model of a configuration, with the shapes that it computes "
        "for a 4:3 image at the size of its tests. Needs neither weights nor data.",
    )
    add_config(architecture, f"YAML configuration (default: {_PAPERS}, R-50 at 600 px)")
    add_plugin_flag(architecture)
    add_out(architecture)
    architecture.set_defaults(run=_plot_architecture)


def _gamma_and_beta(text: str) -> tuple[float, float]:
    gamma, beta = text.split(",")  # argparse turns a ValueError of either line into its message
    return float(gamma), float(beta)


_gamma_and_beta.__name__ = "GAMMA,BETA"  # what argparse calls a value that it cannot read


def _plot_losses(args: argparse.Namespace) -> int:
    from ..paper.figures import save_figures  # these take seconds to import, which --help need not wait for
    from ..paper.loss_figures import loss_figures

    try:
        figures = loss_figures(
            gammas=args.gamma, compared_gammas=args.compared_gamma, stars=args.star, alpha=args.alpha
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    make_folder(args.out, *(f"{name}.*" for name in figures))
    print(*save_figures(figures, args.out), sep="\n")
    return EXIT_DONE


def _plot_speed_accuracy(args: argparse.Namespace) -> int:
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..environment import hardware
    from ..paper.figures import save_figures
    from ..paper.runs import SweepOptions, check_trained
    from ..paper.speed_accuracy import describe_envelope, draw_speed_accuracy, plan_models, time_models, timings_as_csv

    Findings(too_low(args, {"--repeats": 1})).raise_if_errors()
    options = SweepOptions(scale=args.scale, seeds=(), out=args.runs or default_out(args.scale))
    if args.runs:
        check_trained([plan_models(options)], "--runs").raise_if_errors()
    name = f"figure2_speed_accuracy_{args.scale}"
    make_folder(args.out, f"{name}.*")
    timings = []
    for timing in time_models(options, repeats=args.repeats):
        timings.append(timing)
        size = f"R-{timing.depth} at {timing.height}x{timing.width}"
        ap = "" if timing.ap is None else f", AP {timing.ap:.1f}"
        print(f"{timing.row.name}: {size}, {timing.ms:.1f} ms{ap}", flush=True)
    if args.scale != "full" and not any(timing.trained for timing in timings):
        print("no row is trained: run `focal-det reproduce table1e --scale mini` for their AP", file=sys.stderr)
    print(describe_envelope())
    figure = draw_speed_accuracy(timings, hardware(num_gpus=1), args.scale)
    print(*save_figures({name: figure}, args.out, {name: timings_as_csv(timings)}), sep="\n")
    return EXIT_DONE


def _plot_architecture(args: argparse.Namespace) -> int:
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..config.load import load_config
    from ..paper.architecture import draw_architecture, read_architecture
    from ..paper.figures import save_figures

    files, overrides = configuration_of(args)
    cfg = load_config(files or _PAPERS, overrides)
    check_architecture(cfg, "drawn")
    architecture = read_architecture(cfg)
    name = "figure3_architecture"
    make_folder(args.out, f"{name}.*")
    print(*save_figures({name: draw_architecture(architecture)}, args.out), sep="\n")
    return EXIT_DONE
