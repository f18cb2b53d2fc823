"""`focal-det reproduce`: check what is requested, then run it, then write it up."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from ..checkpoint.safe_load import load_tensors
from ..data.catalog import dataset_problems, is_writable
from ..errors import Findings, TrainingError, some
from ..files import written_whole
from ..output_layout import FINAL_CHECKPOINT
from .comparison import report_files, write_report
from .cost import estimate
from .results import Status
from .runs import SweepPlan, SweepRun, changed_keys, with_runs_of_before
from .sweep import outcome, run_all


def check_plan(plan: SweepPlan) -> Findings:
    """Find missing data sets, a folder that cannot be written, runs that were begun with another configuration."""
    runs = (*plan.backbones.values(), *plan.runs)
    out = plan.options.out
    blocked = [path for path in (out, *(run.folder for run in runs)) if not is_writable(path)]
    blocked += [path for path in report_files(plan) if path.is_dir()]
    if blocked:
        return Findings([f"--out {out}: {blocked[0]} cannot be written there; name another"])
    # The user's own files are checked elsewhere.
    with_named_sets = plan.backbones.values() if plan.options.data_flags else runs
    names = [n for run in with_named_sets for key in ("DATASETS.TRAIN", "DATASETS.TEST") for n in run.config[key]]
    problems = dataset_problems(dict.fromkeys(names))
    for run in runs:
        if changes := changed_keys(run):
            begun = f"{run.folder} was begun with another configuration ({some('', changes)})"
            problems.append(f"{begun}; name another --out, or move that folder away")
    return Findings(problems)


def describe(plan: SweepPlan) -> str:
    """Return the commands of what is not finished, and what they will cost."""
    lines = []
    files = {run: file for file, run in plan.backbones.items()}
    rows = {run: name for name, runs in plan.rows.items() for run in runs.values()}
    for run in (*plan.backbones.values(), *plan.runs):
        state = "begun with another configuration" if changed_keys(run) else outcome(run, run.status)
        lines.append(f"# {rows[run] + ': ' if run in rows else ''}{run.name}: {state}")
        if not run.is_finished or changed_keys(run):
            lines.append(shlex.join(run.command))
        if run in files:
            lines.append(f"# and its backbone goes to {files[run]}")
    return "\n".join([*lines, "", estimate(plan)])


def run_plan(plan: SweepPlan, command: str) -> tuple[list[Path], bool]:
    """Run what is not finished and write the table after every run.

    Args:
        command: the command line, for the record.

    Returns:
        The files of the table, and whether a signal stopped it.

    Raises:
        TrainingError: the training of a backbone failed, so no row can start.
        OSError: the table or a record cannot be written.
    """

    def write() -> None:
        write_report(with_runs_of_before(plan), command)

    num_gpus = plan.options.num_gpus
    stopped = run_all(list(plan.backbones.values()), num_gpus=num_gpus, after_each=write, wait=True)
    if not stopped:
        for file, run in plan.backbones.items():
            if not file.is_file():
                _keep_backbone(run, file)
        stopped = run_all(plan.runs, num_gpus=num_gpus, after_each=write)
    return write_report(with_runs_of_before(plan), command), stopped


def _keep_backbone(run: SweepRun, file: Path) -> None:
    """Write the backbone of a finished training to a file of its own, without the head."""
    if run.status is not Status.DONE:
        raise TrainingError(f"{run.name}: {outcome(run, run.status)}; no row can start without it")
    weights = load_tensors(run.folder / FINAL_CHECKPOINT)["model"]
    with written_whole(file) as partial:
        torch.save({"model": {k: v for k, v in weights.items() if k.startswith("backbone.")}}, partial)
