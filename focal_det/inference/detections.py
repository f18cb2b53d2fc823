"""The interface of every detector: images to `Detections`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class Detections(NamedTuple):
    """D detections of one image as arrays, best first.

    boxes: (D, 4) float32 XYXY, in pixels of the image as read, which has its EXIF rotation applied.
    scores: (D,) float32 in (0, 1).
    classes: (D,) int64 labels 0..K-1.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def above(self, thresh: float) -> Detections:
        """Return those with a score of at least `thresh`."""
        kept = self.scores >= thresh
        return Detections(self.boxes[kept], self.scores[kept], self.classes[kept])


class Detector(Protocol):
    """A callable that finds objects; its category ids are those of the annotation file that it was trained on."""

    class_names: list[str]
    category_ids: list[int]

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detect in each image, (H, W, 3) uint8 BGR; the others change nothing but the rounding."""
        ...


def to_coco(detections: Detections, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return entries of COCO's results, whose bbox is XYWH in pixels; category ids are by label 0..K-1."""
    corners = detections.boxes.astype(np.float64)
    boxes = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]).tolist()
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(boxes, detections.scores.tolist(), detections.classes.tolist(), strict=True)
    ]
