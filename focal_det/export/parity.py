"""Whether an exported detector finds what its model finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..inference.detections import Detections, Detector

# What float32 in another order of operations may change. Measured on pictures of many sizes: 1e-3 px and 1e-4.
BOX_TOLERANCE = 0.1  # pixels of the picture
SCORE_TOLERANCE = 1e-3


class Parity(NamedTuple):
    """What a comparison came to.

    pictures, detections: compared; the detections are the model's.
    box_difference: the largest, of a coordinate in pixels. score_difference: the largest.
    problems: of each picture that differs, a line.
    """

    pictures: int
    detections: int
    box_difference: float
    score_difference: float
    problems: list[str]

    def __str__(self) -> str:
        return (
            f"{self.detections} detections of {self.pictures} pictures, boxes within {self.box_difference:.1e} px, "
            f"scores within {self.score_difference:.1e}"
        )


def compare(model: Detector, exported: Detector, pictures: Sequence[np.ndarray], *, cut: float, most: int) -> Parity:
    """Compare two detectors picture by picture.

    A detection that only one has is no difference where the least rounding decides on it: at the score threshold, and,
    where the other has a full number of detections, at the last of them.

    Args:
        pictures: (H, W, 3) uint8 BGR.
        cut: the score threshold of both.
        most: detections a picture.
    """
    detections, boxes, scores, problems = 0, 0.0, 0.0, []
    for place, picture in enumerate(pictures):
        ours, theirs = model([picture])[0], exported([picture])[0]
        detections += len(ours.scores)
        mine, other = _pairs(ours, theirs)
        if len(mine):
            boxes = max(boxes, float(np.abs(ours.boxes[mine] - theirs.boxes[other]).max()))
            scores = max(scores, float(np.abs(ours.scores[mine] - theirs.scores[other]).max()))
        differing = [*_alone(ours, mine, theirs, cut, most), *_alone(theirs, other, ours, cut, most)]
        if differing:
            problems.append(
                f"picture {place + 1} ({picture.shape[1]}x{picture.shape[0]}): {len(differing)} detections that only "
                f"one of them has, the best of them with score {max(differing):.3f}, beside {len(mine)} of both"
            )
    return Parity(len(pictures), detections, boxes, scores, problems)


def _pairs(ours: Detections, theirs: Detections) -> tuple[list[int], list[int]]:
    """Indices of the detections that are the same within the tolerances, each at most once."""
    close = (
        (ours.classes[:, None] == theirs.classes)
        & (np.abs(ours.scores[:, None] - theirs.scores) <= SCORE_TOLERANCE)
        & (np.abs(ours.boxes[:, None] - theirs.boxes).max(axis=2, initial=0) <= BOX_TOLERANCE)
    )
    mine: list[int] = []
    other: list[int] = []
    for i, row in enumerate(close):
        row[other] = False
        if row.any():
            candidates = np.flatnonzero(row)
            mine.append(i)
            other.append(int(candidates[np.abs(ours.boxes[i] - theirs.boxes[candidates]).max(axis=1).argmin()]))
    return mine, other


def _alone(found: Detections, matched: Sequence[int], others: Detections, cut: float, most: int) -> list[float]:
    """Scores of what the others lack, but for what they may have dropped by the least rounding."""
    limit = (others.scores.min() if len(others.scores) >= most else cut) + SCORE_TOLERANCE
    lonely = np.delete(found.scores, matched)
    return [float(score) for score in lonely if not score <= limit]  # NaN is a difference too
