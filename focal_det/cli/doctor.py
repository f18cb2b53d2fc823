"""focal-det doctor: say whether training works here, and what fixes it where it does not."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from itertools import groupby

from ..doctor.pytorch import detectron2, devices, pytorch, speed_options
from ..doctor.system import BROKEN, NOTE, OK, Finding, folders, packages, system
from ..errors import EXIT_DONE, EXIT_FAULT

_MARKS = {OK: "  ok  ", NOTE: " note ", BROKEN: "BROKEN"}


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add "doctor"."""
    doctor = commands.add_parser(
        "doctor",
        help="what is installed here, what fits together, and what fixes what does not",
        description="Look at Python, PyTorch, Detectron2, the packages, the GPUs, the compilers and the folders. Exits "
        "with 0 if training works here, with 1 if something that it needs is missing or broken. Needs none of them.",
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    with contextlib.redirect_stdout(sys.stderr):  # what a package prints when it is imported
        findings = [*system(), *packages(), *pytorch(), *detectron2(), *devices(), *speed_options(), *folders()]
    broken = [finding for finding in findings if finding.state == BROKEN]
    if args.json:
        found = [finding._asdict() for finding in findings]
        print(json.dumps({"training_works": not broken, "findings": found}, indent=1))
    else:
        print(*_lines(findings), "", sep="\n")
        notes = sum(finding.state == NOTE for finding in findings)
        if broken:
            print(f'Training does not work here: {", ".join(finding.name for finding in broken)}. See "fix" above.')
        else:
            print("Training works here." + (f" {notes} notes above." if notes else ""))
    return EXIT_FAULT if broken else EXIT_DONE


def _lines(findings: list[Finding]) -> list[str]:
    width = max(len(finding.name) for finding in findings)
    lines = []
    for group, members in groupby(findings, key=lambda finding: finding.group):
        lines.append(group)
        for finding in members:
            lines.append(f"  [{_MARKS[finding.state]}] {finding.name:{width}}  {finding.value}")
            if finding.fix:
                lines.append(f"  {'':{width + 9}}  fix: {finding.fix}")
    return lines
