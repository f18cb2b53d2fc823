"""What a run left in its folder; whatever is missing or damaged is said, not raised."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..plain_data import parse_yaml

# Names in OUTPUT_DIR, and in inference/<set>/ below it.
_LARGEST = 1e15  # of a figure that is drawn
METRICS, CONFIG, ENVIRONMENT, CHANGES = "metrics.json", "config.yaml", "environment.txt", "config_changes.json"
DETECTIONS, DATASET = "coco_instances_results.json", "dataset.json"


@dataclass(frozen=True)
class EvaluatedSet:
    """A set that the run was evaluated on.

    annotations: the annotation file's content; None if it is not there, which `problem` then explains.
    image_dir: of the pictures; None if unknown.
    detections: COCO's results.
    evaluated_at: seconds since the epoch at which the detections were written.
    given_as: the user's own annotation file, whose checked copy `annotations` is, from OUTPUT_DIR if it is in there; ""
        of other sets.
    iterations: of the evaluated model in training; None of another or if that was not recorded.
    weights: file, from OUTPUT_DIR if it is in there, or address of that other; "" if that was not recorded.
    metric_prefix: of the names of its scores in metrics.json.
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


@dataclass(frozen=True)
class Run:
    """The files of a run.

    metrics: of each iteration that was logged its scalars, in order.
    config, config_text: as values and as written; {} and "" if there is none.
    changes: keys that differ from the base: key, default, value, place; None if that was not recorded.
    weights: names of the checkpoints in the folder, those of a finished training first.
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
        """Of a key such as "SOLVER.MAX_ITER"; None if the configuration does not have it."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node


def read_run(folder: Path) -> Run:
    """Read what a training or evaluation left in its OUTPUT_DIR.

    Raises:
        InputError: there is no such folder, or nothing of a run in it.
    """
    if not folder.is_dir():
        raise InputError(f"OUTPUT_DIR {folder}: no such folder; name the OUTPUT_DIR of a training")
    results = sorted(folder.glob(f"inference/*/{DETECTIONS}"))
    if not results and not (folder / METRICS).is_file():
        raise InputError(
            f"OUTPUT_DIR {folder}: holds no run: neither {METRICS} nor inference/<set>/{DETECTIONS} is there; "
            "name the OUTPUT_DIR of a training"
        )
    missing: list[str] = []
    metrics = _read_metrics(folder / METRICS, missing)
    config_text = _read_text(folder / CONFIG, missing)
    if not results:
        missing.append(f"inference/<set>/{DETECTIONS}: nothing has been evaluated yet, so no detections can be shown.")
    sets = [found for path in results if (found := _read_set(path, missing)) is not None]
    config = _parse_config(config_text, missing)
    return Run(
        folder=folder,
        metrics=metrics,
        config=config,
        config_text=config_text,
        changes=_read_changes(folder / CHANGES, missing),
        environment=_read_text(folder / ENVIRONMENT, missing),
        weights=_weights(folder),
        sets=_in_order(sets, config),
        missing=missing,
    )


def environment_facts(environment: str) -> list[tuple[str, str]]:
    """Name and value of the lines of environment.txt that say on what and from what a run was made."""
    names = r"focal_det|Python|PyTorch|torchvision|detectron2|hardware|GPU available|GPU [\d,]+|Driver version"
    wanted = rf"({names})(?: {{2,}}|(?<=focal_det) )(\S.*)"
    # Detectron2 puts behind a version where it is installed
    return [
        (found[1], found[2].split(" @")[0])
        for line in environment.splitlines()
        if (found := re.fullmatch(wanted, line))
    ]


def _read_text(path: Path, missing: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        missing.append(f"{path.name}: {'not there' if isinstance(error, FileNotFoundError) else error.strerror}.")
        return ""


def _read_metrics(path: Path, missing: list[str]) -> list[dict[str, float]]:
    """One record for each iteration: what a resumed run did again counts as it was the last time."""
    of_iteration: dict[int, dict[str, float]] = {}
    damaged = 0
    for line in _read_text(path, missing).splitlines():
        try:
            record = json.loads(line)
            of_iteration.setdefault(_iteration(record["iteration"]), {}).update(
                {name: value for name, value in record.items() if _can_be_drawn(value)}
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # cut off where the run was ended
            damaged += bool(line.strip())
    if damaged:
        missing.append(f"{path.name}: {damaged} damaged line{'s' if damaged > 1 else ''} passed over.")
    return [of_iteration[iteration] for iteration in sorted(of_iteration)]


def _iteration(value: Any) -> int:
    if not _can_be_drawn(value) or not 0 <= value <= _LARGEST:
        raise ValueError(value)
    return int(value)


def _can_be_drawn(value: Any) -> bool:
    """Whether it is a number of a size that a run can have; NaN is one."""
    return isinstance(value, (int, float)) and not abs(value) > _LARGEST


def _parse_config(text: str, missing: list[str]) -> dict[str, Any]:
    try:
        config = parse_yaml(text) or {}
        if isinstance(config, dict):
            return config
    except (yaml.YAMLError, ValueError, RecursionError):
        pass
    missing.append(f"{CONFIG}: not readable as YAML.")
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
        detections = json.loads(path.read_text())
        evaluated_at = path.stat().st_mtime
    except (OSError, ValueError, RecursionError) as error:
        missing.append(f"inference/{name}/{DETECTIONS}: not readable ({error}).")
        return None
    found = EvaluatedSet(name, None, None, detections, evaluated_at)
    try:
        record = json.loads((path.parent / DATASET).read_text(encoding="utf-8"))
        source = path.parent / record["annotations"]  # which is the latter if that is absolute
        found = replace(
            found,
            name=str(record["name"]),
            image_dir=path.parent / record["images"] if record.get("images") else None,
            given_as=_from_run(path.parent, record.get("given_as")),
            iterations=None if record.get("iterations") is None else int(record["iterations"]),
            weights=_from_run(path.parent, record.get("weights")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        problem = (
            f"inference/{name}/{DATASET} is not there or not readable, so the annotations are unknown; evaluating "
            "again (--eval-only) writes it."
        )
        return replace(found, problem=problem)
    try:
        annotations = json.loads(source.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        problem = f"The annotations are not readable at {source}; put them there, or evaluate again (--eval-only)."
        return replace(found, problem=problem)
    if not isinstance(annotations, dict) or not all(
        isinstance(annotations.get(section), list) for section in ("images", "annotations", "categories")
    ):
        return replace(found, problem=f"{source} has no public annotations, so there is nothing to score against.")
    return replace(found, annotations=annotations)


def _from_run(folder: Path, place: str | None) -> str:
    """A path that is relative to a set's folder as it is from OUTPUT_DIR; others and addresses as they are."""
    inside = Path("inference") / folder.name
    return os.path.normpath(inside / place) if place and place.startswith("..") else place or ""


def _in_order(sets: list[EvaluatedSet], config: dict[str, Any]) -> list[EvaluatedSet]:
    """The configuration's test sets first, in its order; others, of an --eval-only, behind them."""
    node = config.get("DATASETS")
    listed = node.get("TEST") if isinstance(node, dict) else None
    order = list(listed) if isinstance(listed, (list, tuple)) else []
    ordered = sorted(sets, key=lambda s: (order.index(s.name) if s.name in order else len(order), s.name))
    if not order and len(ordered) == 1:
        return ordered
    # with several sets Detectron2 puts a set's name in front of its scores
    return [s if order == [s.name] else replace(s, metric_prefix=f"{s.name}/bbox/") for s in ordered]


def _weights(folder: Path) -> list[str]:
    names = sorted((path.name for path in folder.glob("[!.]*.pth")), reverse=True)
    special = [name for name in ("model_best.pth", "model_final.pth") if name in names]
    return special + [name for name in names if name not in special]
