"""focal-det report: one page about a run."""

from __future__ import annotations

import argparse

from ..errors import EXIT_DONE
from .common import add_number, folder_name


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


def _report(args: argparse.Namespace) -> int:
    from ..report import write_report  # takes a second to import, which --help need not wait for

    print(write_report(args.output_dir, score_threshold=args.score_thresh, images=args.images))
    return EXIT_DONE
