"""From rows to trainings: what has to be run, where each is kept, and what is there already."""

from __future__ import annotations

import functools
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..config.layers import key_value_pairs, plain_values
from ..config.load import load_config
from ..data.dataset_spec import name_sources, parse_source
from ..errors import Findings, InputError, some
from .results import Record, Status, has_trained, read_metrics, read_record
from .tables import Table, TableRow, configs_of, load_tables, trains_backbone

_DATA = "--train-json and the like"

# What the plan itself sets.
_RESERVED = {"OUTPUT_DIR": "--out", "SEED": "--seeds"}


@dataclass(frozen=True)
class SweepOptions:
    """How the rows are to be trained: once with each seed, into folders of `out`.

    data_flags: FLAG PATH ... of train_net.py, for the user's own data sets.
    overrides: KEY VALUE ... by hand, on top of every row's.
    plugins: that each training imports, as --plugin names them.
    """

    scale: str
    seeds: tuple[int, ...]
    out: Path
    num_gpus: int = 1
    data_flags: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepRun:
    """One training, which may serve several rows.

    name: "table/row" of the first row that it serves, and the seed.
    folder: its OUTPUT_DIR.
    test_set: the first that it is evaluated on.
    config: the row's configuration by dotted key, without seed and folders; with the data flags.
    """

    name: str
    folder: Path
    arguments: tuple[str, ...]
    iterations: int
    test_set: str
    config: Mapping[str, Any] = field(repr=False, hash=False, compare=False)

    @property
    def command(self) -> list[str]:
        """The command, to be run in this process's working directory."""
        return [sys.executable, "-m", "focal_det", "train", *self.arguments]

    @property
    def record(self) -> Record | None:
        """Its record; None before its first start."""
        return read_record(self.folder)

    def metrics(self) -> dict[str, float]:
        """Return its figures by column; empty before its end."""
        return read_metrics(self.folder, iterations=self.iterations, test_sets=[self.test_set])

    def figures(self) -> dict[str, float]:
        """Return `metrics` with "hours" of its starts, evaluation included, and "ms" for an image, where recorded."""
        found, record = self.metrics(), self.record
        if found and record:
            times = {"hours": record.seconds / 3600, "ms": record.ms_per_image}
            found |= {name: value for name, value in times.items() if value}
        return found

    @property
    def status(self) -> Status | None:
        """Its state; None before its first start. It is done if its metrics say so, however it ended."""
        if self.metrics():
            return Status.DONE
        record = self.record
        if record is None:
            return None
        return Status.UNFINISHED if record.status is Status.DONE else record.status

    @property
    def is_finished(self) -> bool:
        """Whether it has its result."""
        return self.status in (Status.DONE, Status.DIVERGED)


@dataclass(frozen=True)
class SweepPlan:
    """A table's rows and the trainings that serve them.

    rows: by name, each with its runs by seed; rows of one configuration share theirs.
    runs: all of them once, seed by seed, so that the table is complete before it is repeated.
    backbones: the files of the backbones that the runs start from, each with the configuration of a row that does.
    """

    table: Table
    options: SweepOptions
    rows: Mapping[str, Mapping[int, SweepRun]]
    runs: tuple[SweepRun, ...]
    backbones: Mapping[Path, CfgNode]
    configs: Mapping[str, CfgNode]


def plan_table(table: Table, rows: Sequence[TableRow], options: SweepOptions) -> SweepPlan:
    """Plan the trainings of some rows of a table.

    Raises:
        InputError: an override that does not work, or that the plan sets itself.
    """
    for key, _ in key_value_pairs(options.overrides):
        if key in _RESERVED:
            raise InputError(f"{key} is set for each run; use {_RESERVED[key]}")
    by_row: dict[str, dict[int, SweepRun]] = {}
    backbones: dict[Path, CfgNode] = {}
    configs = {row.name: row_config(row, options.scale, options.overrides) for row in rows}
    for row in rows:
        cfg, owner = configs[row.name], _owner(row, options.scale)
        by_row[row.name] = _runs(owner, options.seeds, cfg, options)
        if file := _backbone_file(cfg, options):
            backbones.setdefault(file, cfg)
    runs = {run.folder: run for seed in options.seeds for run in (by_row[row.name][seed] for row in rows)}
    return SweepPlan(table, options, by_row, tuple(runs.values()), backbones, configs)


def with_runs_of_before(plan: SweepPlan) -> SweepPlan:
    """Return the plan with every row of its table and, beside what is requested, the seeds that were run before."""
    options = plan.options
    rows: dict[str, dict[int, SweepRun]] = {}
    for name, row in plan.table.rows.items():
        rows[name] = dict(plan.rows.get(name, {}))
        try:
            cfg = plan.configs.get(name) or row_config(row, options.scale, options.overrides)
        except InputError:  # the overrides are for other rows
            continue
        owner = _owner(row, options.scale)
        seeds = (path.name[4:] for path in (options.out / "runs" / owner.path).glob("seed*"))
        before = {int(text) for text in seeds if text.isdecimal()} - rows[name].keys()
        for seed, run in _runs(owner, before, cfg, options).items():
            if has_trained(run.folder) and not changed_keys(run):
                rows[name][seed] = run
        rows[name] = dict(sorted(rows[name].items()))
    runs = {run.folder: run for row_runs in rows.values() for run in row_runs.values()}
    return replace(plan, rows=rows, runs=tuple(runs.values()))


def check_trained(plans: Sequence[SweepPlan], flag: str) -> Findings:
    """Find that none of the plans has a training of before, and name what there is instead.

    Args:
        flag: that names the folder.
    """
    if any(with_runs_of_before(plan).runs for plan in plans):
        return Findings()
    out, scale = plans[0].options.out, plans[0].options.scale
    trained = [folder for folder in sorted((out / "runs").glob("*/*/seed*")) if has_trained(folder)]
    if trained:
        names = some("", [folder.relative_to(out / "runs") for folder in trained])
        why = f"its trainings, {names}, are of other tables, another scale than {scale}, or other keys; train a row"
    else:
        why = "it holds no training; train a row" if out.is_dir() else "no such folder; train a row"
    others = [folder.parent for folder in sorted(out.parent.glob("*/runs")) if folder.parent != out]
    there = f", such as {some('', others)}" if others else ""
    return Findings([f"{flag} {out}: {why}, or name a folder that focal-det reproduce has trained into{there}"])


def row_config(row: TableRow, scale: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Return a row's configuration at a scale, with overrides KEY VALUE ... by hand, or raise an InputError."""
    files = configs_of(load_tables()[row.table], scale)
    try:
        cfg = load_config(files, [*row.arguments(scale), *overrides])
    except InputError as error:
        raise InputError([f"{row.path}: {problem}" for problem in error.problems]) from error
    cfg.OUTPUT_DIR = ""
    return cfg


def changed_keys(run: SweepRun) -> list[str]:
    """Return how a run's configuration differs from the one that it was begun with; nothing before a result."""
    if not has_trained(run.folder):
        return []
    record = run.record
    if record is None:
        return [f"there is no record of it in {run.folder}"]
    return changes({**run.config, **record.config}, run.config)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return "KEY BEFORE -> NOW" of every key of `now` whose value was another."""
    return [f"{key} {before.get(key)} -> {value}" for key, value in now.items() if before.get(key) != value]


@functools.cache
def _owner(row: TableRow, scale: str) -> TableRow:
    """Return the first row of all tables with the same configuration at a scale: the training has its name."""
    for table in load_tables().values():
        for other in table.rows.values():
            if other == row or _identity(other, scale) == _identity(row, scale):
                return other
    raise AssertionError(row.path)


@functools.cache
def _identity(row: TableRow, scale: str) -> str:
    return str(row_config(row, scale).dump())


def _runs(owner: TableRow, seeds: Collection[int], cfg: CfgNode, options: SweepOptions) -> dict[int, SweepRun]:
    """Return the trainings of a configuration by seed, named by the first row that has it."""
    if not seeds:
        return {}
    backbone = _backbone_file(cfg, options)
    arguments = [*options.data_flags, *owner.arguments(options.scale), *options.overrides]
    arguments += ["MODEL.WEIGHTS", str(backbone)] if backbone else []
    files = configs_of(load_tables()[owner.table], options.scale)
    flags = zip(options.data_flags[::2], options.data_flags[1::2], strict=False)  # the last may have no value
    config = {_DATA: " ".join(f"{flag} {Path(path).absolute()}" for flag, path in flags), **plain_values(cfg)}
    config |= {"MODEL.WEIGHTS": backbone.name} if backbone else {}  # a run that began from another is not its like
    test_set = _first_test_set(cfg, options.data_flags)
    runs = {}
    for seed in seeds:
        folder = options.out / "runs" / owner.path / f"seed{seed}"
        line = _command_line(files, [*arguments, "SEED", str(seed)], folder, options)
        runs[seed] = SweepRun(f"{owner.path} seed {seed}", folder, line, cfg.SOLVER.MAX_ITER, test_set, config)
    return runs


def _command_line(configs: Sequence[str], arguments: list[str], folder: Path, options: SweepOptions) -> tuple[str, ...]:
    files = [word for file in configs for word in ("--config-file", file)]
    gpus = ["--num-gpus", str(options.num_gpus)] if options.num_gpus > 1 else []
    plugins = [word for name in options.plugins for word in ("--plugin", name)]
    return (*files, *plugins, "--resume", "auto", *gpus, *arguments, "OUTPUT_DIR", str(folder))


def _first_test_set(cfg: CfgNode, data_flags: Sequence[str]) -> str:
    """Return the first set's name in a run's metrics, where it is evaluated on several.

    Where flags name none to evaluate on, it is a part of the first set to train on.
    """
    for use in ("val", "train"):
        for flag, kind in ((f"--{use}", "data"), (f"--{use}-json", "json"), (f"--{use}-voc", "voc")):
            if flag in data_flags:
                return f"val_{kind}"
    names, _ = name_sources(parse_source("val", text) or text for text in cfg.DATASETS.TEST)
    return names[0] if names else ""


def _backbone_file(cfg: CfgNode, options: SweepOptions) -> Path | None:
    """Return the file with the backbone that a row starts from; None where MODEL.WEIGHTS says what to start from."""
    is_chosen = cfg.MODEL.WEIGHTS or any(key == "MODEL.WEIGHTS" for key, _ in key_value_pairs(options.overrides))
    if not trains_backbone(options.scale) or is_chosen:
        return None
    return options.out / "backbones" / f"R_{cfg.MODEL.RESNETS.DEPTH}_FPN_{cfg.MODEL.FPN.OUT_CHANNELS}.pth"
