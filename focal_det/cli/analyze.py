"""focal-det analyze: what a trained model shows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import EXIT_DONE, InputError
from ..files import write_text_whole
from .common import add_out, make_folder
from .datasets import add_data_flags, data_words

_EPILOG = """examples:
  a run of one's own     focal-det analyze loss-cdf output/quickstart/model_final.pth
  Detectron2's weights   focal-det analyze loss-cdf model_final_971ab9.pkl \\
                             --config-file configs/retinanet_R_101_FPN_3x.yaml --pictures 500
"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add "analyze" and what it can look at."""
    analyze = commands.add_parser("analyze", help="look into a trained model", allow_abbrev=False)
    analyses = analyze.add_subparsers(required=True, metavar="ANALYSIS")
    cdf = analyses.add_parser(
        "loss-cdf",
        help="figure 4: how the loss is spread over easy and hard examples",
        description="Stream a data set (of the flags, else DATASETS.TEST's first) through a model; draw the cumulative "
        "distribution of its normalised loss, for positive and negative examples, and print what share of it the "
        "hardest carry.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    cdf.add_argument("model", metavar="MODEL", help="checkpoint of a FocalRetinaNet")
    cdf.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys to change")
    cdf.add_argument(
        "--config-file", action="append", metavar="FILE", help="of the model (default: config.yaml beside it)"
    )
    add_data_flags(cdf, ["val"])
    cdf.add_argument("--pictures", type=int, metavar="N", help="look at the first N (default: all)")
    cdf.add_argument(
        "--gamma", type=_gammas, default=(0.0, 0.5, 1.0, 2.0), metavar="G,...", help="each >= 0 (default: 0,0.5,1,2)"
    )
    add_out(cdf)
    cdf.set_defaults(run=_loss_cdf)


def _gammas(text: str) -> tuple[float, ...]:
    return tuple(dict.fromkeys(float(gamma) for gamma in text.split(",")))


_gammas.__name__ = "list of gammas, with commas between"  # what argparse calls one that it cannot read


def _loss_cdf(args: argparse.Namespace) -> int:
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..data.catalog import register_datasets
    from ..losses.focal import check_gamma
    from ..paper.figures import save_figures
    from ..paper.loss_cdf import HARDEST, draw_loss_cdf, loss_cdf, shares, shares_as_csv
    from ..paper.model_stream import stream_logits_and_labels
    from .prepare import write

    try:
        for gamma in args.gamma:
            check_gamma(gamma)
    except ValueError as error:
        raise InputError(f"--gamma: {error}") from error
    if args.pictures is not None and args.pictures < 1:
        raise InputError(f"--pictures {args.pictures} must be at least 1")
    plan = _checked(args)
    make_folder(args.out)
    write(plan)
    cfg = plan.job.cfg
    register_datasets(cfg.DATASETS.TEST, plan.job.json_datasets)
    try:
        positives, negatives = loss_cdf(stream_logits_and_labels(cfg, args.pictures), args.gamma)
    except FloatingPointError as error:
        raise InputError(f"{args.model}: {error}") from error
    kinds = {"positive": positives, "negative": negatives}
    for kind, histogram in kinds.items():
        if histogram.total == 0:
            raise InputError(f"data set {cfg.DATASETS.TEST[0]}: no {kind} examples in the pictures looked at")
    try:
        found = shares(kinds)
    except ValueError as error:
        raise InputError(f"{args.model}: {error}") from error
    print(f"{positives.total:,} positive and {negatives.total:,} negative examples")
    for kind in kinds:
        print(f"\nshare of the loss that the hardest {kind} ones carry\n{'gamma':>10}", end="")
        print("".join(f"{fraction:>9.1%}" for fraction in HARDEST))
        for gamma in args.gamma:
            print(f"{gamma:>10g}" + "".join(f"{s:>9.1%}" for k, g, _, s in found if (k, g) == (kind, gamma)))
    files = save_figures(draw_loss_cdf(kinds), args.out)
    table = args.out / "figure4_loss_cdf.csv"
    write_text_whole(table, shares_as_csv(kinds))
    for path in (*files, table):
        print(path)
    return EXIT_DONE


def _checked(args: argparse.Namespace) -> Any:
    """The plan of an evaluation of the model, which is what an analysis needs too."""
    from ..engine.config_file import key_value_pairs
    from .arguments import parse_arguments
    from .prepare import check

    if not Path(args.model).is_file():
        raise InputError(f"MODEL {args.model} is no file; name a checkpoint, such as output/quickstart/model_final.pth")
    list(key_value_pairs(args.overrides))  # before words that the user never typed come behind them
    beside = Path(args.model).parent / "config.yaml"
    files = args.config_file or [str(beside)]
    if not args.config_file and not beside.is_file():
        raise InputError(f"{beside} is not there; name the model's configuration with --config-file")
    words = ["--eval-only", *(word for file in files for word in ("--config-file", file))]
    words += data_words(args, ["val"])
    # the checked annotations go to --out, not into the run that the model comes from
    own = ["MODEL.WEIGHTS", args.model, "OUTPUT_DIR", str(args.out)]
    plan = check(parse_arguments([*words, *args.overrides, *own]))
    architecture = plan.job.cfg.MODEL.META_ARCHITECTURE
    if architecture != "FocalRetinaNet":
        raise InputError(
            f"MODEL.META_ARCHITECTURE is {architecture}; only FocalRetinaNet can be analysed, which also loads the "
            "weights of Detectron2's RetinaNet: add MODEL.META_ARCHITECTURE FocalRetinaNet"
        )
    return plan
