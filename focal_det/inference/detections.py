"""What a detector returns, and what makes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class Detections(NamedTuple):
    """D detections of one picture, best first.

    boxes: (D, 4) float32 XYXY, in pixels of the picture as read, which has its EXIF rotation applied.
    scores: (D,) float32 in (0, 1).
    classes: (D,) int64 labels 0..K-1.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def above(self, thresh: float) -> Detections:
        """Those with a score of at least `thresh`."""
        kept = self.scores >= thresh
        return Detections(self.boxes[kept], self.scores[kept], self.classes[kept])


class Detector(Protocol):
    """Whatever finds objects in pictures.

    class_names: of the labels 0..K-1.
    category_ids: theirs in the annotation file that the detector was trained on.
    """

    class_names: list[str]
    category_ids: list[int]

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[Detections]:
        """Detections of each picture, (H, W, 3) uint8 BGR; they do not depend on the others, but for rounding."""
        ...


def to_coco(detections: Detections, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The entries of COCO's results format: bbox is XYWH in pixels.

    Args:
        category_ids: of the labels 0..K-1.
    """
    corners = detections.boxes.astype(np.float64)
    boxes = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]).tolist()
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(boxes, detections.scores.tolist(), detections.classes.tolist(), strict=True)
    ]
