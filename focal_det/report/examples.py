"""Ground truth beside detections, for the pictures where the detector does worst and best."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ..evaluation.matching import Matching, PictureErrors
from ..inference.drawing import draw_boxes
from ..inference.pictures import read_picture

_MAX_SIDE = 480  # px of a drawing
_JPEG_QUALITY = 82


class Example(NamedTuple):
    """A picture with its two drawings as data URIs, and what was counted in it."""

    name: str
    truth: str
    detections: str
    found: int
    confused: int
    missed: int
    false: int


class Examples(NamedTuple):
    """The worst and the best; `unreadable` names pictures that would be among them, `left_out` counts those for whose
    size the page has no room."""

    worst: list[Example]
    best: list[Example]
    unreadable: list[str]
    left_out: int


def choose(pictures: Sequence[PictureErrors], count: int) -> tuple[list[PictureErrors], list[PictureErrors]]:
    """The `count` worst, with errors, and the `count` best, without any picture twice or without objects.

    By F1; of equals the worst have more errors, the best more objects.
    """
    worst = sorted((p for p in pictures if p.num_errors), key=lambda p: (p.quality, -p.num_errors))[:count]
    taken = {p.image_id for p in worst}
    good = [p for p in pictures if p.found and p.image_id not in taken]
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
    """Draw the worst and the best pictures, in turns, until `max_bytes` of data URIs are reached."""
    images = {image["id"]: image for image in annotations["images"]}
    worst, best = choose(matching.pictures, count)
    result = Examples([], [], [], 0)
    used = left_out = 0
    for pair in itertools.zip_longest(worst, best):
        for picture, into in zip(pair, (result.worst, result.best), strict=True):
            if picture is None:
                continue
            file_name = images[picture.image_id]["file_name"]
            try:
                drawn = _draw(picture, read_picture((image_dir or Path()) / file_name), annotations, detections)
            except (OSError, ValueError, TypeError):
                result.unreadable.append(str((image_dir or Path()) / file_name))
                continue
            size = sum(map(len, drawn))
            if used + size > max_bytes:
                left_out += 1
                continue
            used += size
            counts = (len(part) for part in (picture.found, picture.confused, picture.missed, picture.false))
            into.append(Example(str(file_name), *drawn, *counts))
    return result._replace(left_out=left_out)


def _draw(
    picture: PictureErrors, pixels: np.ndarray, annotations: dict[str, Any], detections: Sequence[dict[str, Any]]
) -> tuple[str, str]:
    """Data URIs of ground truth and detections. What is wrong stands before a class's name."""
    categories = sorted(annotations["categories"], key=lambda c: c["id"])
    labels = {c["id"]: k for k, c in enumerate(categories)}
    names = {c["id"]: c["name"] for c in categories}
    rows = annotations["annotations"]
    objects = [("", a) for a, _ in picture.found] + [("", a) for a, _ in picture.confused]
    objects += [("missed: ", a) for a in picture.missed]
    truth = [(rows[a], f"{what}{names[rows[a]['category_id']]}") for what, a in objects]
    found = [("", d) for _, d in picture.found] + [("wrong: ", d) for _, d in picture.confused]
    found += [("false: ", d) for d in picture.false]
    guess = [
        (detections[d], f"{what}{names[detections[d]['category_id']]} {100 * detections[d]['score']:.0f}%")
        for what, d in found
    ]
    uris = []
    for part in (truth, guess):
        boxes = np.array([row["bbox"] for row, _ in part], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = [labels[row["category_id"]] for row, _ in part]
        texts = [text for _, text in part]
        drawing = draw_boxes(pixels, boxes, classes, texts, num_classes=len(labels), max_side=_MAX_SIDE)
        uris.append(_data_uri(drawing))
    return uris[0], uris[1]


def _data_uri(picture: np.ndarray) -> str:
    done, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise ValueError("a drawing cannot be encoded")
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
