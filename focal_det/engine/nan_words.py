"""Why an AP is nan, in words, for the log."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# COCO's sizes: areas in square pixels of the picture as annotated, from and to, both included.
_SIZES = {
    "APs": ("small", 0.0, 32.0**2, "up to 32x32 px"),
    "APm": ("medium", 32.0**2, 96.0**2, "32x32 to 96x96 px"),
    "APl": ("large", 96.0**2, math.inf, "over 96x96 px"),
}


def nan_words(scores: Mapping[str, float], coco: Mapping[str, Any], *, score_thresh: float) -> str | None:
    """The reason of every nan among the scores of one set.

    Args:
        scores: Detectron2's "AP", "AP50", "APs", ..., "AP-<class>"; empty if there was nothing to score against.
        coco: the set's annotation file.
        score_thresh: of what counts as a detection.

    Returns:
        One line behind "AP nan: "; None if there is no nan.
    """
    if not scores:
        return "nothing is scored, since the set has no annotations" if "annotations" not in coco else None
    missing = [name for name, value in scores.items() if math.isnan(value)]
    if not missing:
        return None
    boxes = [a for a in coco.get("annotations", ()) if not a.get("iscrowd", 0)]
    if not boxes:
        return "the set has no objects (crowds do not count)"
    if "AP" in missing:
        return (
            f"there is no detection with a score above MODEL.RETINANET.SCORE_THRESH_TEST {score_thresh}: the training "
            "is too short, or has not learnt, or the weights are those of another model"
        )
    return "; ".join(_reasons(missing, boxes, coco)) or None


def _reasons(missing: Iterable[str], boxes: list[dict[str, Any]], coco: Mapping[str, Any]) -> list[str]:
    areas = [float(a.get("area", a["bbox"][2] * a["bbox"][3])) for a in boxes]
    ids = {category["name"]: category["id"] for category in coco.get("categories", ())}
    found = {a["category_id"] for a in boxes}
    reasons = []
    for name in missing:
        if name in _SIZES:
            size, low, high, words = _SIZES[name]
            if not any(low <= area <= high for area in areas):
                reasons.append(f"{name}: the set has no {size} objects ({words})")
        elif ids.get(name.removeprefix("AP-")) not in found:
            reasons.append(f"{name}: the set has no {name.removeprefix('AP-')}")
    return reasons


def nan_lines(results: Mapping[str, Any], json_files: Mapping[str, str], *, score_thresh: float) -> list[str]:
    """A line for each set whose scores have a nan or are missing.

    Args:
        results: of an evaluation of the sets, {"bbox": scores}, or of several sets that by name.
        json_files: annotation file of each set, by name, in the order of evaluation.
        score_thresh: see `nan_words`.
    """
    lines = []
    for name, json_file in json_files.items():
        of_set = results if len(json_files) == 1 else results.get(name, {})
        scores = of_set.get("bbox", {})
        if scores and not any(math.isnan(value) for value in scores.values()):
            continue  # nothing to read the file for
        words = nan_words(scores, json.loads(Path(json_file).read_text(encoding="utf-8")), score_thresh=score_thresh)
        if words:
            lines.append(f"AP nan on {name}: {words}")
    return lines
