"""Ground truth beside detections, for the images where the detector does worst and best."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ..evaluation.matching import ImageErrors, Matching
from ..formats.coco_index import CocoIndex, xyxy_boxes
from ..inference.drawing import draw_boxes
from ..inference.images import read_image

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
    images = {image["id"]: image for image in annotations["images"]}
    worst, best = choose(matching.images, count)
    result, used = Examples(), 0
    for pair in itertools.zip_longest(worst, best):
        for matched, into in zip(pair, (result.worst, result.best), strict=True):
            if matched is None:
                continue
            file_name = images[matched.image_id]["file_name"]
            try:
                drawn = _draw(matched, read_image((image_dir or Path()) / file_name), annotations, detections)
            except (OSError, ValueError, TypeError):
                result.unreadable.append(str((image_dir or Path()) / file_name))
                continue
            size = sum(map(len, drawn))
            if used + size > max_bytes:
                result.left_out += 1
            else:
                used += size
                into.append(Example(str(file_name), *drawn, matched))
    return result


def _draw(
    image: ImageErrors, pixels: np.ndarray, annotations: dict[str, Any], detections: Sequence[dict[str, Any]]
) -> tuple[str, str]:
    """Data URIs of ground truth and detections. What is wrong stands before a class's name."""
    index, objects = CocoIndex(annotations), annotations["annotations"]
    truth = [("", objects[a]) for a, _ in (*image.found, *image.confused)]
    truth += [("missed: ", objects[a]) for a in image.missed]
    found = [("", detections[d]) for _, d in image.found] + [("wrong: ", detections[d]) for _, d in image.confused]
    found += [("false: ", detections[d]) for d in image.false]
    texts = [mark + index.name_of(row) for mark, row in truth]
    found_texts = [f"{mark}{index.name_of(row)} {100 * row['score']:.0f}%" for mark, row in found]
    rows, found_rows = [row for _, row in truth], [row for _, row in found]
    return _drawing(pixels, index, rows, texts), _drawing(pixels, index, found_rows, found_texts)


def _drawing(pixels: np.ndarray, index: CocoIndex, rows: Sequence[Any], texts: Sequence[str]) -> str:
    boxes, labels = xyxy_boxes(rows), index.labels_of(rows)
    image = draw_boxes(pixels, boxes, labels, texts, num_classes=len(index.names), max_side=_MAX_SIDE)
    done, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise ValueError("a drawing cannot be encoded")
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
