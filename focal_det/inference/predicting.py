"""Many images through a detector: read ahead, detect in batches, draw, write, each while the next is prepared."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple

import numpy as np

from ..distributed.signals import handlers
from .detections import Detections, Detector
from .images import ImageError
from .inputs import Frame, read_ahead
from .result_files import DetectionWriter, UnwrittenError


class PredictionSummary(NamedTuple):
    """Counts of a prediction.

    images: looked at. detections: kept. bad: files skipped. unwritten: files of an image that could not be written,
        by what they are. best_below: the highest score not kept. notes: on what was left out.
    """

    images: int
    detections: int
    bad: int
    unwritten: Counter[str]
    best_below: float | None
    notes: list[str]


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
    frames: Iterator[Frame],
    writers: Sequence[DetectionWriter],
    *,
    score_thresh: float,
    batch_size: int,
    read_ahead_of: int,
    stop: StopSignals,
    on_image: Callable[[], object],
    on_bad: Callable[[str], object],
) -> PredictionSummary:
    """Detect in all images and write what was found; when stopped or failing, of what was done by then.

    Args:
        detector: whose own threshold is at most `score_thresh`.
        writers: each is given every image, and closed.
        score_thresh: detections of at least this score are kept.
        batch_size: images that the detector is given together.
        read_ahead_of: most images that are read before the detector is ready for them.
        stop: checked between batches.
        on_image: called after each image.
        on_bad: called with a line for each file that cannot be read and each that cannot be written.
    """
    names, ids = tuple(detector.class_names), tuple(detector.category_ids)
    images = kept_in_all = bad = 0
    unwritten: Counter[str] = Counter()
    best_below: float | None = None
    notes: list[str] = []

    def detected() -> Iterator[tuple[list[tuple[Frame, np.ndarray]], list[Detections]]]:
        """Detect in batches, in a thread, until stopped."""
        nonlocal bad
        waiting: list[tuple[Frame, np.ndarray]] = []
        for frame in read_ahead(frames, read_ahead_of):
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

    def close(writer: DetectionWriter) -> None:
        notes.extend(writer.close())

    with ExitStack() as closing:
        for writer in writers[::-1]:
            closing.callback(close, writer)
        for batch, detections in read_ahead(detected(), 1):  # the next while this one is drawn and written
            for (frame, image), found in zip(batch, detections, strict=True):
                kept = replace(found.above(score_thresh), class_names=names, category_ids=ids)
                below = found.scores[found.scores < score_thresh]
                best_below = max([*below.tolist(), best_below or 0.0]) if len(below) else best_below
                images, kept_in_all = images + 1, kept_in_all + len(kept)
                for writer in writers:
                    try:
                        writer.add(frame, image, kept)
                    except UnwrittenError as error:
                        unwritten[error.what] += error.count
                        on_bad(str(error))
                on_image()
    return PredictionSummary(images, kept_in_all, bad, unwritten, best_below, notes)
