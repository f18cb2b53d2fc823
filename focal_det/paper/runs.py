"""From rows to trainings: what has to be run, where each is kept, and what is there already."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..engine.config_file import load_config
from ..errors import InputError
from .tables import ROOT, Row, Table, backbone_config, configs_of, load_tables

RECORD = "reproduce.json"

_DATA = "--train-json and the like"

# What the plan itself sets.
_RESERVED = {"OUTPUT_DIR": "--out", "SEED": "--seeds"}


@dataclass(frozen=True)
class Options:
    """What is asked for beside the rows.

    scale: of SCALES.
    seeds: each a training of every row.
    out: the folder of everything.
    num_gpus: processes of a training.
    data_flags: of train_net.py, for the user's own COCO files.
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
    config: the row's configuration by dotted key, without seed, folder and backbone's file, and the data's flags.
    """

    name: str
    folder: Path
    words: tuple[str, ...]
    iterations: int
    config: Mapping[str, Any] = field(repr=False, hash=False, compare=False)

    @cached_property
    def command(self) -> list[str]:
        """To be run from the folder that this process was started in."""
        return [sys.executable, str(_shortest(ROOT / "train_net.py")), *self.words]

    @property
    def record(self) -> dict[str, Any]:
        """What is known of it: status, seconds, hardware, commit, error; empty before its first start.

        Raises:
            InputError: the file is damaged.
        """
        path = self.folder / RECORD
        if not path.is_file():
            return {}
        try:
            record = json.loads(path.read_text())
            if not isinstance(record, dict):
                raise ValueError("no mapping")
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); remove it to have the run looked at anew") from error
        return record

    def metrics(self) -> dict[str, float]:
        """Of the finished training: AP, AP50, ... in points, and "s_per_iteration"; empty before the end."""
        found: dict[str, float] = {}
        seconds: dict[str, float] = {}
        for line in metric_lines(self.folder):
            if "time" in line:
                seconds["s_per_iteration"] = line["time"]
            if line.get("iteration", -1) >= self.iterations - 1:  # with two test sets the key begins with the set
                found |= {key.rsplit("bbox/", 1)[1]: value for key, value in line.items() if "bbox/AP" in key}
        if "AP" not in found:
            return {}
        return {name: 0.0 if math.isnan(value) else value for name, value in found.items()} | seconds

    def iteration(self) -> int:
        """How far it has come, by its metrics."""
        return max((int(line.get("iteration", -1)) + 1 for line in metric_lines(self.folder)), default=0)


def metric_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a training's metrics.json; one that a kill cut short is passed over."""
    path = folder / "metrics.json"
    if path.is_file():
        for text in path.read_text().splitlines():
            try:
                yield json.loads(text)
            except ValueError:
                continue


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
    for key in options.overrides[::2]:
        if key in _RESERVED:
            raise InputError(f"{key} is set for each run; use {_RESERVED[key]}")
    by_row: dict[str, dict[int, Run]] = {}
    backbones: dict[Path, Run] = {}
    configs = {row.name: row_config(row, options.scale, options.overrides) for row in rows}
    for row in rows:
        cfg = configs[row.name]
        owner = _owner(row, cfg, options)
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
        if _identity(row, plan.options.scale, plan.options.overrides) is None:
            continue
        cfg = row_config(row, plan.options.scale, plan.options.overrides)
        owner = _owner(row, cfg, plan.options)
        found = (plan.options.out / "runs" / owner.table / owner.name).glob("seed*")
        seeds = {int(path.name[4:]) for path in found if path.name[4:].isdecimal()} - rows[row.name].keys()
        before = {seed: _run(owner, seed, cfg, plan.options) for seed in seeds}
        before = {seed: run for seed, run in before.items() if run.record and not changed_keys(run)}
        rows[row.name] = dict(sorted({**rows[row.name], **before}.items()))
    runs = {run.folder: run for row_runs in rows.values() for run in row_runs.values()}
    return replace(plan, rows=rows, runs=tuple(runs.values()))


def row_config(row: Row, scale: str, overrides: Sequence[str] = ()) -> CfgNode:
    """A row's configuration at a scale, with overrides KEY VALUE ... by hand.

    Raises:
        InputError: one that does not work.
    """
    files = [ROOT / file for file in configs_of(load_tables()[row.table], scale)]
    cfg = load_config(files, [*row.words(scale), *overrides])
    cfg.OUTPUT_DIR = ""
    return cfg


def changed_keys(run: Run) -> list[str]:
    """Keys that a run was begun with another value of than it is planned with now, in words."""
    before = run.record.get("config", {})
    return [
        f"{key} {before[key]} -> {value}" for key, value in run.config.items() if key in before and before[key] != value
    ]


def _owner(row: Row, cfg: CfgNode, options: Options) -> Row:
    """The first row of all tables that has the same configuration: its name is the training's."""
    for table in load_tables().values():
        for other in table.rows.values():
            if other == row or _identity(other, options.scale, options.overrides) == cfg.dump():
                return other
    raise AssertionError(row.path)


@functools.cache
def _identity(row: Row, scale: str, overrides: tuple[str, ...]) -> str | None:
    """What two rows of one configuration have in common; None where the overrides do not fit the row."""
    try:
        return str(row_config(row, scale, overrides).dump())
    except InputError:
        return None


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
    config = {_DATA: " ".join(options.data_flags), **dict(_leaves(cfg))}
    return Run(f"{owner.path} seed {seed}", folder, tuple(words), cfg.SOLVER.MAX_ITER, config)


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
    shape = [
        "MODEL.RESNETS.DEPTH",
        str(cfg.MODEL.RESNETS.DEPTH),
        "MODEL.FPN.OUT_CHANNELS",
        str(cfg.MODEL.FPN.OUT_CHANNELS),
    ]
    words = ["--config-file", str(_shortest(ROOT / config)), "--resume", "auto"]
    words += ["--num-gpus", str(options.num_gpus)] if options.num_gpus > 1 else []
    words += [*shape, "OUTPUT_DIR", str(folder)]
    own = load_config(ROOT / config, [*shape, "OUTPUT_DIR", ""])
    return Run(f"backbone {file.stem}", folder, tuple(words), own.SOLVER.MAX_ITER, dict(_leaves(own)))


def _shortest(path: Path) -> Path:
    """Relative to where the user stands, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _leaves(cfg: CfgNode) -> Iterator[tuple[str, Any]]:
    def walk(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    yield from walk(yaml.safe_load(cfg.dump()), "")
