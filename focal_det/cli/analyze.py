"""focal-det analyze: what a trained model shows, and which alpha the anchors of a training set call for."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import EXIT_DONE, Findings, InputError
from ..output_layout import FINAL_CHECKPOINT
from .common import (
    add_config,
    add_number,
    add_out,
    add_plugin_flag,
    check_architecture,
    config_files,
    configuration_of,
    list_of,
    make_folder,
    too_low,
)
from .data_flags import add_data_flags, own_sets

_EXAMPLE = f"output/quickstart/{FINAL_CHECKPOINT}"
_EPILOG = f"""examples:
  a run of your own      focal-det analyze loss-cdf {_EXAMPLE}
  Detectron2's weights   focal-det analyze loss-cdf model_final_971ab9.pkl \\
                             --config-file configs/retinanet_R_101_FPN_3x.yaml --pictures 500
"""
_ALPHA_EPILOG = """examples:
  a configuration        focal-det analyze alpha configs/paper/table1a.yaml
  sets of your own       focal-det analyze alpha configs/bccd.yaml --train mine/train --val mine/val
"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], summary: str) -> None:
    """Add "analyze" and what it can look at."""
    analyze = commands.add_parser("analyze", help=summary)
    analyses = analyze.add_subparsers(required=True, metavar="ANALYSIS")
    cdf = analyses.add_parser(
        "loss-cdf",
        help="figure 4: how the loss is spread over easy and hard examples",
        description="Stream a data set (the flags', else the first of DATASETS.TEST) through a model; draw the "
        "cumulative distribution of its normalised loss, for positive and negative examples, and print what share of "
        "it the hardest carry, and the easy negatives of the whole loss.",
        epilog=_EPILOG,
    )
    cdf.add_argument("model", metavar="MODEL", help="checkpoint of a FocalRetinaNet")
    cdf.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys to change")
    cdf.add_argument("--config-file", action="append", metavar="FILE", help="of the model (default: beside it)")
    add_data_flags(cdf, ["val"])
    cdf.add_argument(
        "--pictures", type=int, metavar="N", help="use N images, evenly spread over the set (default: all)"
    )
    gammas, text = list_of(float, "gammas"), "each >= 0 (default: 0,0.5,1,2)"
    cdf.add_argument("--gamma", type=gammas, default=(0.0, 0.5, 1.0, 2.0), metavar="G,...", help=text)
    add_out(cdf)
    add_plugin_flag(cdf)
    cdf.set_defaults(run=_loss_cdf)
    alpha = analyses.add_parser(
        "alpha",
        help="section 3.1: alpha by inverse class frequency",
        description="Assign the anchors of a configuration to the objects of its training sets, and print the alpha "
        "with which positives and negatives weigh the same, over all and for each class. Nothing is written.",
        epilog=_ALPHA_EPILOG,
    )
    add_config(alpha, "YAML configuration of the training")
    add_data_flags(alpha)
    add_number(alpha, "--images", 1000, "count in so many, evenly spread over the sets")
    add_plugin_flag(alpha)
    alpha.set_defaults(run=_alpha)


def _loss_cdf(args: argparse.Namespace) -> int:
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..data.catalog import register_datasets
    from ..losses.focal import check_gamma
    from ..paper import loss_cdf
    from ..paper.figures import save_figures
    from ..preflight.plan import write

    try:
        for gamma in args.gamma:
            check_gamma(gamma)
    except ValueError as error:
        raise InputError(f"--gamma: {error}") from error
    Findings(too_low(args, {"--pictures": 1})).raise_if_errors()
    plan = _evaluation_plan(args)
    make_folder(args.out, "figure4_*.*")
    write(plan)
    cfg = plan.job.cfg
    register_datasets(cfg.DATASETS.TEST, plan.job.json_datasets)
    kinds = loss_cdf.model_loss_cdf(cfg, args.gamma, args.pictures)
    print(" and ".join(f"{histogram.total:,} {kind}" for kind, histogram in kinds.items()), "examples")
    share = loss_cdf.shares(kinds)
    for kind in kinds:
        print(f"\nshare of the loss that the hardest {kind} ones carry\n{'gamma':>10}", end="")
        print("".join(f"{fraction:>9.1%}" for fraction in loss_cdf.HARDEST))
        for gamma in args.gamma:
            print(f"{gamma:>10g}" + "".join(f"{share[kind, gamma, fraction]:>9.1%}" for fraction in loss_cdf.HARDEST))
    print(f"\nshare of all that easy negatives (p_t > .5) carry\n{'gamma':>10}{'loss':>9}{'gradient':>9}")
    for gamma in args.gamma:
        print(f"{gamma:>10g}" + "".join(f"{part:>9.1%}" for part in loss_cdf.share_of_easy_negatives(kinds, gamma)))
    tables = {
        "figure4_loss_cdf": loss_cdf.shares_as_csv(kinds),
        "figure4_easy_negatives": loss_cdf.easy_negatives_as_csv(kinds),
    }
    files = save_figures(loss_cdf.draw_loss_cdf(kinds), args.out, tables)
    print(*files, sep="\n")
    return EXIT_DONE


def _alpha(args: argparse.Namespace) -> int:
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..config.layers import key_value_pairs
    from ..data.catalog import register_datasets
    from ..paper.inverse_frequency import count_anchors
    from ..preflight.options import TrainOptions
    from ..preflight.plan import check, write

    Findings(too_low(args, {"--images": 1})).raise_if_errors()
    files, given = configuration_of(args)
    if not files:
        raise InputError("no configuration is named; give one as CONFIG, such as configs/paper/table1a.yaml")
    list(key_value_pairs(given))  # before words that the user never typed come after them
    with TemporaryDirectory() as folder:  # of the checked annotations
        overrides = (*given, "OUTPUT_DIR", folder)
        plan = check(TrainOptions(tuple(files), overrides, **own_sets(args)))
        check_architecture(plan.job.cfg, "analysed")
        write(plan)
        register_datasets(plan.job.cfg.DATASETS.TRAIN, plan.job.json_datasets)
        counts = count_anchors(plan.job.cfg, args.images)
    print(f"{counts.assigned:,} of {counts.anchors:,} anchors in {counts.counted_in} are assigned to objects")
    print(f"alpha by inverse frequency: {counts.of_anchors:.6f} of anchors, assigned against background;")
    print(f"{counts.of_problems:.6f} of the binary problems that the loss weights, K for each anchor")
    rows = zip(plan.classes.names, counts.of_classes.tolist(), counts.by_class.tolist(), strict=True)
    print(f"\n{'class':20}{'assigned':>10}{'alpha':>12}")
    for name, assigned, of_class in rows:
        print(f"{name:20}{assigned:10,}{of_class:12.6f}")
    loss = "MODEL.FOCAL_DET.LOSS"
    print(f"\n{loss}.NAME BalancedCrossEntropyLoss {loss}.ALPHA {counts.of_problems:.6f}")
    return EXIT_DONE


def _evaluation_plan(args: argparse.Namespace) -> Any:
    """Return the checked plan of an evaluation of the model, whose input an analysis shares."""
    from ..config.layers import key_value_pairs
    from ..preflight.options import KeyFlag, TrainOptions
    from ..preflight.plan import check

    if not Path(args.model).is_file():
        raise InputError(f"MODEL {args.model} is not a file; name a checkpoint, such as {_EXAMPLE}")
    list(key_value_pairs(args.overrides))  # before words that the user never typed come after them
    options = TrainOptions(
        config_file=tuple(config_files(args.config_file, args.model)),
        overrides=tuple(args.overrides),
        # the checked annotations go to --out, not into the run that the model comes from
        of_flags=(KeyFlag("MODEL", "MODEL.WEIGHTS", args.model), KeyFlag("--out", "OUTPUT_DIR", str(args.out))),
        eval_only=True,
        **own_sets(args, ["val"]),
    )
    plan = check(options)
    check_architecture(plan.job.cfg, "analysed")
    return plan
