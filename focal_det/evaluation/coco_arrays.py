"""COCO's precision and recall as arrays: by hotcoco, or where that is missing by pycocotools, with the same bits.

Shapes: N rows, K classes in the order of their ids, T = 10 IoU thresholds .5:.05:.95, R = 101 recalls 0:.01:1,
A = 4 sizes (all, small, medium, large), M limits of detections.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import some
from ..formats.coco_index import Row, area_of, xywh_boxes

logger = logging.getLogger(__name__)


class Columns(NamedTuple):
    """Annotations or detections as arrays, whose images and classes are numbered from 1 in the order of their ids.

    images, categories: (N,) int64.
    boxes: (N, 4) float64: x, y, width, height in pixels.
    areas: (N,) float64, in px^2.
    crowds: (N,) int64, 1 for a crowd.
    scores: (N,) float64; nan for annotations.
    """

    images: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    scores: np.ndarray


def accumulate(ground_truth: Mapping[str, Any], detections: Sequence[Row], limits: Sequence[int]) -> Any:
    """Score detections as COCO does, up to the arrays.

    The rows' own ids and the order of images and classes in the file do not matter.

    Args:
        ground_truth: an annotation file's content: images, annotations, categories. An annotation without area has
            that of its box, one without iscrowd is not a crowd. It is not changed.
        detections: COCO's results, at least one: image_id, category_id, bbox [x, y, width, height] in pixels, score.
        limits: ascending; so many of an image and class count, the best; three where `summarize` is to be called.

    Returns:
        A `COCOeval` of hotcoco or pycocotools: `eval["precision"]` and `eval["scores"]` (T, R, K, A, M),
        `eval["recall"]` (T, K, A, M), all -1 where there are no objects; `summarize()` sets `stats` (12,).

    Raises:
        ValueError: detections of images or classes that the annotations don't have, or with a score that is NaN or a
            box that is not finite; it names them.
    """
    for section, field in (("images", "image_id"), ("categories", "category_id")):
        strangers = sorted({d[field] for d in detections} - {row["id"] for row in ground_truth[section]}, key=str)
        if strangers:
            raise ValueError(
                f"detections of {some(field, strangers)}, which the annotations don't have among their {section}"
            )
    numbers = [_numbers(ground_truth[section]) for section in ("images", "categories")]
    truth = _columns(ground_truth["annotations"], *numbers)
    found = _columns(detections, *numbers)
    damaged = np.isnan(found.scores) | ~np.isfinite(found.boxes).all(axis=1)  # of which the tools make different scores
    if damaged.any():
        images = list(dict.fromkeys(detections[i]["image_id"] for i in damaged.nonzero()[0]))
        raise ValueError(
            f"{damaged.sum()} of {len(detections)} detections have a NaN score or a box that is not finite, in images "
            f"{some('image_id', images)}; the model that gave them has diverged or is damaged"
        )
    found = found._replace(areas=found.boxes[:, 2] * found.boxes[:, 3])  # whatever they state
    kind, *coco = _by_pycocotools(truth, found, *numbers) if hotcoco() is None else _by_hotcoco(truth, found, *numbers)
    evaluator = kind(*coco, "bbox")
    evaluator.params.maxDets = list(limits)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


_has_lost_threads = False  # whether this process was forked from one in which hotcoco had been used


@cache
def hotcoco() -> ModuleType | None:
    """Return the package, or None where it cannot compute, which is said once."""
    if _has_lost_threads:  # which it would await for ever: they start with its first scores, and no fork has them
        logger.warning("Forked from a process that has used hotcoco: pycocotools computes the same scores")
        return None
    try:
        import hotcoco
    except ImportError as error:  # it is missing, or was built for another system
        logger.warning(f"{error}: pycocotools computes the same scores as hotcoco, in some 60 times the time")
        return None
    module: ModuleType = hotcoco
    return module


def _note_lost_threads() -> None:
    global _has_lost_threads
    if hotcoco.cache_info().currsize and hotcoco() is not None:
        _has_lost_threads = True
        hotcoco.cache_clear()


os.register_at_fork(after_in_child=_note_lost_threads)


def _numbers(rows: Iterable[Row]) -> dict[Any, int]:
    """Number ids from 1: to pycocotools id 0 is "unmatched", and hotcoco reads the ids of detections as float64."""
    return {row_id: number for number, row_id in enumerate(sorted({row["id"] for row in rows}), start=1)}


def _columns(rows: Sequence[Row], images: Mapping[Any, int], categories: Mapping[Any, int]) -> Columns:
    return Columns(
        np.array([images[row["image_id"]] for row in rows], np.int64),
        np.array([categories[row["category_id"]] for row in rows], np.int64),
        xywh_boxes(rows),
        np.array([area_of(row) for row in rows], np.float64),
        np.array([bool(row.get("iscrowd")) for row in rows], np.int64),
        np.array([row.get("score", np.nan) for row in rows], np.float64),
    )


def _by_hotcoco(truth: Columns, found: Columns, *numbers: Mapping[Any, int]) -> tuple[Any, Any, Any]:
    """Return hotcoco's evaluator, and annotations and detections in its form."""
    package: Any = hotcoco()
    images, categories = ([{"id": number, "name": str(number)} for number in ids.values()] for ids in numbers)
    annotations = package.COCO.from_arrays(
        images, categories, truth.images, truth.categories, truth.boxes, area=truth.areas, iscrowd=truth.crowds
    )
    rows = np.column_stack([found.images, found.boxes, found.scores, found.categories])
    return package.COCOeval, annotations, annotations.load_res(rows)


def _by_pycocotools(truth: Columns, found: Columns, *numbers: Mapping[Any, int]) -> tuple[Any, Any, Any]:
    """Return pycocotools' evaluator, and annotations and detections in its form."""
    images, categories = ([{"id": number} for number in ids.values()] for ids in numbers)
    both = []
    for part in (truth, found):
        coco = COCO()
        names = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "score")
        columns = (range(1, len(part.images) + 1), *(column.tolist() for column in part))
        rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        coco.dataset = {"images": images, "categories": categories, "annotations": rows}
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        both.append(coco)
    return COCOeval, *both
