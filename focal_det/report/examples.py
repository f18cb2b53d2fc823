"""Ground truth beside detections, for the images where the detector does worst and best."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ..evaluation.matching import ImageErrors, Matching
from ..formats.coco_index import CocoIndex, xyxy_boxes
from ..inference.drawing import draw_boxes
from ..inference.images import read_image

_Pair = tuple[ImageErrors, ImageErrors]  # of one image in two runs

_MAX_SIDE = 480  # px of a drawing
_JPEG_QUALITY = 82


class Example(NamedTuple):
    """An image with its two drawings as data URIs, and what was found in it."""

    name: str
    truth: str
    detections: str
    errors: ImageErrors


@dataclass
class Examples:
    """The worst and the best; `unreadable` names images that would be among them, `left_out` counts those for whose
    size the page has no room."""

    worst: list[Example] = field(default_factory=list)
    best: list[Example] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    left_out: int = 0


class PairExample(NamedTuple):
    """An image with three drawings as data URIs: ground truth and both runs' detections; and the errors of both."""

    name: str
    truth: str
    detections: tuple[str, str]
    errors: tuple[ImageErrors, ImageErrors]


@dataclass
class PairExamples:
    """Images where the first run is better, and where the second is; the rest as in `Examples`."""

    first: list[PairExample] = field(default_factory=list)
    second: list[PairExample] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    left_out: int = 0


def choose(images: Sequence[ImageErrors], count: int) -> tuple[list[ImageErrors], list[ImageErrors]]:
    """The `count` worst, with errors, and the `count` best, without any image twice or without objects.

    By F1; of equals the worst have more errors, the best more objects.
    """
    worst = sorted((p for p in images if p.num_errors), key=lambda p: (p.quality, -p.num_errors))[:count]
    taken = {p.image_id for p in worst}
    good = [p for p in images if p.found and p.image_id not in taken]
    return worst, sorted(good, key=lambda p: (-p.quality, -len(p.found)))[:count]


def draw_examples(
    annotations: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    matching: Matching,
    image_dir: Path | None,
    *,
    count: int,
    max_bytes: int,
) -> Examples:
    """Draw the worst and the best images, in turns, until `max_bytes` of data URIs are reached."""
    result = Examples()
    worst, best = choose(matching.images, count)

    def draw(matched: ImageErrors, name: str, pixels: np.ndarray) -> tuple[Example, int]:
        paired = [a for a, _ in (*matched.found, *matched.confused)]
        truth = _draw_truth(pixels, annotations, paired, matched.missed)
        found = _draw_found(pixels, annotations, detections, matched)
        return Example(name, truth, found, matched), len(truth) + len(found)

    groups = [([(matched,) for matched in worst], result.worst), ([(matched,) for matched in best], result.best)]
    _draw_in_turns(groups, draw, result, annotations, image_dir, max_bytes)
    return result


def choose_pairs(first: Matching, second: Matching, count: int) -> tuple[list[_Pair], list[_Pair]]:
    """Return the `count` images where the first is better, and those where the second is, by the difference of F1."""
    pairs = list(zip(first.images, second.images, strict=True))
    gains = [(a.quality - b.quality, b.num_errors - a.num_errors, (a, b)) for a, b in pairs]
    better = sorted((g for g in gains if g[0] > 0), key=lambda gain: gain[:2], reverse=True)
    worse = sorted((g for g in gains if g[0] < 0), key=lambda gain: gain[:2])
    return [pair for *_, pair in better[:count]], [pair for *_, pair in worse[:count]]


def draw_pairs(
    annotations: dict[str, Any],
    runs: Sequence[tuple[Sequence[dict[str, Any]], Matching]],
    image_dir: Path | None,
    *,
    count: int,
    max_bytes: int,
) -> PairExamples:
    """Draw the images where one of two runs is better than the other, in turns, until `max_bytes` are reached.

    Args:
        runs: detections and how they match, of both.
    """
    result = PairExamples()
    rows = [each for each, _ in runs]
    better = choose_pairs(runs[0][1], runs[1][1], count)

    def draw(first: ImageErrors, second: ImageErrors, name: str, pixels: np.ndarray) -> tuple[PairExample, int]:
        objects = [a for a, _ in (*first.found, *first.confused)] + first.missed
        truth = _draw_truth(pixels, annotations, objects, ())
        left, right = (_draw_found(pixels, annotations, *each) for each in zip(rows, (first, second), strict=True))
        return PairExample(name, truth, (left, right), (first, second)), len(truth) + len(left) + len(right)

    groups = list(zip(better, (result.first, result.second), strict=True))
    _draw_in_turns(groups, draw, result, annotations, image_dir, max_bytes)
    return result


def _draw_in_turns(
    groups: Sequence[tuple[Sequence[tuple[ImageErrors, ...]], list[Any]]],
    draw: Callable[..., tuple[Any, int]],
    result: Examples | PairExamples,
    annotations: dict[str, Any],
    image_dir: Path | None,
    max_bytes: int,
) -> None:
    """Draw of each group in turns; what cannot be read or has no room is noted in `result`."""
    images, used = {image["id"]: image for image in annotations["images"]}, 0
    for chosen in itertools.zip_longest(*(matched for matched, _ in groups)):
        for matched, (_, into) in zip(chosen, groups, strict=True):
            if matched is None:
                continue
            file_name = images[matched[0].image_id]["file_name"]
            try:
                example, size = draw(*matched, str(file_name), read_image((image_dir or Path()) / file_name))
            except (OSError, ValueError, TypeError):
                result.unreadable.append(str((image_dir or Path()) / file_name))
                continue
            if used + size > max_bytes:
                result.left_out += 1
            else:
                used += size
                into.append(example)


def _draw_truth(pixels: np.ndarray, annotations: dict[str, Any], objects: Sequence[int], missed: Sequence[int]) -> str:
    """Return a data URI of annotated objects; what is missed has that before its class's name."""
    index, rows = CocoIndex(annotations), [annotations["annotations"][a] for a in (*objects, *missed)]
    marks = [""] * len(objects) + ["missed: "] * len(missed)
    return _drawing(pixels, index, rows, [mark + index.name_of(row) for mark, row in zip(marks, rows, strict=True)])


def _draw_found(
    pixels: np.ndarray, annotations: dict[str, Any], detections: Sequence[dict[str, Any]], image: ImageErrors
) -> str:
    """Return a data URI of the detections; what is wrong has that before its class's name."""
    index = CocoIndex(annotations)
    found = [("", detections[d]) for _, d in image.found] + [("wrong: ", detections[d]) for _, d in image.confused]
    found += [("false: ", detections[d]) for d in image.false]
    texts = [f"{mark}{index.name_of(row)} {100 * row['score']:.0f}%" for mark, row in found]
    return _drawing(pixels, index, [row for _, row in found], texts)


def _drawing(pixels: np.ndarray, index: CocoIndex, rows: Sequence[Any], texts: Sequence[str]) -> str:
    boxes, labels = xyxy_boxes(rows), index.labels_of(rows)
    image = draw_boxes(pixels, boxes, labels, texts, num_classes=len(index.names), max_side=_MAX_SIDE)
    done, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise ValueError("a drawing cannot be encoded")
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
