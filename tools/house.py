"""Measure the structure of a checkout: its rooms, and which of its files a step, a start, a stop and a resume enter.

    python tools/house.py [--checkout DIR] [--json FILE] [--static]

Prints tables in Markdown. --static leaves out the runs, which take a few minutes on one core. Nothing depends on the
names of modules, so that the figures of two checkouts can be compared.

**Rooms.** The package's top level and each folder directly in it: modules (.py files without `__init__.py`), lines of
Python and lines of all text files, comments and empty lines included.

**Entered.** A file of the package is entered when one of its functions is called, or one of its generators resumed, in
any process of a run: the command, its ranks, their loader workers. Code that runs only while a module is imported does
not count, nor does a waiting function when what it called returns. The runs are small trainings on generated shapes, on
the CPU:

- step: one training step in steady state, from one `TrainerBase.before_step` to the next, when no metrics, checkpoint
  or evaluation is due; what the loader does meanwhile counts. It is the union of six such steps.
- start: from the command line of a training in a new folder to its first step, when its shapes have been drawn before;
  and the same when they are drawn.
- signal: one SIGTERM to the command during such steps, from its arrival until every process has ended; the steps that
  are still finished are part of it. With 1 rank; and what 2 ranks (`--num-gpus 2`) enter beyond that.
- resume: the same training with --resume, from the command line to its first step.

**Checkpoint.** How often the resume reads the file that it resumes from, before its first step: calls of `torch.load`,
and zip archives whose records are read in Python, as for their checksums. The number of times that Python opens the
file is higher, since one reading may open it several times, and a look at its directory opens it as well.

**Models.** Registered meta-architectures that the resume builds before its first step; the last, which it trains, does
not count.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from house_rooms import rooms_of
from house_runs import measure_runs

PACKAGE = "focal_det"
COUNTS = {
    "a training step": "step",
    "command line to first step": "start",
    "the same, drawing its shapes": "start_drawing",
    "a SIGTERM, 1 rank": "signal",
    "a SIGTERM, beyond a training step": "signal_beyond_step",
    "a SIGTERM, beyond 1 rank with 2": "signal_only_2_ranks",
    "--resume to first step": "resume",
    "a training step, 2 ranks": "step_2_ranks",
    "command line to first step, 2 ranks": "start_2_ranks",
}


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables and write the file; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkout", type=Path, default=Path(__file__).parents[1], help="what is measured (this one)")
    parser.add_argument("--json", type=Path, help="file to write, with the names of all files that were entered")
    parser.add_argument("--static", action="store_true", help="count files and lines alone; nothing is run")
    parser.add_argument("--package", default=PACKAGE, help=f"folder of the package in the checkout ({PACKAGE})")
    args = parser.parse_args(argv)
    checkout = args.checkout.resolve()
    try:
        found: dict[str, Any] = {"commit": _commit(checkout), "static": rooms_of(checkout, args.package)}
        if not args.static:
            found["python"], found["runs"] = platform.python_version(), measure_runs(checkout, args.package)
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(table(found)))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def table(found: dict[str, Any]) -> list[str]:
    """Return what was found as lines of Markdown."""
    static = found["static"]
    total = static["total"]["python_lines"]
    lines = [f"Commit {found['commit']}", "", "| room | modules | Python lines | share | text files | text lines |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name, sums in [*static["rooms"].items(), ("**package**", static["total"])]:
        share = f"{sums['python_lines'] / max(1, total):.1%}"
        of_text = f"{sums['text_files']} | {sums['text_lines']}"
        lines.append(f"| {name} | {sums['modules']} | {sums['python_lines']} | {share} | {of_text} |")
    for name, sums in static["beside"].items():
        of_text = f"{sums['text_files']} | {sums['text_lines']}"
        lines.append(f"| beside it: {name} | {sums['modules']} | {sums['python_lines']} | | {of_text} |")
    (room, _), (folder, most), (path, longest) = (
        static[name] for name in ("largest_room", "fullest_folder", "longest_file")
    )
    rows = {
        "largest room": f"{static['largest_share']:.1%} ({room})",
        "longest file, lines": f"{longest} ({path})",
        "most modules in a folder": f"{most} ({folder})",
    }
    if "runs" in found:
        runs = found["runs"]
        checkpoint = runs["checkpoint"]
        rows |= {f"files entered: {words}": runs["counts"][name] for words, name in COUNTS.items()}
        rows["resume: the checkpoint is read"] = checkpoint["readings"]
        rows["resume: the checkpoint is opened"] = checkpoint["opened"]
        rows["resume: models built before the trainer's"] = runs["models"]["before_the_trainers"]
    return [*lines, "", "| measure | |", "|---|---|", *(f"| {words} | {figure} |" for words, figure in rows.items())]


def _commit(checkout: Path) -> str:
    """Return the commit, marked -dirty if files differ from it; "none" outside of git."""
    git = ["git", "--no-optional-locks", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "none"


if __name__ == "__main__":
    sys.exit(main())
