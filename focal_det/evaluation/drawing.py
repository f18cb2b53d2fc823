"""Ground truth beside detections, from an annotation file and detections in COCO's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.spread import evenly_spread
from ..inference.drawing import ON_SHEET, draw_pair, sheet
from ..inference.pictures import read_picture


def draw_beside(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    count: int,
    score_thresh: float,
) -> np.ndarray:
    """A sheet of `count` pictures, evenly spread over the set, ground truth left and detections right.

    Args:
        ground_truth: an annotation file's content.
        folder: that its file names are relative to.
        score_thresh: least score that is drawn.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        PictureError: a picture cannot be read.
    """
    chosen = evenly_spread(ground_truth["images"], count)
    categories = sorted(ground_truth["categories"], key=lambda c: c["id"])
    labels = {category["id"]: label for label, category in enumerate(categories)}
    names = [category["name"] for category in categories]
    best_first = sorted(detections, key=lambda d: -d["score"])
    pairs = []
    for image in chosen:
        truth = [a for a in ground_truth["annotations"] if a["image_id"] == image["id"]]
        found = [d for d in best_first if d["image_id"] == image["id"] and d["score"] >= score_thresh]
        pairs.append(
            draw_pair(
                read_picture(folder / image["file_name"]),
                (_corners(truth), [labels[a["category_id"]] for a in truth]),
                (_corners(found), [labels[d["category_id"]] for d in found], [d["score"] for d in found]),
                names,
                max_side=ON_SHEET,
            )
        )
    return sheet(pairs)


def _corners(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(D, 4) XYXY."""
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
