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
    in a picture that has its full number of detections, at the last of them.

    Args:
        pictures: (H, W, 3) uint8 BGR.
        cut: the score threshold of both.
        most: detections a picture.
    """
    detections, boxes, scores, problems = 0, 0.0, 0.0, []
    for place, picture in enumerate(pictures):
        ours, theirs = model([picture])[0], exported([picture])[0]
        detections += len(ours.scores)
        pairs, alone = _pairs(ours, theirs)
        if pairs:
            mine, other = (list(indices) for indices in zip(*pairs, strict=True))
            boxes = max(boxes, float(np.abs(ours.boxes[mine] - theirs.boxes[other]).max()))
            scores = max(scores, float(np.abs(ours.scores[mine] - theirs.scores[other]).max()))
        full = max(len(ours.scores), len(theirs.scores)) >= most
        last = max((d.scores.min() for d in (ours, theirs) if full and len(d.scores)), default=cut)
        differing = [score for score in alone if score > last + SCORE_TOLERANCE]
        if differing:
            problems.append(
                f"picture {place + 1} ({picture.shape[1]}x{picture.shape[0]}): {len(differing)} of "
                f"{len(ours.scores)} detections differ, the best of them with score {max(differing):.3f}"
            )
    return Parity(len(pictures), detections, boxes, scores, problems)


def _pairs(ours: Detections, theirs: Detections) -> tuple[list[tuple[int, int]], list[float]]:
    """Indices of detections that are the same within the tolerances, and the scores of the others of both."""
    close = (
        (ours.classes[:, None] == theirs.classes)
        & (np.abs(ours.scores[:, None] - theirs.scores) <= SCORE_TOLERANCE)
        & (np.abs(ours.boxes[:, None] - theirs.boxes).max(axis=2, initial=0) <= BOX_TOLERANCE)
    )
    pairs, taken = [], np.zeros(len(theirs.scores), dtype=bool)
    for i, row in enumerate(close):
        free = np.flatnonzero(row & ~taken)
        if len(free):
            j = int(free[np.abs(ours.boxes[i] - theirs.boxes[free]).max(axis=1).argmin()])
            taken[j] = True
            pairs.append((i, j))
    matched = {i for i, _ in pairs}
    lonely = [float(score) for i, score in enumerate(ours.scores) if i not in matched]
    return pairs, lonely + [float(score) for score in theirs.scores[~taken]]
