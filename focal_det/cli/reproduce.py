"""focal-det reproduce: a table of the paper, or all of them, run again."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..distributed.signals import EndedBySignal
from ..errors import EXIT_DONE, EXIT_FAULT, EXIT_STOPPED, Findings, InputError, print_problems
from ..paper.tables import SCALES, Table, default_out, find_rows, find_table, list_tables, load_tables
from ..preflight.own_datasets import USES, name_sets
from .common import add_number, add_plugin_flag, folder_name, list_of, too_low
from .data_flags import add_change_flags, add_data_flags, changes_of, data_words, overrides_of, set_flags

if TYPE_CHECKING:
    from ..paper.runs import SweepPlan

_ALL = "all"
_STOPPED = "stopped; the same command continues"

_EPILOG = """examples:
  what there is        focal-det reproduce --list
  a table, small       focal-det reproduce table1b --scale mini
  some of its rows     focal-det reproduce table1d --scale mini --rows 'ohem_128*,fl' --seeds 1,2,3
  as in the paper      focal-det reproduce table1b --num-gpus 8 --dry-run
  with a change        focal-det reproduce table1b --num-gpus 8 --out output/gn MODEL.RETINANET.NORM GN
  every claim, small   focal-det reproduce all --scale mini --seeds 1,2,3
  only write it up     focal-det reproduce all --scale mini --report
  your own images      focal-det reproduce table3 --scale mini --out output/mine --train-json train.json \\
                           --train-images images --val-json val.json --val-images images

The same command continues where it was stopped: finished rows are not run again, and rows of the same configuration,
in whatever table, are run once. Two such commands at once over the same --out share the rows. `all` begins with what
the paper's claims need, and writes <out>/claims.md: whether each claim about trainings holds, fails or cannot be told.

exit codes: 0 all rows have their result; 1 a row failed, or another process is running it, or the table could not be
            written; 2 bad input and nothing started; 75 stopped by a signal, the same command continues
"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], summary: str) -> None:
    """Add "reproduce"."""
    parser = commands.add_parser(
        "reproduce",
        help=summary,
        description="Train the rows of a table, or of all; write <out>/<table>.md, .csv and .png after every row.",
        epilog=_EPILOG,
    )
    parser.add_argument("table", nargs="?", help="one of --list, such as table1b, or all")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="keys to change in every row; recorded")
    parser.add_argument("--list", action="store_true", help="print every row with its published figures and stop")
    rows, seeds = list_of(str, "rows"), list_of(_seed, "seeds (integers of 0 to 2^32 - 1)")
    parser.add_argument("--rows", type=rows, default=(), metavar="NAME,...", help="may have * and ? (default: all)")
    text = "the paper's, or a miniature for two cores (default: full)"
    parser.add_argument("--scale", choices=SCALES, default=SCALES[0], help=text)
    parser.add_argument("--seeds", type=seeds, default=(1,), metavar="N,...", help="a training for each (default: 1)")
    add_number(parser, "--num-gpus", 1, "processes of each training")
    parser.add_argument("--out", type=folder_name, metavar="DIR", help="default: output/reproduce/<scale>")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and an estimate, and stop")
    text = "train nothing, and write the tables of what is finished"
    parser.add_argument("--report", action="store_true", help=text)
    add_data_flags(parser)
    add_change_flags(parser)
    add_plugin_flag(parser)
    parser.set_defaults(run=_reproduce)


def _seed(text: str) -> int:
    if not 0 <= int(text) < 2**32:
        raise ValueError
    return int(text)


def _reproduce(args: argparse.Namespace) -> int:
    if args.list:
        print(list_tables(_tables(args) if args.table else load_tables().values()))
        return EXIT_DONE
    if args.table is None:
        raise InputError("name a table; --list shows them")
    Findings(too_low(args, {"--num-gpus": 1})).raise_if_errors()
    _check_data_flags(args)
    tables = _tables(args)
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..paper import reproduce  # takes seconds to import, which --help need not wait for
    from ..paper.runs import SweepOptions, check_trained
    from ..paper.sweep import ended_by_signals

    options = SweepOptions(
        scale=args.scale,
        seeds=() if args.report else args.seeds,  # those that there are
        out=args.out or default_out(args.scale),
        num_gpus=args.num_gpus,
        data_flags=tuple(data_words(args)),
        overrides=(*args.overrides, *overrides_of(args)),
        plugins=tuple(args.plugin),
    )
    plans = reproduce.plan_tables(tables, args.rows, options)
    if args.dry_run:
        print(reproduce.describe(plans))
        print_problems(reproduce.check_plans(plans).errors, "warning")
        return EXIT_DONE
    command = shlex.join(["focal-det", *sys.argv[1:]])
    if args.report:
        reproduce.check_out(plans).raise_if_errors()
        check_trained(plans, "--out").raise_if_errors()
        print(*reproduce.write_files(plans, command), sep="\n")
        return EXIT_DONE
    try:
        with ended_by_signals():
            reproduce.check_plans(plans).raise_if_errors()
            _check_first(plans)
            files, stopped = reproduce.run_plans(plans, command)
    except OSError as error:
        raise OSError(f"{error}; what is finished in {options.out} is kept, and the same command continues") from error
    except EndedBySignal:  # between trainings, or while a backbone was trained, which begins anew
        print(_STOPPED, file=sys.stderr)
        return EXIT_STOPPED
    print("\n" + files[0].read_text() + "\n" + "\n".join(map(str, files)))
    if all(run.is_finished for run in reproduce.trainings(plans)):
        return EXIT_DONE
    if stopped:
        print(_STOPPED, file=sys.stderr)
    return EXIT_STOPPED if stopped else EXIT_FAULT


def _tables(args: argparse.Namespace) -> list[Table]:
    """Return the tables that are named, or raise an InputError for what is not one or has no such rows."""
    if args.table != _ALL:
        find_rows(find_table(args.table), args.rows)
        return [find_table(args.table)]
    if args.rows:
        raise InputError("--rows are those of one table; name it instead of `all`")
    return list(load_tables().values())


def _check_data_flags(args: argparse.Namespace) -> None:
    """Raise an InputError for flags without their partner: COCO files without folders, training without evaluation."""
    named, found = name_sets({use: set_flags(args, use) for use in USES}, dict.fromkeys(USES, ()), changes_of(args))
    found.raise_if_errors()
    for given, lacking in (USES, USES[::-1]):
        if named.names[given] and not named.names[lacking]:
            raise InputError(
                f"--{given} or the like without --{lacking}: sets to train on and to evaluate on are both needed"
            )


def _check_first(plans: Sequence[SweepPlan]) -> None:
    """Check the first training as train_net.py would: what is wrong with its input is wrong with all of them."""
    from ..paper.reproduce import trainings
    from ..preflight.plan import check
    from .train import parse_arguments

    run = next((run for run in trainings(plans) if not run.is_finished), None)
    if run is not None:
        awaited = any(str(file) in run.arguments and not file.is_file() for plan in plans for file in plan.backbones)
        check(parse_arguments([*run.arguments, *(["MODEL.WEIGHTS", ""] if awaited else [])]))
