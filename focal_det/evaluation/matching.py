"""The errors behind the scores: objects missed or confused, and false detections, at one score threshold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask

from ..formats.coco_index import CocoIndex, Row, area_of, xywh_boxes
from .coco_scores import SIZES, size_of

MATCHED = 0.5  # IoU from which a box fits


class ImageErrors(NamedTuple):
    """The errors in one image. Objects are indices of annotations, detections indices in the list of detections.

    found: pairs (object, detection) of one class.
    confused: pairs (object, detection) of two classes.
    missed: objects without a detection.
    false: detections without an object.
    """

    image_id: int
    found: list[tuple[int, int]]
    confused: list[tuple[int, int]]
    missed: list[int]
    false: list[int]

    @property
    def num_errors(self) -> int:
        """The number of missed objects, false detections and confusions."""
        return len(self.confused) + len(self.missed) + len(self.false)

    @property
    def quality(self) -> float:
        """F1, the share of objects and detections that are found pairs, in [0, 1]; 1 for an empty image."""
        number = 2 * len(self.found) + 2 * len(self.confused) + len(self.missed) + len(self.false)
        return 2 * len(self.found) / number if number else 1.0


class Matching(NamedTuple):
    """The errors in a set.

    confusion: (K+1, K+1) int64. Rows are the annotated classes, columns the detected ones, in the order of the ids;
        the last row is background (false detections), the last column missed objects.
    images: in the order of the annotations' images, those without objects and detections too.
    objects_by_size, missed_by_size, false_by_size: (3,) int64; see `SIZES`. Objects by their annotated area, false
        detections by that of their box. An object that is found as another class is not missed.
    """

    confusion: np.ndarray
    images: list[ImageErrors]
    objects_by_size: np.ndarray
    missed_by_size: np.ndarray
    false_by_size: np.ndarray


def match(ground_truth: Mapping[str, Any], detections: Sequence[Row], *, score_threshold: float) -> Matching:
    """Match each object with at most one detection, and each detection with at most one object.

    As COCO does, the detection with the highest score comes first and takes the free object of its class that it
    overlaps most. What is left over is matched in the same way across classes: these are the confusions. A
    detection that is left and lies within a crowd of its class counts nowhere.

    Args:
        ground_truth, detections: as of `evaluate`.
        score_threshold: detections below it are left out.
    """
    labels, annotations = CocoIndex(ground_truth).labels, ground_truth["annotations"]
    objects_of, crowds_of, found_in = (defaultdict[int, list[int]](list) for _ in range(3))
    for place, row in enumerate(annotations):
        (crowds_of if row.get("iscrowd") else objects_of)[row["image_id"]].append(place)
    kept = [place for place, row in enumerate(detections) if row["score"] >= score_threshold]
    for place in sorted(kept, key=lambda place: -detections[place]["score"]):  # sorted() keeps ties in order
        found_in[detections[place]["image_id"]].append(place)
    images = []
    for image_id in (image["id"] for image in ground_truth["images"]):
        objects, crowds, found = objects_of[image_id], crowds_of[image_id], found_in[image_id]
        rows = [annotations[a] for a in objects], [annotations[a] for a in crowds], [detections[d] for d in found]
        own, others, false = _match_image(*rows)
        taken = {*own.values(), *others.values()}
        images.append(
            ImageErrors(
                image_id,
                [(objects[a], found[d]) for d, a in own.items()],
                [(objects[a], found[d]) for d, a in others.items()],
                [place for a, place in enumerate(objects) if a not in taken],
                [found[d] for d in false],
            )
        )
    confusion = np.zeros((len(labels) + 1,) * 2, np.int64)
    for matched in images:
        for a, d in (*matched.found, *matched.confused):
            confusion[labels[annotations[a]["category_id"]], labels[detections[d]["category_id"]]] += 1
        for a in matched.missed:
            confusion[labels[annotations[a]["category_id"]], -1] += 1
        for d in matched.false:
            confusion[-1, labels[detections[d]["category_id"]]] += 1
    return Matching(
        confusion,
        images,
        _count_sizes(a for a in annotations if not a.get("iscrowd")),
        _count_sizes(annotations[a] for matched in images for a in matched.missed),
        _count_sizes(detections[d] for matched in images for d in matched.false),
    )


def _match_image(
    objects: list[Row], crowds: list[Row], found: list[Row]
) -> tuple[dict[int, int], dict[int, int], list[int]]:
    """Match detections, best first: their objects of the same class, of another class, and those without an object."""
    ious = _ious(found, objects, is_crowd=False)
    own = _pair_greedily(np.where(_same_class(found, objects), ious, 0))
    ious[list(own)] = 0
    ious[:, list(own.values())] = 0
    others = _pair_greedily(ious)
    within = np.where(_same_class(found, crowds), _ious(found, crowds, is_crowd=True), 0)
    outside = np.flatnonzero((within < MATCHED).all(axis=1)).tolist()
    return own, others, [d for d in outside if d not in own and d not in others]


def _ious(found: list[Row], objects: list[Row], *, is_crowd: bool) -> np.ndarray:
    """Return the IoUs (D, A); with a crowd, the share of the detection that lies in it."""
    if not found or not objects:
        return np.zeros((len(found), len(objects)))
    return np.array(mask.iou(xywh_boxes(found), xywh_boxes(objects), [is_crowd] * len(objects)))


def _same_class(found: list[Row], objects: list[Row]) -> np.ndarray:
    return np.equal.outer(*(np.array([row["category_id"] for row in rows], np.int64) for rows in (found, objects)))


def _pair_greedily(ious: np.ndarray) -> dict[int, int]:
    """Give each row in turn the free column with the largest IoU (D, A), if it reaches `MATCHED`."""
    pairs: dict[int, int] = {}
    free = np.ones(ious.shape[1], dtype=bool)
    for row in np.flatnonzero((ious >= MATCHED).any(axis=1)):
        column = int(np.argmax(np.where(free, ious[row], 0)))
        if free[column] and ious[row, column] >= MATCHED:
            pairs[int(row)] = column
            free[column] = False
    return pairs


def _count_sizes(rows: Iterable[Row]) -> np.ndarray:
    return np.bincount(size_of(np.array([area_of(row) for row in rows])), minlength=len(SIZES))
