"""Read the files that a run left in its folder; what is missing or damaged is reported, not raised."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from .. import output_layout as layout
from ..errors import InputError, counted
from ..plain_data import parse_yaml
from .metrics import metrics_by_iteration

_OF_SETS = f"{layout.INFERENCE}/<set>/{layout.COCO_RESULTS}"


@dataclass(frozen=True)
class EvaluatedSet:
    """A set that the run was evaluated on.

    annotations: the annotation file's content; None if it is not there, which `problem` then explains.
    file: the annotation file; None if it was not recorded.
    evaluated_at: when the detections were written, in seconds since the epoch.
    given_as: the user's own annotation file, of which `annotations` is the checked copy; relative to OUTPUT_DIR if it
        is in there; "" for other sets.
    iterations: after how many a model in training was evaluated; None for other models or if that was not recorded.
    weights: file, relative to OUTPUT_DIR if it is in there, or address of another model; "" if that was not recorded.
    metric_prefix: what the names of its scores in metrics.json begin with.
    rule, scores: of a set that is not scored as COCO does, such as "LVIS", and its own scores by name, in percent.
    """

    name: str
    annotations: dict[str, Any] | None
    image_dir: Path | None
    detections: list[dict[str, Any]]
    evaluated_at: float
    given_as: str = ""
    iterations: int | None = None
    weights: str = ""
    problem: str = ""
    metric_prefix: str = "bbox/"
    rule: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    file: Path | None = None


@dataclass(frozen=True)
class RunFiles:
    """The files of a run.

    metrics: the scalars of each iteration that was logged, in order.
    config, config_text: as values and as written; {} and "" if there is none.
    changes: keys that differ from the base: key, default, value, place; None if that was not recorded.
    weights: names of the checkpoints in the folder, the best and the final one first.
    missing: what could not be read, one line each.
    """

    folder: Path
    metrics: list[dict[str, float]]
    config: dict[str, Any]
    config_text: str
    changes: list[dict[str, Any]] | None
    environment: str
    weights: list[str]
    sets: list[EvaluatedSet]
    missing: list[str] = field(default_factory=list)

    def config_value(self, key: str) -> Any:
        """Return the value of a key such as "SOLVER.MAX_ITER"; None if the configuration does not have it."""
        return _value_of(self.config, key)


def read_run(folder: Path) -> RunFiles:
    """Read what a run left in its OUTPUT_DIR; raise InputError if there is no such folder, or no run in it."""
    if not folder.is_dir():
        raise InputError(f"OUTPUT_DIR {folder}: no such folder; name the OUTPUT_DIR of a training")
    results = sorted(folder.glob(f"{layout.INFERENCE}/*/{layout.COCO_RESULTS}"))
    if not results and not (folder / layout.METRICS).is_file():
        raise InputError(
            f"OUTPUT_DIR {folder}: holds no run: neither {layout.METRICS} nor {_OF_SETS} is there; "
            "name the OUTPUT_DIR of a training"
        )
    missing: list[str] = []
    metrics = _read_metrics(folder / layout.METRICS, missing)
    config_text = _read_text(folder / layout.CONFIG, missing)
    if not results:
        missing.append(f"{_OF_SETS}: nothing has been evaluated yet, so there are no detections.")
    sets = [found for path in results if (found := _read_set(path, missing)) is not None]
    config = _parse_config(config_text, missing)
    return RunFiles(
        folder=folder,
        metrics=metrics,
        config=config,
        config_text=config_text,
        changes=_read_changes(folder / layout.CONFIG_CHANGES, missing),
        environment=_read_text(folder / layout.ENVIRONMENT, missing),
        weights=_weights(folder),
        sets=_in_order(sets, config),
        missing=missing,
    )


def environment_facts(environment: str) -> list[tuple[str, str]]:
    """Return (name, value) of the lines of environment.txt that say what a run was made from and ran on."""
    names = r"focal_det|Python|PyTorch|torchvision|detectron2|hardware|GPU available|GPU [\d,]+|Driver version"
    wanted = rf"({names})(?: {{2,}}|(?<=focal_det) )(\S.*)"
    lines = filter(None, (re.fullmatch(wanted, line) for line in environment.splitlines()))
    return [(line[1], line[2].split(" @")[0]) for line in lines]  # behind a version stands where it is installed


def _read_text(path: Path, missing: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        missing.append(_unreadable(path, error))
        return ""


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path.name}: {'not there' if isinstance(error, FileNotFoundError) else error.strerror}."


def _read_metrics(path: Path, missing: list[str]) -> list[dict[str, float]]:
    """Return one record for each iteration; of one that a resumed run repeated, what it gave the last time."""
    try:
        records, damaged = metrics_by_iteration(path)
    except OSError as error:
        missing.append(_unreadable(path, error))
        return []
    if damaged:
        missing.append(f"{path.name}: {counted(damaged, 'damaged line')} skipped.")
    return records


def _parse_config(text: str, missing: list[str]) -> dict[str, Any]:
    try:
        config = parse_yaml(text) or {}
        if isinstance(config, dict):
            return config
    except (yaml.YAMLError, ValueError, RecursionError):
        pass
    missing.append(f"{layout.CONFIG}: not readable as YAML.")
    return {}


def _read_changes(path: Path, missing: list[str]) -> list[dict[str, Any]] | None:
    if not path.is_file():
        return None
    try:
        changes = json.loads(path.read_text())
        return [{name: row.get(name, "") for name in ("key", "default", "value", "place")} for row in changes]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        missing.append(f"{path.name}: not readable ({error}).")
        return None


def _read_set(path: Path, missing: list[str]) -> EvaluatedSet | None:
    name = path.parent.name
    try:
        found = EvaluatedSet(name, None, None, json.loads(path.read_text()), path.stat().st_mtime)
    except (OSError, ValueError, RecursionError) as error:
        missing.append(f"{layout.INFERENCE}/{name}/{layout.COCO_RESULTS}: not readable ({error}).")
        return None
    try:
        record = json.loads((path.parent / layout.DATASET).read_text(encoding="utf-8"))
        # which is the latter if that is absolute
        source = Path(os.path.normpath(path.parent / record["annotations"]))
        found = replace(
            found,
            name=str(record["name"]),
            file=source,
            image_dir=path.parent / record["images"] if record.get("images") else None,
            given_as=_from_run(path.parent, record.get("given_as")),
            iterations=None if record.get("iterations") is None else int(record["iterations"]),
            weights=_from_run(path.parent, record.get("weights")),
            rule=str(record.get("rule", "")),
            scores={str(k): math.nan if v is None else float(v) for k, v in record.get("scores", {}).items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        why = f"{layout.INFERENCE}/{name}/{layout.DATASET} is not there or not readable"
        fix = "evaluating again (--eval-only) writes it."
        return replace(found, problem=f"{why}, so the annotations are unknown; {fix}")
    try:
        annotations = json.loads(source.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        problem = f"The annotations are not readable at {source}; put them there, or evaluate again (--eval-only)."
        return replace(found, problem=problem)
    sections = ("images", "annotations", "categories")
    if not isinstance(annotations, dict) or not all(isinstance(annotations.get(key), list) for key in sections):
        return replace(found, problem=f"{source} has no public annotations, so there is nothing to score against.")
    return replace(found, annotations=annotations)


def _from_run(folder: Path, place: str | None) -> str:
    """Make a path that is relative to a set's folder relative to OUTPUT_DIR; leave others and addresses as they are."""
    inside = Path(layout.INFERENCE) / folder.name
    return os.path.normpath(inside / place) if place and place.startswith("..") else place or ""


def _value_of(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


def _in_order(sets: list[EvaluatedSet], config: dict[str, Any]) -> list[EvaluatedSet]:
    """Put the configuration's test sets first, in its order, and others, of an --eval-only, after them."""
    listed = _value_of(config, "DATASETS.TEST")
    order = list(listed) if isinstance(listed, (list, tuple)) else []
    ordered = sorted(sets, key=lambda s: (order.index(s.name) if s.name in order else len(order), s.name))
    if not order and len(ordered) == 1:
        return ordered
    # with several sets Detectron2 puts a set's name in front of its scores
    return [s if order == [s.name] else replace(s, metric_prefix=f"{s.name}/bbox/") for s in ordered]


def _weights(folder: Path) -> list[str]:
    names = sorted((path.name for path in folder.glob("[!.]*.pth")), reverse=True)
    special = [name for name in (layout.BEST_CHECKPOINT, layout.FINAL_CHECKPOINT) if name in names]
    return special + [name for name in names if name not in special]
