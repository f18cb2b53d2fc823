"""`focal-det reproduce`: what is asked for, checked first, then run, then written up."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import torch

from ..data.catalog import dataset_problems, is_writable
from ..engine.safe_weights import load_tensors
from ..errors import InputError, TrainingError, some
from ..files import written_whole
from .cost import gpu_hours, hours_here, hours_in_miniature
from .report import report_files, write_report
from .results import Status
from .runs import Plan, Run, changed_keys, with_runs_of_before
from .sweep import outcome, run_all


def check_plan(plan: Plan) -> None:
    """Look for what would stop every run, before the first is started.

    Raises:
        InputError: missing data sets, a folder that cannot be written, runs that were begun with another
            configuration.
    """
    problems = plan_problems(plan)
    if problems:
        raise InputError(problems)


def plan_problems(plan: Plan) -> list[str]:
    """What speaks against running the plan."""
    runs = (*plan.backbones.values(), *plan.runs)
    out = plan.options.out
    blocked = [path for path in (out, *(run.folder for run in runs)) if not is_writable(path)]
    blocked += [path for path in report_files(plan) if path.is_dir()]
    if blocked:
        return [f"--out {out}: {blocked[0]} cannot be written there; name another"]
    problems = _data_problems(plan)
    for run in runs:
        changes = changed_keys(run)
        if changes:
            problems.append(
                f"{run.folder} was begun with another configuration ({some('', changes)}); name another --out, or move "
                "that folder away"
            )
    return problems


def _data_problems(plan: Plan) -> list[str]:
    """What is missing of the data sets, each once; the user's own files are not among them."""
    configs = [run.config for run in plan.backbones.values()]
    configs += [] if plan.options.data_flags else [run.config for run in plan.runs]
    names = [name for config in configs for key in ("DATASETS.TRAIN", "DATASETS.TEST") for name in config[key]]
    return dataset_problems(dict.fromkeys(names))


def describe(plan: Plan) -> str:
    """The commands of what is not finished, and what they will cost."""
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
    return "\n".join([*lines, "", _estimate(plan)])


def _estimate(plan: Plan) -> str:
    missing = [run for run in (*plan.backbones.values(), *plan.runs) if not run.is_finished or changed_keys(run)]
    if not missing:
        return "Estimate: nothing left to run."
    here = hours_here(missing, [run for run in plan.runs if run.status is Status.DONE])
    if here is not None:
        return f"Estimate: {len(missing)} trainings, {here:.1f} hours here, by the finished ones' time."
    by_folder = {run.folder: plan.configs[name] for name, runs in plan.rows.items() for run in runs.values()}
    hours = [gpu_hours(by_folder[run.folder]) for run in plan.runs if not run.is_finished]
    if plan.backbones or any(hour is None for hour in hours):
        return (
            f"Estimate: {len(missing)} trainings, {hours_in_miniature(missing):.1f} hours on one core of an AMD EPYC; "
            "by the finished ones' time after the first."
        )
    total = sum(hour for hour in hours if hour is not None)
    gpus = plan.options.num_gpus
    return (
        f"Estimate: {len(missing)} trainings, {total:.0f} GPU-hours on V100, {total / gpus:.1f} hours on {gpus}, "
        "by the times that Detectron2 publishes for its RetinaNet; evaluation and OHEM's selection come on top."
    )


def run_plan(plan: Plan, command: str) -> tuple[list[Path], bool]:
    """Run what is not finished and write the table after every run.

    Args:
        command: that this was asked for by, for the record.

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
            _keep_backbone(run, file)
        stopped = run_all(plan.runs, num_gpus=num_gpus, after_each=write)
    return write_report(with_runs_of_before(plan), command), stopped


def _keep_backbone(run: Run, file: Path) -> None:
    """Write the backbone of a finished training to a file of its own, without the head, unless it is there."""
    if file.is_file():
        return
    if run.status is not Status.DONE:
        raise TrainingError(f"{run.name}: {outcome(run, run.status)}; no row can start without it")
    weights: Mapping[str, torch.Tensor] = load_tensors(run.folder / "model_final.pth")["model"]
    with written_whole(file) as partial:
        torch.save({"model": {k: v for k, v in weights.items() if k.startswith("backbone.")}}, partial)
