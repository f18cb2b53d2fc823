"""Ground truth beside detections, from an annotation file and detections in COCO's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.statistics import evenly_spread
from ..formats.coco_index import CocoIndex, by_image, xyxy_boxes
from ..inference.drawing import ON_SHEET, draw_pair, sheet
from ..inference.images import read_image


def draw_beside(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    count: int,
    score_thresh: float,
) -> np.ndarray:
    """Draw a sheet of `count` images, evenly spread over the set, ground truth left and detections right.

    Args:
        ground_truth: an annotation file's content.
        folder: that its file names are relative to.
        score_thresh: least score that is drawn.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        ImageError: an image cannot be read.
    """
    index = CocoIndex(ground_truth)
    truth_by_image = by_image(ground_truth["annotations"])
    shown = [d for d in detections if d["score"] >= score_thresh]
    found_by_image = by_image(sorted(shown, key=lambda d: -d["score"]))
    pairs = []
    for image in evenly_spread(ground_truth["images"], count):
        truth, found = truth_by_image[image["id"]], found_by_image[image["id"]]
        pairs.append(
            draw_pair(
                read_image(folder / image["file_name"]),
                (xyxy_boxes(truth), index.labels_of(truth)),
                (xyxy_boxes(found), index.labels_of(found), [d["score"] for d in found]),
                index.names,
                max_side=ON_SHEET,
            )
        )
    return sheet(pairs)
