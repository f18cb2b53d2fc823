"""The results of a training in its folder: its metrics, and this command's own record of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_text_whole
from ..output_layout import METRICS
from ..report.metrics import MetricsLine, metrics_lines

_RECORD = "reproduce.json"
_TAIL = 20_000  # bytes of metrics.json that hold its last lines


class Status(str, Enum):
    """How a training ended, if it did."""

    DONE = "done"
    DIVERGED = "diverged"  # a result as well: it is not run again
    FAILED = "failed"
    UNFINISHED = "unfinished"
    ELSEWHERE = "in use by another process"


@dataclass(frozen=True)
class Record:
    """A training's record beside its metrics."""

    command: str
    commit: str
    hardware: str
    versions: str
    config: dict[str, Any] = field(repr=False)  # by dotted key
    status: Status = Status.UNFINISHED
    seconds: float = 0.0  # over all its starts
    error: str = ""  # of the last start
    ms_per_image: float = 0.0  # of the trained model on `hardware`, one image at a time; 0 where it was not timed


def read_record(folder: Path) -> Record | None:
    """Read the record of a training; None before its first start. Raise an InputError if it is damaged."""
    path = folder / _RECORD
    if not path.exists():
        return None
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        record = Record(**entries | {"status": Status(entries["status"])})
        texts = (record.command, record.commit, record.hardware, record.versions, record.error)
        if not all(isinstance(text, str) for text in texts) or not isinstance(record.config, dict):
            raise ValueError("a value of the wrong kind")
        for number in (record.seconds, record.ms_per_image):
            if not (isinstance(number, (int, float)) and math.isfinite(number)):
                raise ValueError(f"a time is {number!r}")
    except (ArithmeticError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); move the folder away to train it anew") from error
    return record


def write_record(folder: Path, record: Record) -> None:
    """Write the record at once or not at all, so that a kill or a full disk leaves the one before.

    Raises:
        OSError: it cannot be written; names the file.
    """
    write_text_whole(folder / _RECORD, json.dumps(asdict(record), indent=1) + "\n")


def has_trained(folder: Path) -> bool:
    """Whether a start has left metrics or a checkpoint."""
    return (folder / METRICS).is_file() or any(folder.glob("*.pth"))


def read_metrics(folder: Path, *, iterations: int, test_sets: Sequence[str]) -> dict[str, float]:
    """Return a finished training's AP, AP50, ... in points and "s_per_iteration"; empty before its end.

    With several test sets those of the first. A column that COCO's evaluation cannot compute is left out; without any
    detection all are 0.
    """
    prefixes = ("bbox/", f"{test_sets[0]}/bbox/") if test_sets else ("bbox/",)
    found: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for line in _lines(folder):
        if "time" in line.values:
            seconds["s_per_iteration"] = line.values["time"]
        if line.iteration is not None and line.iteration >= iterations - 1:
            for prefix in prefixes:
                scores = {key: v for key, v in line.values.items() if key.startswith(prefix + "AP")}
                found |= {key.removeprefix(prefix): v for key, v in scores.items()}
    if "AP" not in found:
        return {}
    if math.isnan(found["AP"]):
        return dict.fromkeys(found, 0.0) | seconds
    return {name: value for name, value in found.items() if not math.isnan(value)} | seconds


def iterations_done(folder: Path) -> int:
    """How far a training has come, by the end of its metrics."""
    lines = _lines(folder, tail=_TAIL)
    return max((line.iteration + 1 for line in lines if line.iteration is not None), default=0)


def _lines(folder: Path, tail: int | None = None) -> Iterator[MetricsLine]:
    path = folder / METRICS
    return metrics_lines(path, tail=tail) if path.is_file() else iter(())
