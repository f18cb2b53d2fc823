"""focal-det report and focal-det compare: one page about a run, or about two side by side."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EXIT_DONE, InputError, visible
from .common import add_number, add_out, folder_name, make_folder

if TYPE_CHECKING:
    from ..report.compare_page import RunComparison


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], summary: str) -> None:
    """Add "report"."""
    report = commands.add_parser(
        "report",
        help=summary,
        description="Write OUTPUT_DIR/report.html from the files that a training left there, finished or not: one page "
        "without links to anything else. Needs no Detectron2.",
    )
    report.add_argument("output_dir", type=folder_name, metavar="OUTPUT_DIR", help="of the training")
    text = (
        "least score of the detections that are drawn and counted as errors, in [0, 1] (default: the run's "
        "MODEL.FOCAL_DET.DRAW_SCORE_THRESH); AP does not depend on it"
    )
    report.add_argument("--score-thresh", type=float, metavar="S", help=text)
    add_number(report, "--images", 6, "images of the worst and of the best")
    report.set_defaults(run=_report)


def add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser], summary: str) -> None:
    """Add "compare"."""
    compare = commands.add_parser(
        "compare",
        help=summary,
        description="Print what differs between two runs and their AP by class, and write compare.html to --out: keys, "
        "curves over each other, how sure the difference of AP is, and images where one is right and the other wrong. "
        "Scores are compared on test sets of the same content alone. Needs no Detectron2.",
    )
    compare.add_argument("runs", type=folder_name, nargs="+", metavar="RUN", help="OUTPUT_DIR of a training; two")
    text = (
        "least score of the detections that are drawn and counted, in [0, 1] (default: the one with the best F1 of "
        "each run); AP does not depend on it"
    )
    compare.add_argument("--score-thresh", type=float, metavar="S", help=text)
    add_number(compare, "--images", 6, "images where the one run is better, and where the other is")
    add_out(compare, "output/compare")
    compare.set_defaults(run=_compare)


def _report(args: argparse.Namespace) -> int:
    from ..report import write_report  # takes a second to import, which --help need not wait for

    print(write_report(args.output_dir, score_threshold=args.score_thresh, images=args.images))
    return EXIT_DONE


def _compare(args: argparse.Namespace) -> int:
    from ..report import COMPARISON, compare_runs, write_comparison

    if len(args.runs) != 2:
        given = f"{len(args.runs)} {'is' if len(args.runs) == 1 else 'are'} given"
        raise InputError(f"compare takes two runs, and {given}; compare more of them in pairs")
    first, second = args.runs
    compared = compare_runs(first, second, score_threshold=args.score_thresh, images=args.images)
    make_folder(Path(args.out), COMPARISON)
    path = write_comparison(compared, args.out)
    print(*map(visible, _lines(compared)), sep="\n")
    print(path)
    return EXIT_DONE


def _lines(compared: RunComparison) -> Iterator[str]:
    """Yield the lines that are printed."""
    from tabulate import tabulate

    yield f"A  {compared.names[0]}"
    yield f"B  {compared.names[1]}"
    yield from compared.notes
    rows = [(fact.label, "", fact.first, fact.second) for fact in compared.facts if fact.differs]
    rows += compared.keys
    if rows:
        cut = [[cell if len(cell) <= 40 else f"{cell[:37]}..." for cell in row] for row in rows]
        table = tabulate(cut, ("differs", "default", "A", "B"), disable_numparse=True)
        yield from ("", *table.splitlines())
    for pair, noise in compared.sets:
        scores = [(each.name, "", each.first, each.second, each.difference) for each in pair.figures[:3]]
        scores += [(c.name, f"{c.objects:,}", c.ap.first, c.ap.second, c.ap.difference) for c in pair.classes]
        head = (pair.name, "objects", "A", "B", "B - A")
        yield from (
            "",
            *tabulate(scores, head, floatfmt=("", "", ".1f", ".1f", "+.1f"), colalign=("left", "right")).splitlines(),
            noise,
        )
    yield from ("", compared.conclusion)
