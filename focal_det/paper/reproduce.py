"""`focal-det reproduce`: check what is requested, then run it, then write it up."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..data.catalog import dataset_problems, is_writable
from ..errors import Findings, some
from .comparison import report_files, write_report
from .cost import estimate
from .pretraining import train_backbone
from .runs import SweepPlan, changed_keys, with_runs_of_before
from .sweep import outcome, run_all


def check_plan(plan: SweepPlan) -> Findings:
    """Find missing data sets, a folder that cannot be written, runs that were begun with another configuration."""
    runs = plan.runs
    out = plan.options.out
    folders = (out, *(run.folder for run in runs), *(file.parent for file in plan.backbones))
    blocked = [path for path in folders if not is_writable(path)]
    blocked += [path for path in report_files(plan) if path.is_dir()]
    if blocked:
        return Findings([f"--out {out}: {blocked[0]} cannot be written there; name another"])
    # The user's own files are checked elsewhere.
    with_named_sets = () if plan.options.data_flags else runs
    names = [n for run in with_named_sets for key in ("DATASETS.TRAIN", "DATASETS.TEST") for n in run.config[key]]
    problems = dataset_problems(dict.fromkeys(names))
    for run in runs:
        if changes := changed_keys(run):
            begun = f"{run.folder} was begun with another configuration ({some('', changes)})"
            problems.append(f"{begun}; name another --out, or move that folder away")
    return Findings(problems)


def describe(plan: SweepPlan) -> str:
    """Return the commands of what is not finished, and what they will cost."""
    lines = [f"# {file}: a classifier of drawn shapes, trained first" for file in plan.backbones if not file.is_file()]
    rows = {run: name for name, runs in plan.rows.items() for run in runs.values()}
    for run in plan.runs:
        state = "begun with another configuration" if changed_keys(run) else outcome(run, run.status)
        lines.append(f"# {rows[run] + ': ' if run in rows else ''}{run.name}: {state}")
        if not run.is_finished or changed_keys(run):
            lines.append(shlex.join(run.command))
    return "\n".join([*lines, "", estimate(plan)])


def run_plan(plan: SweepPlan, command: str) -> tuple[list[Path], bool]:
    """Run what is not finished and write the table after every run.

    Args:
        command: the command line, for the record.

    Returns:
        The files of the table, and whether a signal stopped it.

    Raises:
        TrainingError: the training of a backbone diverged, so no row can start.
        OSError: the table or a record cannot be written.
    """

    def write() -> None:
        write_report(with_runs_of_before(plan), command)

    num_gpus = plan.options.num_gpus
    for file, cfg in plan.backbones.items():
        if not file.is_file():
            share = train_backbone(cfg, file)
            print(f"{file}: classifies {share:.1%} of the drawn shapes rightly", flush=True)
    stopped = run_all(plan.runs, num_gpus=num_gpus, after_each=write)
    return write_report(with_runs_of_before(plan), command), stopped
