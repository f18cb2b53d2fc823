"""Comparison of an exported detector with its model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..inference.detections import Detections, Detector

# What float32 in another order of operations may change. Measured on images of many sizes: 1e-3 px and 1e-4.
BOX_TOLERANCE = 0.1  # pixels of the image
SCORE_TOLERANCE = 1e-3


class Parity(NamedTuple):
    """The result of a comparison.

    detections: how many the model has.
    box_difference, score_difference: the largest of a coordinate, in pixels, and of a score.
    problems: a line for each image that differs.
    """

    images: int
    detections: int
    box_difference: float
    score_difference: float
    problems: list[str]

    def __str__(self) -> str:
        return (
            f"{self.detections} detections of {self.images} images, boxes within {self.box_difference:.1e} px, "
            f"scores within {self.score_difference:.1e}"
        )


def compare(model: Detector, exported: Detector, images: Sequence[np.ndarray], *, cut: float, most: int) -> Parity:
    """Compare two detectors image by image.

    A detection that only one of them has does not count where rounding decides on it: at the score threshold and, where
    the other has the full number of detections, at the last of them.

    Args:
        images: (H, W, 3) uint8 BGR.
        cut: the score threshold of both.
        most: detections per image.
    """
    detections, boxes, scores, problems = 0, 0.0, 0.0, []
    for place, image in enumerate(images):
        ours, theirs = model([image])[0], exported([image])[0]
        detections += len(ours)
        mine, other = _pairs(ours, theirs)
        if len(mine):
            boxes = max(boxes, float(np.abs(ours.boxes[mine] - theirs.boxes[other]).max()))
            scores = max(scores, float(np.abs(ours.scores[mine] - theirs.scores[other]).max()))
        differing = [*_alone(ours, mine, theirs, cut, most), *_alone(theirs, other, ours, cut, most)]
        if differing:
            problems.append(
                f"image {place + 1} ({image.shape[1]}x{image.shape[0]}): {len(differing)} detections that only "
                f"one of them has, the best of them with score {max(differing):.3f}, beside {len(mine)} of both"
            )
    return Parity(len(images), detections, boxes, scores, problems)


def _pairs(ours: Detections, theirs: Detections) -> tuple[list[int], list[int]]:
    """Pair the detections that are the same within the tolerances, each at most once, and return their indices."""
    close = (
        (ours.classes[:, None] == theirs.classes)
        & (np.abs(ours.scores[:, None] - theirs.scores) <= SCORE_TOLERANCE)
        & (np.abs(ours.boxes[:, None] - theirs.boxes).max(axis=2, initial=0) <= BOX_TOLERANCE)
    )
    mine: list[int] = []
    other: list[int] = []
    for i, row in enumerate(close):
        row[other] = False
        candidates = np.flatnonzero(row)
        if len(candidates):
            mine.append(i)
            other.append(int(candidates[np.abs(ours.boxes[i] - theirs.boxes[candidates]).max(axis=1).argmin()]))
    return mine, other


def _alone(found: Detections, matched: Sequence[int], others: Detections, cut: float, most: int) -> list[float]:
    """Return the scores of detections that the others lack, except those that rounding may have dropped."""
    limit = (others.scores.min() if len(others) >= most else cut) + SCORE_TOLERANCE
    lonely = np.delete(found.scores, matched)
    return [float(score) for score in lonely if not score <= limit]  # NaN is a difference too
