"""What a detector finds, misses, mistakes and makes up at one score threshold: the errors behind the scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask

from .coco import area_of, size_of
from .explain import SIZES


class PictureErrors(NamedTuple):
    """Of one picture. Objects are places in the annotations, detections places in the list of detections.

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
        """Missed, made up and of the wrong class."""
        return len(self.confused) + len(self.missed) + len(self.false)

    @property
    def quality(self) -> float:
        """F1: of all objects and detections the share that belongs together, in [0, 1]; 1 for an empty picture."""
        all_of_them = 2 * len(self.found) + 2 * len(self.confused) + len(self.missed) + len(self.false)
        return 2 * len(self.found) / all_of_them if all_of_them else 1.0


class Matching(NamedTuple):
    """Of a whole set.

    confusion: (K+1, K+1) int64. Rows are the annotated classes, columns the detected ones, in the order of the ids;
        the last row is background (false detections), the last column missed objects.
    pictures: in the order of the annotations' images, those without objects and detections too.
    objects_by_size, missed_by_size, false_by_size: (3,) int64; see `SIZES`. Objects by their annotated area, false
        detections by that of their box. An object that is found as another class is not missed.
    """

    confusion: np.ndarray
    pictures: list[PictureErrors]
    objects_by_size: np.ndarray
    missed_by_size: np.ndarray
    false_by_size: np.ndarray


def match(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    score_threshold: float,
    iou_threshold: float = 0.5,
) -> Matching:
    """Give each object at most one detection, and each detection at most one object.

    As COCO does, the detection with the highest score comes first and takes the free object of its class that it
    overlaps most. What is left over is matched in the same way across classes: these are the confusions. A
    detection that is left and lies within a crowd of its class counts nowhere.

    Args:
        ground_truth, detections: as of `evaluate`.
        score_threshold: detections below it are left out.
        iou_threshold: the least IoU of a pair, in (0, 1].
    """
    labels = {c["id"]: k for k, c in enumerate(sorted(ground_truth["categories"], key=lambda c: c["id"]))}
    annotations = ground_truth["annotations"]
    objects_of = _by_picture(enumerate(annotations))
    kept = [(i, d) for i, d in enumerate(detections) if d["score"] >= score_threshold]
    found_in = _by_picture(sorted(kept, key=lambda row: -row[1]["score"]))  # sorted() keeps ties in order
    pictures = [
        _match_picture(
            image["id"], annotations, objects_of[image["id"]], detections, found_in[image["id"]], iou_threshold
        )
        for image in ground_truth["images"]
    ]
    confusion = np.zeros((len(labels) + 1,) * 2, np.int64)
    for picture in pictures:
        for a, d in (*picture.found, *picture.confused):
            confusion[labels[annotations[a]["category_id"]], labels[detections[d]["category_id"]]] += 1
        for a in picture.missed:
            confusion[labels[annotations[a]["category_id"]], -1] += 1
        for d in picture.false:
            confusion[-1, labels[detections[d]["category_id"]]] += 1
    return Matching(
        confusion,
        pictures,
        _count_sizes(area_of(a) for a in annotations if not a.get("iscrowd")),
        _count_sizes(area_of(annotations[a]) for picture in pictures for a in picture.missed),
        _count_sizes(area_of(detections[d]) for picture in pictures for d in picture.false),
    )


def _by_picture(rows: Iterable[tuple[int, Mapping[str, Any]]]) -> defaultdict[int, list[int]]:
    places = defaultdict(list)
    for place, row in rows:
        places[row["image_id"]].append(place)
    return places


def _match_picture(
    image_id: int,
    annotations: Sequence[Mapping[str, Any]],
    objects: list[int],
    detections: Sequence[Mapping[str, Any]],
    found: list[int],
    iou_threshold: float,
) -> PictureErrors:
    crowds = [a for a in objects if annotations[a].get("iscrowd")]
    objects = [a for a in objects if not annotations[a].get("iscrowd")]
    if not found:
        return PictureErrors(image_id, [], [], objects, [])
    ious = _ious(detections, found, annotations, objects, is_crowd=False)
    same = np.equal.outer(_classes(detections, found), _classes(annotations, objects))
    own = _pair_greedily(np.where(same, ious, 0), iou_threshold)
    ious[list(own)] = 0
    ious[:, list(own.values())] = 0
    others = _pair_greedily(ious, iou_threshold)

    within = _ious(detections, found, annotations, crowds, is_crowd=True)
    same = np.equal.outer(_classes(detections, found), _classes(annotations, crowds))
    in_crowd = np.any(np.where(same, within, 0) >= iou_threshold, axis=1)
    taken = {*own.values(), *others.values()}
    return PictureErrors(
        image_id,
        [(objects[a], found[d]) for d, a in own.items()],
        [(objects[a], found[d]) for d, a in others.items()],
        [objects[a] for a in range(len(objects)) if a not in taken],
        [found[d] for d in range(len(found)) if d not in own and d not in others and not in_crowd[d]],
    )


def _ious(
    detections: Sequence[Mapping[str, Any]],
    found: list[int],
    annotations: Sequence[Mapping[str, Any]],
    objects: list[int],
    *,
    is_crowd: bool,
) -> np.ndarray:
    """(D, A); with a crowd the share of the detection that lies in it."""
    if not objects:
        return np.zeros((len(found), 0))
    boxes = ([rows[i]["bbox"] for i in places] for rows, places in ((detections, found), (annotations, objects)))
    pair = (np.array(b, dtype=np.float64).reshape(-1, 4) for b in boxes)
    return np.array(mask.iou(*pair, [is_crowd] * len(objects)))


def _classes(rows: Sequence[Mapping[str, Any]], places: list[int]) -> np.ndarray:
    return np.array([rows[i]["category_id"] for i in places], dtype=np.int64)


def _pair_greedily(ious: np.ndarray, threshold: float) -> dict[int, int]:
    """Rows, in their order, take the free column with the largest IoU (D, A), if it reaches the threshold."""
    pairs: dict[int, int] = {}
    free = np.ones(ious.shape[1], dtype=bool)
    for row in np.flatnonzero((ious >= threshold).any(axis=1)):
        column = int(np.argmax(np.where(free, ious[row], 0)))
        if free[column] and ious[row, column] >= threshold:
            pairs[int(row)] = column
            free[column] = False
    return pairs


def _count_sizes(areas: Iterable[float]) -> np.ndarray:
    return np.bincount(size_of(np.array(list(areas))), minlength=len(SIZES))
