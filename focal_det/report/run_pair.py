"""What differs between two runs: code, data and keys, and their curves over each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..data.statistics import fingerprint
from ..output_layout import ANNOTATIONS, EMA
from . import training_curves
from .charts import Chart, Line, draw_lines
from .run_files import RunFiles, environment_facts
from .training_curves import course, thinned

_FREE = {"OUTPUT_DIR", "VERSION"}  # keys that differ between any two runs, or say nothing
_ABSENT = "no such key"


class Fact(NamedTuple):
    """What both runs are, in words; `differs` if not the same is known of both."""

    label: str
    first: str
    second: str

    @property
    def differs(self) -> bool:
        """Whether both are not the same."""
        return self.first != self.second


class Key(NamedTuple):
    """A key whose value differs, with the default if one of the runs recorded it, as texts."""

    key: str
    default: str
    first: str
    second: str


def compare_facts(first: RunFiles, second: RunFiles) -> list[Fact]:
    """Return what data, code and machine both runs used, the training data first."""
    runs = (first, second)
    environments = [dict(environment_facts(run.environment)) for run in runs]
    names = list(dict.fromkeys(name for facts in environments for name in facts))
    data = Fact("training data", *(_training_data(run) for run in runs))
    rows = [Fact(name, *(facts.get(name, "not recorded") for facts in environments)) for name in names]
    iterations = Fact("iterations", *(f"{training_curves.iterations_done(run.metrics):,}" for run in runs))
    return [data, iterations, *rows]


def compare_keys(first: RunFiles, second: RunFiles) -> list[Key]:
    """Return the keys whose values differ, by name; OUTPUT_DIR aside. None do if a configuration is missing."""
    if not (first.config and second.config):
        return []
    values = [dict(_leaves(run.config)) for run in (first, second)]
    defaults = {row["key"]: row["default"] for run in (first, second) for row in run.changes or ()}
    keys = sorted({*values[0], *values[1]} - _FREE)
    return [
        Key(key, str(defaults.get(key, "")), *(str(one.get(key, _ABSENT)) for one in values))
        for key in keys
        if values[0].get(key, _ABSENT) != values[1].get(key, _ABSENT)
    ]


def compare_curves(
    first: RunFiles, second: RunFiles, prefixes: Mapping[str, tuple[str, str]]
) -> list[tuple[str, Chart]]:
    """Return (title, chart) of losses, AP and lr over each other, each if both runs logged it.

    Args:
        prefixes: of the test sets that both were evaluated on, by name: what the names of their scores begin with in
            the first run and in the second. The losses of validation are left out if there is none.
    """
    losses = [name for name in training_curves.losses(first.metrics) if prefixes or "val/" not in name]
    wanted = [(name, (name, name), True) for name in losses]
    for set_name, both in prefixes.items():
        suffix = f", {set_name}" if len(prefixes) > 1 else ""
        wanted += [(f"{name}{suffix}", (both[0] + name, both[1] + name), False) for name in ("AP", "AP50")]
        ema = (f"{EMA}/{prefix}AP" for prefix in both)
        wanted.append((f"AP of the EMA{suffix}", (next(ema), next(ema)), False))
    wanted.append(("lr", ("lr", "lr"), False))
    charts = []
    for title, names, is_log in wanted:
        both_courses = [course(run.metrics, name) for run, name in zip((first, second), names, strict=True)]
        if not all(both_courses):
            continue
        has_markers = "AP" in title or "val/" in title
        lines = [
            Line(label, thinned(points), False, has_markers) for label, points in zip("AB", both_courses, strict=True)
        ]
        charts.append((title, draw_lines(f"compare {title}", lines, "iterations", title, is_log=is_log)))
    return charts


def seed_words(keys: list[Key], facts: list[Fact], are_known: bool = True) -> str:
    """Say what the differences, of `compare_facts` and `compare_keys`, allow to conclude of one run each.

    `are_known` if both configurations are there.
    """
    names = [row.key for row in keys]
    if facts[0].differs:
        return "They were trained on different data, so a difference of AP is not that of the keys alone."
    if names == ["SEED"]:
        return "They differ in SEED alone: the difference of AP is the noise of a training."
    if are_known and not names:
        return "No key differs: a difference of AP is the noise of a training, or comes from code and machine."
    several = f"{len(names)} keys differ, so it is open which of them made the difference. " if len(names) > 1 else ""
    return (
        f"{several}Each is one training: others, with other values of SEED, have other APs. Compare at least three "
        "seeds of each before a small difference is believed."
    )


def _training_data(run: RunFiles) -> str:
    """Name the training sets, with the number of images and the fingerprint of those whose checked copy is there."""
    names = run.config_value("DATASETS.TRAIN")
    return ", ".join(_described(run.folder, str(name)) for name in names or ()) or "not recorded"


def _described(folder: Path, name: str) -> str:
    try:
        coco = json.loads((folder / ANNOTATIONS / f"{name}.json").read_text(encoding="utf-8"))
        return f"{name}: {len(coco['images']):,} images, content {fingerprint(coco)[:8]}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"{name} (by its name; its content was not recorded)"


def _leaves(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
