"""Read metrics.json, one JSON object a line; a kill may have cut the last one short."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..files import open_regular

_LARGEST = 1e15  # beyond it a number is no measurement, and neither drawn nor compared


class MetricsLine(NamedTuple):
    """A line of metrics.json."""

    text: str  # as it is in the file, with its line break; one that a kill cut short has none
    iteration: int | None  # from 0; None of a damaged line
    values: dict[str, float]  # scalars by name, "iteration" among them; NaN is one. {} of a damaged line


def metrics_lines(path: Path, *, tail: int | None = None, start: int = 0) -> Iterator[MetricsLine]:
    """Read a run's metrics.json, damaged lines too, or its last `tail` bytes, or those from byte `start` on.

    Raises OSError if it is not there.
    """
    with open_regular(path) as file:
        file.seek(start if tail is None else max(0, path.stat().st_size - tail))
        data = file.read()
    for text in data.decode("utf-8", errors="replace").splitlines(keepends=True):
        values = _scalars(text)
        iteration = values.get("iteration", -1)
        yield MetricsLine(text, int(iteration), values) if iteration >= 0 else MetricsLine(text, None, {})


def metrics_by_iteration(path: Path) -> tuple[list[dict[str, float]], int]:
    """Return a record for each iteration, of one that a resumed run repeated the last, and the number of damaged lines.

    Raises OSError if the file is not there.
    """
    found: dict[int, dict[str, float]] = {}
    damaged = 0
    for line in metrics_lines(path):
        if line.iteration is not None:
            found.setdefault(line.iteration, {}).update(line.values)
        elif line.text.strip():
            damaged += 1
    return [found[iteration] for iteration in sorted(found)], damaged


def _scalars(text: str) -> dict[str, float]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    items = record.items() if isinstance(record, dict) else ()
    return {name: value for name, value in items if isinstance(value, (int, float)) and not abs(value) > _LARGEST}
