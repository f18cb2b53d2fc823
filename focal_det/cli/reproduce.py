"""focal-det reproduce: a table of the paper, run again."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from ..errors import EXIT_DONE, EXIT_FAULT, EXIT_STOPPED, InputError
from ..paper.tables import SCALES, default_out, find_rows, find_table, list_tables, load_tables
from .common import folder_name
from .datasets import USES, add_data_flags, data_words, entries_of

if TYPE_CHECKING:
    from ..paper.runs import Plan

_EPILOG = """examples:
  what there is        focal-det reproduce --list
  a table, small       focal-det reproduce table1b --scale mini
  some of its rows     focal-det reproduce table1d --scale mini --rows 'ohem_128*,fl' --seeds 1,2,3
  as in the paper      focal-det reproduce table1b --num-gpus 8 --dry-run
  with a change        focal-det reproduce table1b --num-gpus 8 --out output/gn MODEL.RETINANET.NORM GN
  your own pictures    focal-det reproduce table3 --scale mini --out output/mine --train-json train.json \\
                           --train-images pictures --val-json val.json --val-images pictures

The same command again goes on where it was stopped: finished rows are not run again, and rows of the same
configuration, in whatever table, are run once. Two of them at once over the same --out share the rows.

exit codes: 0 all rows have their result; 1 a row failed, or is in another process's hands, or the table could not
            be written; 2 bad input and nothing started; 75 stopped by a signal, the same command goes on
"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add "reproduce"."""
    parser = commands.add_parser(
        "reproduce",
        help="train the rows of a table of the paper, and put the results beside the published",
        description="Train the rows of a table; write <out>/<table>.md, .csv and .png after every row.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("table", nargs="?", help="table1a ... table3, section5_1, figure7")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="keys to change in every row; recorded")
    parser.add_argument("--list", action="store_true", help="print every row with its published figures and stop")
    parser.add_argument("--rows", type=_names, default=(), metavar="NAME,...", help="with * and ? (default: all)")
    parser.add_argument(
        "--scale", choices=SCALES, default=SCALES[0], help="the paper's, or one for two cores (default: full)"
    )
    parser.add_argument("--seeds", type=_seeds, default=(1,), metavar="N,...", help="a training each (default: 1)")
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="of each training (default 1)")
    parser.add_argument("--out", type=folder_name, metavar="DIR", help="default: output/reproduce/<scale>")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and an estimate, and stop")
    add_data_flags(parser)
    parser.set_defaults(run=_reproduce)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not all(names):
        raise ValueError
    return names


_names.__name__ = "list of rows, with commas between"  # what argparse calls one that it cannot read


def _seeds(text: str) -> tuple[int, ...]:
    seeds = tuple(dict.fromkeys(int(seed) for seed in text.split(",")))
    if not all(0 <= seed < 2**32 for seed in seeds):
        raise ValueError
    return seeds


_seeds.__name__ = "list of seeds (integers of 0 to 2^32 - 1, with commas between)"


def _reproduce(args: argparse.Namespace) -> int:
    if args.list:
        print(list_tables([find_table(args.table)] if args.table else load_tables().values()))
        return EXIT_DONE
    if args.table is None:
        raise InputError("name a table; --list shows them")
    if args.num_gpus < 1:
        raise InputError(f"--num-gpus {args.num_gpus} must be at least 1")
    _check_data_flags(args)
    table = find_table(args.table)
    rows = find_rows(table, args.rows)
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..paper import reproduce  # takes seconds to import, which --help need not wait for
    from ..paper.runs import Options, plan_table

    options = Options(
        scale=args.scale,
        seeds=args.seeds,
        out=args.out or default_out(args.scale),
        num_gpus=args.num_gpus,
        data_flags=tuple(data_words(args)),
        overrides=tuple(args.overrides),
    )
    plan = plan_table(table, rows, options)
    if args.dry_run:
        print(reproduce.describe(plan))
        for problem in reproduce.plan_problems(plan):
            print(f"warning: {problem}", file=sys.stderr)
        return EXIT_DONE
    reproduce.check_plan(plan)
    _check_first(plan)
    try:
        files, stopped = reproduce.run_plan(plan, shlex.join(["focal-det", *sys.argv[1:]]))
    except OSError as error:
        raise OSError(f"{error}; what is finished in {options.out} is kept, and the same command goes on") from error
    print("\n" + files[0].read_text() + "\n" + "\n".join(map(str, files)))
    if all(run.is_finished for run in plan.runs):
        return EXIT_DONE
    if stopped:
        print("stopped; the same command goes on", file=sys.stderr)
    return EXIT_STOPPED if stopped else EXIT_FAULT


def _check_data_flags(args: argparse.Namespace) -> None:
    """Raise an InputError for flags without their partner: COCO files without folders, training without evaluation."""
    found = {use: entries_of(args, use, ()) for use in USES}
    problems = [problem for _, of_use in found.values() for problem in of_use]
    given = [use for use in USES if found[use][0]]
    if len(given) == 1 and not problems:
        lacking = next(use for use in USES if use not in given)
        problems = [
            f"--{given[0]}-json or --{given[0]}-voc without --{lacking}-json or --{lacking}-voc: sets to train on and "
            "to evaluate on are both needed"
        ]
    if problems:
        raise InputError(problems)


def _check_first(plan: Plan) -> None:
    """Check the first training as train_net.py would: what is wrong with its input is wrong with all of them.

    Raises:
        InputError: every problem.
    """
    from .arguments import parse_arguments
    from .prepare import check

    run = next((run for run in plan.runs if not run.is_finished), None)
    if run is not None:
        weights = ["MODEL.WEIGHTS", ""] if plan.backbones else []  # that are still to be trained
        check(parse_arguments([*run.words, *weights]))
