"""What was measured so far, so that a run that goes on writes the metrics that an uninterrupted one would."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.utils.events import (
    EventStorage,
    EventWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)

from ..files import write_text_whole

WINDOW = 20  # iterations whose median is written


class MetricHistory:
    """The newest values of every metric, as a part of a checkpoint: medians are taken over them."""

    def __init__(self) -> None:
        self._loaded: Mapping[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Of each metric its newest (value, iteration), and whether medians are taken of it; {} outside of training."""
        if not has_event_storage():
            return {}
        storage = get_event_storage()
        hints = storage.smoothing_hints()
        return {
            name: {"values": history.values()[-WINDOW:], "is_smoothed": hints[name]}
            for name, history in storage.histories().items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._loaded = state

    def recall(self, storage: EventStorage) -> None:
        """Put what was loaded into the storage of a training that goes on."""
        for name, metric in self._loaded.items():
            for value, iteration in metric["values"]:
                storage.put_scalar(name, value, smoothing_hint=metric["is_smoothed"], cur_iter=int(iteration))
        self._loaded = {}


class MetricsFile(EventWriter):
    """Detectron2's metrics.json, a JSON object of medians a line, which a run that goes on continues.

    Args:
        path: of the file; made at the first write.

    Attributes:
        written: the last iteration that it has a line of; -1 if none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.written = -1

    def go_on_after(self, iteration: int) -> None:
        """Take out the lines of later iterations, which come again, and one that a kill left half written."""
        lines = self._lines()
        kept = [line for at, line in lines if 0 <= at <= iteration]
        self.written = max((_iteration_of(line) for line in kept), default=-1)
        if len(kept) < len(lines):
            beyond = f"{len(lines) - len(kept)} lines beyond iteration {iteration}"
            logging.getLogger(__name__).info(f"{self._path}: {beyond} come again, and are taken out until then")
            write_text_whole(self._path, "".join(kept))

    def has_beyond(self, iteration: int, metric: str) -> bool:
        """Whether something is written of later iterations, or of this one what its evaluation gave, `metric`."""
        return any(at > iteration or (at == iteration and f'"{metric}"' in line) for at, line in self._lines())

    def _lines(self) -> list[tuple[int, str]]:
        """Each with its iteration; -1 of what is no whole line."""
        if not self._path.is_file():
            return []
        text = self._path.read_text(encoding="utf-8", errors="replace")
        return [(_iteration_of(line), line) for line in text.splitlines(keepends=True)]

    def write(self) -> None:
        """Each metric that is newer than the last line."""
        lines: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
            if iteration > self.written:
                lines[iteration][name] = value
        if not lines:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            for iteration, metrics in sorted(lines.items()):
                file.write(json.dumps({**metrics, "iteration": iteration}, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())  # no checkpoint may outlast the lines before it
        self.written = max(lines)


class TensorBoardFile(TensorboardXWriter):
    """Detectron2's, which a run that goes on continues, and which a kill takes no point from.

    Args:
        folder: of TensorBoard's files, one for each start.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), WINDOW)

    def go_on_after(self, iteration: int) -> None:
        """Have TensorBoard leave out what earlier starts wrote of later iterations, which comes again.

        Args:
            iteration: from 0; -1 leaves out all.
        """
        self._last_write = iteration
        self._writer_args["purge_step"] = iteration + 1

    def write(self) -> None:
        """Each metric that is newer than the last write, and pictures and histograms."""
        super().write()
        self._writer.flush()  # else two minutes of them wait in the process


def _iteration_of(line: str) -> int:
    try:
        return int(json.loads(line)["iteration"]) if line.endswith("\n") else -1
    except (ValueError, KeyError, OverflowError, RecursionError, TypeError):
        return -1
