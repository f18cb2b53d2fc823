"""focal-det doctor: say whether exported models run here, whether training works, and what fixes what does not."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from itertools import groupby

from ..doctor.core import exported_models
from ..doctor.pytorch import detectron2, devices, pytorch, speed_options
from ..doctor.system import ABSENT, BROKEN, NOTE, OK, TRAINING_GROUPS, Finding, folders, packages, system
from ..errors import EXIT_DONE, EXIT_FAULT, counted

_MARKS = {OK: "  ok  ", NOTE: " note ", BROKEN: "BROKEN", ABSENT: "absent"}


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], summary: str) -> None:
    """Add "doctor"."""
    doctor = commands.add_parser(
        "doctor",
        help=summary,
        description="Look at Python, the packages, what runs exported models, PyTorch, Detectron2, the GPUs, the "
        "compilers and the folders. Exits with 0 if training works here, with 1 if something that it needs is "
        "missing or broken; the last line says whether exported models run nevertheless. Needs none of them.",
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    with contextlib.redirect_stdout(sys.stderr):  # what a package prints when it is imported
        findings = [*system(), *packages(), *exported_models(), *pytorch(), *detectron2(), *devices()]
        findings += [*speed_options(), *folders()]
    broken = [finding for finding in findings if finding.state in (BROKEN, ABSENT)]
    runs_exported = all(finding.group in TRAINING_GROUPS for finding in broken)
    if args.json:
        found = [finding._asdict() for finding in findings]
        works = {"training_works": not broken, "exported_models_work": runs_exported}
        print(json.dumps({**works, "findings": found}, indent=1))
    else:
        print(*_lines(findings), "", sep="\n")
        notes = sum(finding.state == NOTE for finding in findings)
        if broken:
            exported = "Exported models run here (--model). " if runs_exported else ""
            names = ", ".join(finding.name for finding in broken)
            print(f'{exported}Training does not work here: {names}. See "fix" above.')
        else:
            print("Training works here." + (f" {counted(notes, 'note')} above." if notes else ""))
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
