"""From rows to trainings: what has to be run, where each is kept, and what is there already."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..data.sources import name_sources, parse_source
from ..engine.config_file import key_value_pairs, load_config, plain_values
from ..errors import InputError
from .results import Record, Status, has_trained, read_metrics, read_record
from .tables import ROOT, Row, Table, backbone_config, configs_of, load_tables

_DATA = "--train-json and the like"

# Overrides by hand that the training of a backbone takes over: what it is made of, and what it runs on.
_OF_BACKBONES = ("MODEL.BACKBONE.", "MODEL.RESNETS.", "MODEL.FPN.", "MODEL.DEVICE", "DATALOADER.", "SOLVER.AMP.")

# What the plan itself sets.
_RESERVED = {"OUTPUT_DIR": "--out", "SEED": "--seeds"}


@dataclass(frozen=True)
class Options:
    """What is asked for beside the rows.

    scale: of SCALES.
    seeds: each a training of every row.
    out: the folder of everything.
    num_gpus: processes of a training.
    data_flags: FLAG PATH ... of train_net.py, for the user's own data sets.
    overrides: KEY VALUE ... by hand, on top of every row's.
    """

    scale: str
    seeds: tuple[int, ...]
    out: Path
    num_gpus: int = 1
    data_flags: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One training, which may serve several rows.

    name: "table/row" of the first row that it serves, and the seed.
    folder: its OUTPUT_DIR.
    words: the command line behind train_net.py.
    iterations: of its schedule.
    test_set: the first that it is evaluated on.
    config: the row's configuration by dotted key, without seed, folder and backbone's file, and the data's flags.
    """

    name: str
    folder: Path
    words: tuple[str, ...]
    iterations: int
    test_set: str
    config: Mapping[str, Any] = field(repr=False, hash=False, compare=False)

    @cached_property
    def command(self) -> list[str]:
        """To be run from the folder that this process was started in."""
        return [sys.executable, str(_shortest(ROOT / "train_net.py")), *self.words]

    @property
    def record(self) -> Record | None:
        """See `read_record`."""
        return read_record(self.folder)

    def metrics(self) -> dict[str, float]:
        """See `read_metrics`."""
        return read_metrics(self.folder, iterations=self.iterations, test_sets=[self.test_set])

    @property
    def status(self) -> Status | None:
        """What became of it; None before its first start. It is done if its metrics say so, however it ended."""
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
class Plan:
    """A table's rows and the trainings that serve them.

    rows: by name, each with its runs by seed; rows of one configuration share theirs.
    runs: all of them once, seed by seed, so that the table is whole before it is repeated.
    backbones: the trainings whose backbones the runs start from, by the file that each backbone goes to.
    configs: of each row.
    """

    table: Table
    options: Options
    rows: Mapping[str, Mapping[int, Run]]
    runs: tuple[Run, ...]
    backbones: Mapping[Path, Run]
    configs: Mapping[str, CfgNode]


def plan_table(table: Table, rows: Sequence[Row], options: Options) -> Plan:
    """What has to be run for some rows of a table.

    Raises:
        InputError: an override that does not work, or that the plan sets itself.
    """
    if not (ROOT / "train_net.py").is_file():
        raise InputError(f"{ROOT} has no train_net.py: the tables need the project's checkout, not a wheel of it")
    for key, _ in key_value_pairs(options.overrides):
        if key in _RESERVED:
            raise InputError(f"{key} is set for each run; use {_RESERVED[key]}")
    by_row: dict[str, dict[int, Run]] = {}
    backbones: dict[Path, Run] = {}
    configs = {row.name: row_config(row, options.scale, options.overrides) for row in rows}
    for row in rows:
        cfg = configs[row.name]
        owner = _owner(row, options.scale)
        by_row[row.name] = {seed: _run(owner, seed, cfg, options) for seed in options.seeds}
        file = _backbone_file(cfg, options)
        if file is not None:
            backbones[file] = _backbone_run(cfg, file, options)
    runs = {run.folder: run for seed in options.seeds for run in (by_row[row.name][seed] for row in rows)}
    return Plan(table, options, by_row, tuple(runs.values()), backbones, configs)


def with_runs_of_before(plan: Plan) -> Plan:
    """The plan with every row of its table and, beside what was asked for, the seeds that were run before."""
    rows: dict[str, Mapping[int, Run]] = {}
    for row in plan.table.rows.values():
        rows[row.name] = dict(plan.rows.get(row.name, {}))
        try:
            cfg = plan.configs.get(row.name) or row_config(row, plan.options.scale, plan.options.overrides)
        except InputError:  # the overrides are for other rows
            continue
        owner = _owner(row, plan.options.scale)
        found = (plan.options.out / "runs" / owner.table / owner.name).glob("seed*")
        seeds = {int(path.name[4:]) for path in found if path.name[4:].isdecimal()} - rows[row.name].keys()
        before = {seed: _run(owner, seed, cfg, plan.options) for seed in seeds}
        before = {seed: run for seed, run in before.items() if has_trained(run.folder) and not changed_keys(run)}
        rows[row.name] = dict(sorted({**rows[row.name], **before}.items()))
    runs = {run.folder: run for row_runs in rows.values() for run in row_runs.values()}
    return replace(plan, rows=rows, runs=tuple(runs.values()))


def row_config(row: Row, scale: str, overrides: Sequence[str] = ()) -> CfgNode:
    """A row's configuration at a scale, with overrides KEY VALUE ... by hand.

    Raises:
        InputError: one that does not work.
    """
    files = [ROOT / file for file in configs_of(load_tables()[row.table], scale)]
    try:
        cfg = load_config(files, [*row.words(scale), *overrides])
    except InputError as error:
        raise InputError([f"{row.path}: {problem}" for problem in error.problems]) from error
    cfg.OUTPUT_DIR = ""
    return cfg


def changed_keys(run: Run) -> list[str]:
    """What a run was begun with that differs from what is planned now, in words; nothing for one without a result."""
    if not has_trained(run.folder):
        return []
    record = run.record
    if record is None:
        return [f"there is no record of it in {run.folder}"]
    before = record.config
    return [
        f"{key} {before[key]} -> {value}" for key, value in run.config.items() if key in before and before[key] != value
    ]


@functools.cache
def _owner(row: Row, scale: str) -> Row:
    """The first row of all tables that has the same configuration at a scale: its name is the training's."""
    for table in load_tables().values():
        for other in table.rows.values():
            if other == row or _identity(other, scale) == _identity(row, scale):
                return other
    raise AssertionError(row.path)


@functools.cache
def _identity(row: Row, scale: str) -> str:
    return str(row_config(row, scale).dump())


def _run(owner: Row, seed: int, cfg: CfgNode, options: Options) -> Run:
    """A training of a configuration, named by the first row that has it."""
    folder = options.out / "runs" / owner.table / owner.name / f"seed{seed}"
    configs = configs_of(load_tables()[owner.table], options.scale)
    backbone = _backbone_file(cfg, options)
    words = [word for file in configs for word in ("--config-file", str(_shortest(ROOT / file)))]
    words += ["--resume", "auto", *(["--num-gpus", str(options.num_gpus)] if options.num_gpus > 1 else [])]
    words += [*options.data_flags, *owner.words(options.scale), *options.overrides]
    words += ["MODEL.WEIGHTS", str(backbone)] if backbone else []
    words += ["SEED", str(seed), "OUTPUT_DIR", str(folder)]
    flags = zip(options.data_flags[::2], options.data_flags[1::2], strict=True)
    data = " ".join(f"{flag} {Path(path).absolute()}" for flag, path in flags)
    test_set = _first_test_set(cfg, options.data_flags)
    settings = {_DATA: data, **plain_values(cfg)}
    return Run(f"{owner.path} seed {seed}", folder, tuple(words), cfg.SOLVER.MAX_ITER, test_set, settings)


def _first_test_set(cfg: CfgNode, data_flags: Sequence[str]) -> str:
    """The name that the first set to evaluate on has in a run's metrics, where there are several."""
    for kind in ("json", "voc"):
        if f"--val-{kind}" in data_flags:
            return f"val_{kind}"
    names, _ = name_sources(parse_source("val", text) or text for text in cfg.DATASETS.TEST)
    return names[0] if names else ""


def _backbone_file(cfg: CfgNode, options: Options) -> Path | None:
    """The file with the backbone that a row starts from; None where its configuration names weights itself."""
    if backbone_config(options.scale) is None or cfg.MODEL.WEIGHTS:
        return None
    return options.out / "backbones" / f"R_{cfg.MODEL.RESNETS.DEPTH}_FPN_{cfg.MODEL.FPN.OUT_CHANNELS}.pth"


def _backbone_run(cfg: CfgNode, file: Path, options: Options) -> Run:
    """The training of a scale's first configuration, with a row's depth and width."""
    config = backbone_config(options.scale)
    assert config is not None
    folder = file.with_suffix("")
    own = ["MODEL.RESNETS.DEPTH", str(cfg.MODEL.RESNETS.DEPTH)]
    own += ["MODEL.FPN.OUT_CHANNELS", str(cfg.MODEL.FPN.OUT_CHANNELS)]
    for key, value in key_value_pairs(options.overrides):
        own += [key, value] if key.startswith(_OF_BACKBONES) else []
    words = ["--config-file", str(_shortest(ROOT / config)), "--resume", "auto"]
    words += ["--num-gpus", str(options.num_gpus)] if options.num_gpus > 1 else []
    words += [*own, "OUTPUT_DIR", str(folder)]
    resolved = load_config(ROOT / config, [*own, "OUTPUT_DIR", ""])
    test_set = _first_test_set(resolved, ())
    return Run(
        f"backbone {file.stem}", folder, tuple(words), resolved.SOLVER.MAX_ITER, test_set, plain_values(resolved)
    )


def _shortest(path: Path) -> Path:
    """Relative to where the user stands, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
