"""Many images through a detector: read ahead, detect in batches, draw, write, each while the next is prepared."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from ..distributed.signals import handlers
from .detections import Detections, Detector
from .drawing import draw_boxes
from .images import ImageError
from .inputs import Frame, InputFile, read_ahead, read_frames
from .outputs import Drawings, Results

# With these no file can be written, whatever its name.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class PredictionSummary(NamedTuple):
    """Counts of a prediction.

    images: looked at. detections: kept. bad: files skipped. undrawn: images and videos without their drawing.
    best_below: the highest score not kept.
    """

    images: int
    detections: int
    bad: int
    undrawn: int
    best_below: float | None


class StopSignals:
    """While open, note the first SIGINT or SIGTERM in `number`; another one interrupts at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._handlers = handlers(dict.fromkeys((signal.SIGINT, signal.SIGTERM), self._note))

    def __enter__(self) -> StopSignals:
        self._handlers.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        self._handlers.__exit__(None, None, None)
        return isinstance(error, KeyboardInterrupt) and self.number is not None

    def _note(self, number: int, _: object) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number


def predict_all(
    detector: Detector,
    inputs: Sequence[InputFile],
    out: Path,
    *,
    score_thresh: float,
    batch_size: int,
    every: int,
    drawing_files: dict[InputFile, Path] | None,
    stop: StopSignals,
    on_image: Callable[[], object],
    on_bad: Callable[[str], object],
) -> PredictionSummary:
    """Detect in all inputs and write drawings and `detections.json`; when stopped or failing, of what was done by then.

    Args:
        detector: whose own threshold is at most `score_thresh`.
        out: folder of `detections.json`.
        score_thresh: detections of at least this score are kept.
        batch_size: images that the detector is given together.
        every: see `read_frames`.
        drawing_files: where drawings go; None for none.
        stop: checked between batches.
        on_image: called after each image.
        on_bad: called with a line for each file that cannot be read and each drawing that cannot be written.
    """
    names = detector.class_names
    results = Results(out, names, detector.category_ids)
    drawings = Drawings(drawing_files or {}, every)
    undrawn: set[InputFile] = set()
    bad = 0
    best_below: float | None = None

    def detected() -> Iterator[tuple[list[tuple[Frame, np.ndarray]], list[Detections]]]:
        """Detect in batches, in a thread, until stopped."""
        nonlocal bad
        waiting: list[tuple[Frame, np.ndarray]] = []
        for frame in read_ahead(read_frames(inputs, every), 2 * batch_size):
            if stop.number is not None:
                return
            if isinstance(frame.image, ImageError):
                bad += 1
                on_bad(f"{frame.image}; skipped")
                continue
            waiting.append((frame, frame.image))
            if len(waiting) == batch_size:
                yield waiting, detector([image for _, image in waiting])
                waiting = []
        if waiting:
            yield waiting, detector([image for _, image in waiting])

    def draw(file: InputFile, image: np.ndarray, kept: Detections) -> None:
        """Draw; a drawing that cannot be written is reported, and the others are still made."""
        pairs = zip(kept.classes.tolist(), kept.scores.tolist(), strict=True)
        texts = [f"{names[label]} {100 * score:.0f}%" for label, score in pairs]
        drawing = draw_boxes(image, kept.boxes, kept.classes, texts, num_classes=len(names))
        try:
            drawings.add(file, drawing)
        except OSError as error:
            if error.errno in _DISK_ERRORS:
                raise
            undrawn.add(file)
            path, reason = drawings.files[file], error.strerror or error
            on_bad(f"{path}: the drawing cannot be written ({reason}); its detections are kept")

    try:
        with closing(drawings):
            for batch, detections in read_ahead(detected(), 1):  # the next while this one is drawn and written
                for (frame, image), found in zip(batch, detections, strict=True):
                    kept = found.above(score_thresh)
                    below = found.scores[found.scores < score_thresh]
                    best_below = max([*below.tolist(), best_below or 0.0]) if len(below) else best_below
                    results.add(frame.name, image.shape, kept)
                    if frame.file in drawings.files and frame.file not in undrawn:
                        draw(frame.file, image, kept)
                    on_image()
    finally:
        if results.images:
            results.write()
    return PredictionSummary(len(results.images), len(results.annotations), bad, len(undrawn), best_below)
