"""The detectors that the paper compares with its own, from competitors.yaml: in Table 2 and in figure 2."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from .tables import load_tables

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class Competitor(NamedTuple):
    """A detector: 1 or 2 stages, its backbone, its figures by column; either may be empty.

    table2: AP, AP50, AP75, APs, APm, APl.
    figure2: AP and ms, milliseconds per image.
    """

    stages: int
    backbone: str
    table2: Mapping[str, float]
    figure2: Mapping[str, float]


@functools.cache
def load_competitors() -> Mapping[str, Competitor]:
    """Return every detector by its name, in the paper's order."""
    entries = yaml.safe_load((Path(__file__).parent / "competitors.yaml").read_text(encoding="utf-8"))
    return {
        name: Competitor(
            entry["stages"],
            entry.get("backbone", ""),
            dict(zip(COLUMNS, entry["table2"], strict=True)) if "table2" in entry else {},
            dict(zip(("AP", "ms"), entry["figure2"], strict=True)) if "figure2" in entry else {},
        )
        for name, entry in entries.items()
    }


def compared_in_table2() -> dict[str, Competitor]:
    """Return the detectors of Table 2."""
    return {name: competitor for name, competitor in load_competitors().items() if competitor.table2}


def published_speeds() -> dict[str, tuple[float, float]]:
    """Return (ms, AP) of all detectors of figure 2 by name: RetinaNet's of Table 1e, as R-50-400, and the others."""
    rows = load_tables()["table1e"].rows.values()
    ours = {"R-{}-{}".format(*row.name.split("_")[1::2]): (row.published["ms"], row.published["AP"]) for row in rows}
    others = load_competitors().items()
    return ours | {name: (them.figure2["ms"], them.figure2["AP"]) for name, them in others if them.figure2}


def envelope(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return those of (ms, AP) that no other beats in both, fastest first."""
    best: list[tuple[float, float]] = []
    for ms, ap in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or ap > best[-1][1]:
            best.append((ms, ap))
    return best
