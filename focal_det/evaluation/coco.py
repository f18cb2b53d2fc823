"""COCO's average precision and recall by pycocotools, with every figure that cannot be computed explained.

Shapes: K classes in the order of their ids, T = 10 IoU thresholds .5:.05:.95, R = 101 recalls 0:.01:1.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.statistics import SIZE_LIMITS
from ..errors import some
from .explain import explain_nans

_IOU_50, _IOU_75 = 0, 5  # places of these among the thresholds


@dataclass(frozen=True)
class ClassScores:
    """Of one class, in percent; nan where there is nothing to compute it from.

    objects: annotated, without crowds.
    detections: in all pictures, whatever their score.
    """

    category_id: int
    name: str
    AP: float
    AP50: float
    AR: float
    objects: int
    detections: int


@dataclass(frozen=True)
class Evaluation:
    """COCO's scores in percent, nan where there is nothing to compute one from; `explain` says why.

    AP, AP50, AP75, APs, APm, APl: as Detectron2's COCOEvaluator gives them.
    AR: with at most `max_detections` a picture.
    classes: in the order of the category ids.
    precisions: (K, R) at IoU .5, in [0, 1]; nan in the rows of classes that cannot be scored.
    recalls: (R,) that the precisions belong to.
    objects_by_size: annotated objects without crowds: small, medium, large.
    pictures, detections: how many there are.
    """

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR: float
    classes: tuple[ClassScores, ...]
    precisions: np.ndarray
    recalls: np.ndarray
    objects_by_size: tuple[int, int, int]
    pictures: int
    detections: int

    @property
    def objects(self) -> int:
        """Annotated objects without crowds."""
        return sum(self.objects_by_size)

    def explain(self) -> list[str]:
        """For each figure that is nan, why; classes in one line."""
        absent = [c.name for c in self.classes if c.objects == 0]
        return explain_nans(self.objects_by_size, absent, found_anything=self.detections > 0)


def evaluate(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], *, max_detections: int = 100
) -> Evaluation:
    """Score detections against annotations as COCO does.

    Args:
        ground_truth: an annotation file's content: images, annotations, categories. An annotation without area has
            that of its box, one without iscrowd is none. It is not changed.
        detections: COCO's results: image_id, category_id, bbox [x, y, width, height] in pixels, score.
        max_detections: so many of a picture and class, those with the highest scores, count.

    Raises:
        ValueError: detections of pictures or classes that the annotations don't have; it names them.
    """
    problem = _stranger_problem(ground_truth, detections)
    if problem:
        raise ValueError(problem)
    categories = sorted(ground_truth["categories"], key=lambda c: c["id"])
    objects = [a for a in ground_truth["annotations"] if not a.get("iscrowd")]
    areas = np.array([area_of(a) for a in objects])
    sizes = size_of(areas)
    scores = _accumulate(ground_truth, categories, detections, max_detections) if detections else None
    return Evaluation(
        **_mean_scores(scores),
        classes=_class_scores(scores, categories, objects, detections),
        precisions=_precisions(scores, len(categories)),
        recalls=np.linspace(0, 1, 101),
        objects_by_size=(int((sizes == 0).sum()), int((sizes == 1).sum()), int((sizes == 2).sum())),
        pictures=len(ground_truth["images"]),
        detections=len(detections),
    )


def size_of(areas: np.ndarray) -> np.ndarray:
    """Areas (N,) in px^2 -> (N,) int64 places in SIZES. A limit's own area is of the larger size."""
    return np.searchsorted(np.array(SIZE_LIMITS), np.asarray(areas, dtype=float), side="right")


class _Scores:
    """What pycocotools accumulates: precision (T, R, K, 4 sizes), recall (T, K, 4), with -1 for "nothing"."""

    def __init__(self, accumulated: Mapping[str, Any]) -> None:
        self.precision: np.ndarray = accumulated["precision"][..., 0]
        self.recall: np.ndarray = accumulated["recall"][..., 0]


def _accumulate(
    ground_truth: Mapping[str, Any],
    categories: list[dict[str, Any]],
    detections: Sequence[Mapping[str, Any]],
    max_detections: int,
) -> _Scores:
    truth = ground_truth["annotations"]
    rows = [
        [
            {
                "id": i,  # not the file's: pycocotools takes id 0 for "unmatched"
                "image_id": row["image_id"],
                "category_id": row["category_id"],
                "bbox": row["bbox"],
                "area": area_of(row) if part is truth else row["bbox"][2] * row["bbox"][3],
                "iscrowd": int(bool(row.get("iscrowd"))),
                "score": row.get("score"),
            }
            for i, row in enumerate(part, start=1)
        ]
        for part in (truth, detections)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(*(_index(ground_truth, categories, part) for part in rows), iouType="bbox")
        evaluator.params.maxDets = [max_detections]
        evaluator.evaluate()
        evaluator.accumulate()
    return _Scores(evaluator.eval)


def _index(ground_truth: Mapping[str, Any], categories: list[dict[str, Any]], rows: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {"info": {}, "images": ground_truth["images"], "categories": categories, "annotations": rows}
    coco.createIndex()
    return coco


def _mean_scores(scores: _Scores | None) -> dict[str, float]:
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")
    if scores is None:
        return dict.fromkeys(names, math.nan)
    precision, recall = scores.precision, scores.recall
    parts = (
        precision[..., 0],
        precision[_IOU_50, ..., 0],
        precision[_IOU_75, ..., 0],
        *(precision[..., size] for size in (1, 2, 3)),
        recall[..., 0],
    )
    return dict(zip(names, map(_mean, parts), strict=True))


def _class_scores(
    scores: _Scores | None,
    categories: list[dict[str, Any]],
    objects: list[dict[str, Any]],
    detections: Sequence[Mapping[str, Any]],
) -> tuple[ClassScores, ...]:
    object_counts = Counter(a["category_id"] for a in objects)
    detection_counts = Counter(d["category_id"] for d in detections)
    classes = []
    for k, category in enumerate(categories):
        ap = ap50 = ar = math.nan
        if scores is not None:
            ap, ap50 = _mean(scores.precision[:, :, k, 0]), _mean(scores.precision[_IOU_50, :, k, 0])
            ar = _mean(scores.recall[:, k, 0])
        counts = object_counts[category["id"]], detection_counts[category["id"]]
        classes.append(ClassScores(category["id"], category["name"], ap, ap50, ar, *counts))
    return tuple(classes)


def _precisions(scores: _Scores | None, num_classes: int) -> np.ndarray:
    if scores is None:
        return np.full((num_classes, 101), math.nan)
    precisions = scores.precision[_IOU_50, :, :, 0].T  # (K, R)
    return np.where(precisions < 0, math.nan, precisions)


def _mean(values: np.ndarray) -> float:
    """In percent, of what is there."""
    there = values[values > -1]
    return float(100 * there.mean()) if there.size else math.nan


def area_of(annotation: Mapping[str, Any]) -> float:
    """Of an annotation or a detection in px^2: the one it states, else its box's."""
    area = annotation.get("area")
    return float(annotation["bbox"][2] * annotation["bbox"][3] if area is None else area)


def _stranger_problem(ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> str | None:
    for section, field in (("images", "image_id"), ("categories", "category_id")):
        known = {row["id"] for row in ground_truth[section]}
        strangers = sorted({d[field] for d in detections} - known, key=str)
        if strangers:
            return f"detections of {some(field, strangers)}, which the annotations don't have among their {section}"
    return None
