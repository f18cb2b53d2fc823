"""Write what is measured so that a resumed run's metrics are those of a run that was never interrupted."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventStorage, EventWriter, TensorboardXWriter, get_event_storage, has_event_storage

from ..files import write_text_whole
from ..report.metrics import metrics_lines

logger = logging.getLogger(__name__)
WINDOW = 20  # iterations whose median is written


class MetricHistory:
    """The newest values of every metric, as a part of a checkpoint: medians are taken over them."""

    def __init__(self) -> None:
        self._loaded: Mapping[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return each metric's newest (value, iteration) and whether medians are taken; {} outside of training."""
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
        """Put what was loaded into the storage of a resumed training."""
        for name, metric in self._loaded.items():
            for value, iteration in metric["values"]:
                storage.put_scalar(name, value, smoothing_hint=metric["is_smoothed"], cur_iter=int(iteration))
        self._loaded = {}


class MetricsFile(EventWriter):
    """Detectron2's metrics.json, a JSON object of medians a line, which a resumed run continues.

    The file is made at the first write. `written` is the last iteration that has a line; -1 if none has.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.written = path, -1

    def continue_after(self, iteration: int) -> None:
        """Remove the lines of later iterations, which will be written again, and damaged ones."""
        lines = self._lines()
        kept = [(at, text) for at, text in lines if at is not None and at <= iteration]
        self.written = max((at for at, _ in kept), default=-1)
        if len(kept) < len(lines):
            logger.info(
                f"{self._path}: {len(lines) - len(kept)} lines beyond iteration {iteration} are removed; they will be "
                "written again"
            )
            write_text_whole(self._path, "".join(text for _, text in kept))

    def has_beyond(self, iteration: int, metric: str) -> bool:
        """Return whether later iterations have a line, or this one has its evaluation's `metric`."""
        lines = [(at, text) for at, text in self._lines() if at is not None]
        return any(at > iteration or (at == iteration and f'"{metric}"' in text) for at, text in lines)

    def _lines(self) -> list[tuple[int | None, str]]:
        """Return (iteration, text) of each line; None of one that is damaged or has no line break, as a kill leaves."""
        lines = metrics_lines(self._path) if self._path.is_file() else ()
        return [(line.iteration if line.text.endswith("\n") else None, line.text) for line in lines]

    def write(self) -> None:
        """Write each metric that is newer than the last line."""
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
    """Detectron2's writer, which a resumed run continues, and of which a kill takes no point; a file for each start."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), WINDOW)

    def continue_after(self, iteration: int) -> None:
        """Have TensorBoard leave out what earlier starts wrote of later iterations; of all if it is -1."""
        self._last_write = iteration
        self._writer_args["purge_step"] = iteration + 1

    def write(self) -> None:
        """Write each metric that is newer than the last write, and images and histograms."""
        super().write()
        self._writer.flush()  # else two minutes of them wait in the process
