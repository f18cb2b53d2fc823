"""`focal-det reproduce`: check what is requested, then run it, then write it up."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from detectron2.config import CfgNode

from ..data.catalog import dataset_problems
from ..errors import Findings, InputError, some
from ..files import FolderLock, is_writable, write_text_whole
from .claims import RowResult, claims_page, load_claims
from .comparison import diverged, in_miniature, measured, provenance, report_files, write_report
from .cost import estimate
from .pretraining import BACKBONE_STEPS, check_backbone, train_backbone
from .runs import SweepOptions, SweepPlan, SweepRun, changed_keys, plan_table, with_runs_of_before
from .sweep import outcome, run_all
from .tables import Table, find_rows

CLAIMS = "claims.md"

_POLL_SECONDS = 2.0


def plan_tables(tables: Sequence[Table], rows: Sequence[str], options: SweepOptions) -> list[SweepPlan]:
    """Plan some rows of each table, all if there are no patterns, or raise an InputError."""
    return [plan_table(table, find_rows(table, rows), options) for table in tables]


def trainings(plans: Sequence[SweepPlan]) -> list[SweepRun]:
    """Return every training once, in the order in which they run.

    Of several tables those that the paper's claims need come first, claim by claim, each with all its seeds; of the
    others, and of a single table, all rows with the first seed come before the next.
    """
    needed = [path for claim in load_claims() for path in claim.rows] if len(plans) > 1 else []
    rows = {f"{plan.table.name}/{name}": runs for plan in plans for name, runs in plan.rows.items()}
    first = [run for path in needed for run in rows[path].values()]
    return list(dict.fromkeys([*first, *(run for plan in plans for run in plan.runs)]))


def check_out(plans: Sequence[SweepPlan]) -> Findings:
    """Find a folder or a table that cannot be written."""
    out, runs = plans[0].options.out, trainings(plans)
    folders = (out, *(run.folder for run in runs), *(file.parent for file in _backbones(plans)))
    blocked = [path for path in folders if not is_writable(path)]
    blocked += [path for path in (*_files(plans), *_backbones(plans)) if path.is_dir()]
    return Findings([f"--out {out}: {path} cannot be written there; name another" for path in blocked[:1]])


def check_plans(plans: Sequence[SweepPlan]) -> Findings:
    """Find what `check_out` does, missing data sets, runs and backbones of another configuration."""
    options, runs = plans[0].options, trainings(plans)
    of_out = check_out(plans)
    if of_out.errors:
        return of_out
    # The user's own files are checked elsewhere.
    with_named_sets = () if options.data_flags else runs
    names = [n for run in with_named_sets for key in ("DATASETS.TRAIN", "DATASETS.TEST") for n in run.config[key]]
    problems = dataset_problems(dict.fromkeys(names))
    for file, cfg in _backbones(plans).items():
        problems += check_backbone(file, cfg).errors if file.is_file() else []
    for run in runs:
        if changes := changed_keys(run):
            begun = f"{run.folder} was begun with another configuration ({some('', changes)})"
            problems.append(f"{begun}; name another --out, or move that folder away")
    return Findings(problems)


def describe(plans: Sequence[SweepPlan]) -> str:
    """Return the commands of what is not finished, and what they will cost."""
    missing = [file for file in _backbones(plans) if not file.is_file()]
    lines = [
        f"# {file}: a ResNet with its pyramid that learns drawn shapes, trained first, in some minutes"
        for file in missing
    ]
    rows = {run: name for plan in reversed(plans) for name, runs in plan.rows.items() for run in runs.values()}
    for run in trainings(plans):
        state = "begun with another configuration" if changed_keys(run) else outcome(run, run.status)
        lines.append(f"# {rows[run] + ': ' if run in rows else ''}{run.name}: {state}")
        if not run.is_finished or changed_keys(run):
            lines.append(shlex.join(run.command))
    return "\n".join([*lines, "", estimate(plans)])


def run_plans(plans: Sequence[SweepPlan], command: str) -> tuple[list[Path], bool]:
    """Run what is not finished; after every run write the tables that it belongs to, and of several also the claims.

    Args:
        command: the command line, for the record.

    Returns:
        The files that are written, the claims' first, and whether a signal stopped it.

    Raises:
        TrainingError: the training of a backbone diverged, so no row can start.
        InputError: another process has meanwhile trained a backbone of another configuration there.
        OSError: a file or a record cannot be written.
    """

    def write(run: SweepRun) -> None:
        write_files(plans, command, run)

    for file, cfg in _backbones(plans).items():
        _train_once(cfg, file)
        check_backbone(file, cfg).raise_if_errors()
    stopped = run_all(trainings(plans), num_gpus=plans[0].options.num_gpus, after_each=write)
    return write_files(plans, command), stopped


def _train_once(cfg: CfgNode, file: Path) -> None:
    """Train a backbone that is not there; one that another process trains is waited for, so all rows start alike."""
    is_said = False
    while not file.is_file():
        with ExitStack() as held:
            try:
                held.enter_context(FolderLock(str(file.parent), ".reproduce.lock"))
            except InputError:
                if not is_said:
                    print(f"{file}: another process trains it; waiting", flush=True)
                is_said = True
                time.sleep(_POLL_SECONDS)
                continue
            if not file.is_file():
                print(f"{file}: training it for {BACKBONE_STEPS} steps", flush=True)
                share = train_backbone(cfg, file)
                print(f"{file}: gives {share:.1%} of the places on drawn objects their class", flush=True)


def write_files(plans: Sequence[SweepPlan], command: str, run: SweepRun | None = None) -> list[Path]:
    """Write the tables, of several also the claims, from what is finished, and return the files.

    Args:
        command: the command line, for the record.
        run: write only the tables with this training; None for all of them.

    Raises:
        OSError: a file cannot be written; files from before stay intact.
    """
    full = [with_runs_of_before(plan) for plan in plans]
    if len(plans) > 1:
        heading = [
            f"# The paper's claims about trainings{in_miniature(plans[0].options.scale, ', ')}",
            *("", *provenance(full, command)),
        ]
        results = {
            f"{plan.table.name}/{name}": RowResult(measured(runs, "AP"), diverged(runs))
            for plan in full
            for name, runs in plan.rows.items()
        }
        published = {row.path: row.published for plan in full for row in plan.table.rows.values()}
        write_text_whole(plans[0].options.out / CLAIMS, claims_page(results, published, heading))
    for plan in full:
        if run is None or run in plan.runs:
            write_report(plan, command)
    return _files(plans)


def _files(plans: Sequence[SweepPlan]) -> list[Path]:
    claims = [plans[0].options.out / CLAIMS] if len(plans) > 1 else []
    return [*claims, *(path for plan in plans for path in report_files(plan))]


def _backbones(plans: Sequence[SweepPlan]) -> dict[Path, CfgNode]:
    """Return the backbones that the trainings that are not finished start from, with a configuration each."""
    words = {word for run in trainings(plans) if not run.is_finished for word in run.arguments}
    return {file: cfg for plan in plans for file, cfg in plan.backbones.items() if str(file) in words}
