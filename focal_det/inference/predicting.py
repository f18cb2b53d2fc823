"""Many pictures through a detector: read ahead, detect in batches, draw, write."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from .detections import Detections, Detector
from .drawing import draw_boxes
from .outputs import Drawings, Results
from .pictures import PictureError
from .sources import Frame, Source, read_ahead, read_frames

# With these no file can be written, under no name.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class Outcome(NamedTuple):
    """What it came to.

    pictures: looked at. detections: kept. bad: files passed over. undrawn: pictures and videos without their drawing.
    best_below: the highest score not kept.
    """

    pictures: int
    detections: int
    bad: int
    undrawn: int
    best_below: float | None


class StopSignals:
    """While open, notes the first SIGINT or SIGTERM in `number`; another one interrupts at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return isinstance(error, KeyboardInterrupt) and self.number is not None

    def _note(self, number: int, _: object) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number


def predict_all(
    detector: Detector,
    sources: Sequence[Source],
    out: Path,
    *,
    score_thresh: float,
    batch_size: int,
    every: int,
    drawing_files: dict[Source, Path] | None,
    stop: StopSignals,
    on_picture: Callable[[], object],
    on_bad: Callable[[str], object],
) -> Outcome:
    """Detect in all sources; leave drawings and `detections.json`, also of what was done when it stops or fails.

    Args:
        detector: whose own threshold is at most `score_thresh`.
        out: folder of `detections.json`.
        score_thresh: detections of at least this score are kept.
        batch_size: pictures that the detector is given together.
        every: see `read_frames`.
        drawing_files: where drawings go; None for none.
        stop: looked at between batches.
        on_picture: called after each picture.
        on_bad: called with a line for each file that cannot be read and each drawing that cannot be written.
    """
    taker = _Taker(detector, out, score_thresh, drawing_files, every, on_bad)
    bad = 0
    waiting: list[tuple[Frame, np.ndarray]] = []

    def detect() -> None:
        for (frame, picture), found in zip(waiting, detector([picture for _, picture in waiting]), strict=True):
            taker.take(frame, picture, found)
            on_picture()
        waiting.clear()

    with taker:
        for frame in read_ahead(read_frames(sources, every), 2 * batch_size):
            if stop.number is not None:
                break
            if isinstance(frame.picture, PictureError):
                bad += 1
                on_bad(f"{frame.picture}; passed over")
                continue
            waiting.append((frame, frame.picture))
            if len(waiting) == batch_size:
                detect()
        if waiting and stop.number is None:
            detect()
    return Outcome(len(taker.results.images), len(taker.results.annotations), bad, len(taker.undrawn), taker.best_below)


class _Taker:
    """Takes what is found: draws it, notes it, and at the end, however that comes, writes it down."""

    def __init__(
        self,
        detector: Detector,
        out: Path,
        score_thresh: float,
        files: dict[Source, Path] | None,
        every: int,
        on_bad: Callable[[str], object],
    ) -> None:
        self.names, self.score_thresh = detector.class_names, score_thresh
        self.results = Results(out, detector.class_names, detector.category_ids)
        self.drawings = None if files is None else Drawings(files, every)
        self.on_bad = on_bad
        self.undrawn: set[Source] = set()
        self.best_below: float | None = None

    def __enter__(self) -> _Taker:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.drawings is not None:
                self.drawings.close()
        finally:
            if self.results.images:
                self.results.write()

    def take(self, frame: Frame, picture: np.ndarray, found: Detections) -> None:
        kept = found.above(self.score_thresh)
        below = found.scores[found.scores < self.score_thresh]
        if len(below):
            self.best_below = max(self.best_below or 0.0, float(below.max()))
        self.results.add(frame.name, picture.shape, kept)
        if self.drawings is not None and frame.source not in self.undrawn:
            self._draw(self.drawings, frame.source, picture, kept)

    def _draw(self, drawings: Drawings, source: Source, picture: np.ndarray, kept: Detections) -> None:
        """Draw; what is the matter with one drawing is said, and the others go on."""
        pairs = zip(kept.classes.tolist(), kept.scores.tolist(), strict=True)
        texts = [f"{self.names[label]} {100 * score:.0f}%" for label, score in pairs]
        drawing = draw_boxes(picture, kept.boxes, kept.classes, texts, num_classes=len(self.names))
        try:
            drawings.add(source, drawing)
        except OSError as error:
            if error.errno in _OF_THE_DISK:
                raise
            self.undrawn.add(source)
            path, reason = drawings.files[source], error.strerror or error
            self.on_bad(f"{path}: the drawing cannot be written ({reason}); its detections are kept")
