"""Why an AP is nan, in words, for the log."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.coco import area_of, size_of
from ..evaluation.explain import SIZES, explain_nans


def nan_lines(results: Mapping[str, Any], json_files: Mapping[str, str]) -> list[str]:
    """Lines for each set whose scores have a nan or are missing; none if its annotation file cannot be read here.

    Args:
        results: of Detectron2's evaluation of the sets, {"bbox": scores}, or of several sets that by name.
        json_files: annotation file of each set, by name, in the order of evaluation.
    """
    lines = []
    for name, json_file in json_files.items():
        of_set = results if len(json_files) == 1 else results.get(name, {})
        scores = of_set.get("bbox", {})
        if scores and not any(math.isnan(value) for value in scores.values()):
            continue  # nothing to read the file for
        try:
            words = _explained(scores, json.loads(Path(json_file).read_text(encoding="utf-8-sig")))
        except (AttributeError, KeyError, OSError, TypeError, ValueError):
            continue  # a file that Detectron2 reads by other means, or that has gone: no reason to end a training
        lines += [f"{name}: {line}" for line in words]
    return lines


def _explained(scores: Mapping[str, float], coco: Mapping[str, Any]) -> list[str]:
    if "annotations" not in coco:
        return ["nothing is scored, since the set has no annotations"]
    objects = [a for a in coco["annotations"] if not a.get("iscrowd")]
    sizes = size_of(np.array([area_of(a) for a in objects]))
    there = {a["category_id"] for a in objects}
    absent = [c["name"] for c in coco["categories"] if c["id"] not in there]
    by_size = [int((sizes == place).sum()) for place in range(len(SIZES))]
    return explain_nans(by_size, absent, found_anything=not math.isnan(scores.get("AP", math.nan)))
