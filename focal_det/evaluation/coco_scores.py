"""COCO's average precision and recall, with every figure that cannot be computed explained.

Shapes: K classes in the order of their ids, T = 10 IoU thresholds .5:.05:.95, R = 101 recalls 0:.01:1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.statistics import SIZE_LIMITS
from ..errors import some
from ..formats.coco_index import CocoIndex, Row, area_of
from .coco_arrays import accumulate

SIZES = ("small", "medium", "large")
SIZE_WORDS = ("area up to 32^2 px", "area of 32^2 to 96^2 px", "area from 96^2 px on")
_IOU_50, _IOU_75 = 0, 5  # indices of these thresholds


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class in percent; nan where there is nothing to compute one from.

    objects: annotated, without crowds.
    detections: in all images, whatever their score.
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
    AR: with at most `max_detections` an image.
    classes: in the order of the category ids.
    precisions: (K, R) at IoU .5, in [0, 1]; nan in the rows of classes that cannot be scored.
    recalls: (R,) that the precisions belong to.
    objects_by_size: annotated objects without crowds: small, medium, large.
    images, detections: how many there are.
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
    images: int
    detections: int

    @property
    def objects(self) -> int:
        """Annotated objects without crowds."""
        return sum(self.objects_by_size)

    def explain(self) -> list[str]:
        """Explain each figure that is nan; all classes in one line."""
        absent = [c.name for c in self.classes if c.objects == 0]
        return explain_nans(self.objects_by_size, absent, found_anything=self.detections > 0)


def evaluate(ground_truth: Mapping[str, Any], detections: Sequence[Row], *, max_detections: int = 100) -> Evaluation:
    """Score detections against annotations as COCO does.

    Args:
        ground_truth: an annotation file's content: images, annotations, categories. An annotation without area has
            that of its box, one without iscrowd is not a crowd. It is not changed.
        detections: COCO's results: image_id, category_id, bbox [x, y, width, height] in pixels, score.
        max_detections: so many of an image and class count, those with the highest scores.

    Raises:
        ValueError: detections of images or classes that the annotations don't have; it names them.
    """
    index = CocoIndex(ground_truth)
    sizes = size_of(np.array([area_of(a) for a in index.objects]))
    if detections:
        arrays = accumulate(ground_truth, detections, [max_detections]).eval
        precision, recall = arrays["precision"][..., 0], arrays["recall"][..., 0]  # (T, R, K, A), (T, K, A)
    else:
        precision, recall = np.full((10, 101, len(index.names), 4), -1.0), np.full((10, len(index.names), 4), -1.0)
    at_50 = precision[_IOU_50, :, :, 0]  # (R, K)
    object_counts, detection_counts = (Counter(d["category_id"] for d in rows) for rows in (index.objects, detections))
    classes = []
    for k, (category_id, name) in enumerate(zip(index.category_ids, index.names, strict=True)):
        scores = _mean(precision[:, :, k, 0]), _mean(at_50[:, k]), _mean(recall[:, k, 0])
        classes.append(
            ClassScores(category_id, name, *scores, object_counts[category_id], detection_counts[category_id])
        )
    return Evaluation(
        AP=_mean(precision[..., 0]),
        AP50=_mean(at_50),
        AP75=_mean(precision[_IOU_75, ..., 0]),
        APs=_mean(precision[..., 1]),
        APm=_mean(precision[..., 2]),
        APl=_mean(precision[..., 3]),
        AR=_mean(recall[..., 0]),
        classes=tuple(classes),
        precisions=np.where(at_50 < 0, math.nan, at_50).T,
        recalls=np.linspace(0, 1, 101),
        objects_by_size=tuple(np.bincount(sizes, minlength=len(SIZES)).tolist()),
        images=len(ground_truth["images"]),
        detections=len(detections),
    )


def looked_for(ground_truth: Mapping[str, Any], detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out detections of classes that nobody looked for in their image, which only LVIS's files say."""
    negative = {image["id"]: image.get("neg_category_ids") for image in ground_truth["images"]}
    if not negative or None in negative.values():
        return detections
    known = {(image_id, category_id) for image_id, ids in negative.items() for category_id in ids}
    known |= {(a["image_id"], a["category_id"]) for a in ground_truth["annotations"]}
    return [d for d in detections if (d["image_id"], d["category_id"]) in known]


def size_of(areas: np.ndarray) -> np.ndarray:
    """Return the index in `SIZES` of each area (N,) in px^2, int64; a limit's own area is of the larger size."""
    return np.searchsorted(np.array(SIZE_LIMITS), np.asarray(areas, dtype=float), side="right")


def _mean(values: np.ndarray) -> float:
    """Return the mean in percent, without the entries that have no objects."""
    defined = values[values > -1]
    return float(100 * defined.mean()) if defined.size else math.nan


def explain_nans(objects_by_size: Sequence[int], absent: Sequence[str], *, found_anything: bool) -> list[str]:
    """Return a line for each kind of figure that COCO's evaluation leaves nan.

    Args:
        objects_by_size: annotated objects without crowds: small, medium, large.
        absent: names of the classes without objects.
        found_anything: whether there are detections.
    """
    objects = sum(objects_by_size)
    if objects == 0:
        return ["Every figure is nan: the set has no annotated objects, so there is nothing to find."]
    if not found_anything:
        return [
            f"Every figure is nan: there are no detections at all, of {objects:,} object{'' if objects == 1 else 's'}. "
            "Nothing scored above MODEL.RETINANET.SCORE_THRESH_TEST: the training was too short or learnt nothing, or "
            "the weights are another model's."
        ]
    lines = [
        f"AP{size[0]} is nan: the set has no {size} objects ({words})."
        for size, words, count in zip(SIZES, SIZE_WORDS, objects_by_size, strict=True)
        if count == 0
    ]
    if absent:
        many = len(absent) > 1
        lines.append(
            f"{'The figures' if many else 'Each figure'} of {some('', absent)} {'are' if many else 'is'} nan: the "
            f"set has no objects of {'these classes' if many else 'this class'}; means leave "
            f"{'them' if many else 'it'} out."
        )
    return lines
