"""Boxes with labels that can be read, and contact sheets. All images are (H, W, 3) uint8 BGR."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache, lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import written_whole
from ..formats.drawn_names import FONT, drawable

ON_SHEET = 390  # longest side of a pair's images, so that two pairs in a row of a sheet are not reduced again
_MIN_SIDE, _MOST_ENLARGED = 320, 1600  # the shorter side is enlarged to the first, the longer to the second at most
_GAP = 8  # white pixels between images
_SHEET_WIDTH = 1600  # pixels, at most
_BAR = 24  # height of a title
_MARGIN = 3  # beside a label's text

Colour = tuple[int, int, int]


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: Sequence[int] | np.ndarray,
    texts: Sequence[str],
    *,
    num_classes: int,
    max_side: int | None = None,
) -> np.ndarray:
    """Draw boxes and their labels, the first on top.

    Args:
        image: (H, W, 3) uint8 BGR.
        boxes: (D, 4) XYXY in its pixels.
        classes: (D,) labels, each drawn in a colour of its own.
        texts: one for each box; "" for none.
        max_side: of the drawing, in pixels; larger images are reduced before their labels are drawn.

    Returns:
        A drawing; of small images enlarged, to a shorter side of 320 pixels, so that the labels can be read.
    """
    base, scale = _resized(image, max_side)
    drawn = base.copy()
    height, width = drawn.shape[:2]
    line, size = min(max(2, round(min(height, width) / 250)), 5), min(max(11, round(min(height, width) / 32)), 26)
    corners = np.nan_to_num(np.asarray(boxes, dtype=np.float64).reshape(-1, 4)) * np.tile(scale, 2)
    corners = np.clip(np.round(corners), 0, np.tile((width, height), 2) - 1).astype(int)
    colours = [class_colour(int(label), num_classes) for label in classes]
    texts = [drawable(text, int(label)) for text, label in zip(texts, classes, strict=True)]
    labels = [(i, _label(text, size, width)) for i, text in enumerate(texts) if text]
    sizes = np.array([label.shape[::-1] for _, label in labels], int).reshape(-1, 2)
    places = _place(corners[[i for i, _ in labels]], sizes, (width, height)).tolist()
    for (x0, y0, x1, y1), colour in reversed(list(zip(corners.tolist(), colours, strict=True))):
        x1, y1 = max(x0, x1), max(y0, y1)
        for i in range(min(line, (x1 - x0) // 2 + 1, (y1 - y0) // 2 + 1)):
            cv2.rectangle(drawn, (x0 + i, y0 + i), (x1 - i, y1 - i), colour[::-1])
    for (i, label), (x0, y0, _, _) in reversed(list(zip(labels, places, strict=True))):
        is_light = np.dot(colours[i], (0.299, 0.587, 0.114)) > 110
        _write(drawn[y0:, x0:], label, (0, 0, 0) if is_light else (255, 255, 255), colours[i])
    return drawn


def titled(image: np.ndarray, title: str) -> np.ndarray:
    """Put a white bar with a title above the image."""
    bar = np.full((_BAR, image.shape[1], 3), 255, np.uint8)
    _write(bar[2:, 3:], _label(title, 14, image.shape[1] - 3), (0, 0, 0), (255, 255, 255))
    return np.concatenate([bar, image])


def beside(*images: np.ndarray) -> np.ndarray:
    """Put images from left to right on white, tops aligned."""
    return _on_white([list(images)])


def draw_pair(
    image: np.ndarray,
    truth: tuple[np.ndarray, Sequence[int] | np.ndarray],
    found: tuple[np.ndarray, Sequence[int] | np.ndarray, Sequence[float]],
    names: Sequence[str],
    *,
    max_side: int | None = None,
) -> np.ndarray:
    """Draw ground truth and detections of an image beside each other.

    Args:
        truth: boxes (G, 4) XYXY and labels (G,).
        found: boxes (D, 4) XYXY, labels (D,) and scores (D,), best first.
        names: of the labels 0..K-1.
    """
    draw = partial(draw_boxes, image, num_classes=len(names), max_side=max_side)
    boxes, labels = truth
    left = draw(boxes, labels, [names[i] for i in labels])
    boxes, labels, scores = found
    right = draw(boxes, labels, [f"{names[i]} {100 * score:.0f}%" for i, score in zip(labels, scores, strict=True)])
    return beside(titled(left, "ground truth"), titled(right, "detections"))


def sheet(images: Sequence[np.ndarray], columns: int = 2) -> np.ndarray:
    """Make a contact sheet, row by row; where it would exceed 1,600 pixels, all images are reduced alike."""
    columns = max(1, min(columns, len(images)))
    widest = max((image.shape[1] for image in images), default=1)
    scale = min(1.0, (_SHEET_WIDTH - (columns - 1) * _GAP) / (columns * widest))
    if scale < 1:
        sizes = [(max(1, int(p.shape[1] * scale)), max(1, int(p.shape[0] * scale))) for p in images]
        images = [cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p, size in zip(images, sizes, strict=True)]
    return _on_white([list(images[i : i + columns]) for i in range(0, len(images), columns)])


def write_image(path: Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 BGR in the format of the path's suffix, whole or not at all.

    OpenCV only encodes: it cannot write names that are not UTF-8.

    Raises:
        OSError: it cannot be written, or not in that format.
    """
    try:
        done, coded = cv2.imencode(path.suffix.lower(), image)
    except cv2.error as error:
        raise OSError(f"OpenCV cannot make a {path.suffix} of it: {error.err}") from error
    if not done:
        raise OSError(f"OpenCV cannot make a {path.suffix} of it")
    with written_whole(path) as partial:
        partial.write_bytes(coded.tobytes())


@cache
def class_colour(label: int, num_classes: int) -> Colour:
    """Return a class's RGB: hues evenly around the circle; with many classes every other one darker."""
    value = 1.0 if num_classes <= 12 or label % 2 == 0 else 0.7
    red, green, blue = colorsys.hsv_to_rgb(label / max(num_classes, 1) % 1, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _resized(image: np.ndarray, max_side: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the image at the drawing's size, and the factors of x and y."""
    height, width = image.shape[:2]
    short, long = min(height, width), max(height, width)
    scale = max(1.0, min(_MIN_SIDE / short, _MOST_ENLARGED / long))
    if max_side is not None:
        scale = min(scale, max_side / long)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size == (width, height):
        return image, np.ones(2)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=how), np.array(size) / (width, height)


def _place(boxes: np.ndarray, sizes: np.ndarray, bounds: tuple[int, int]) -> np.ndarray:
    """Place labels in the image, the first first, so that each covers little of those before it and of its own box.

    Args:
        boxes: (D, 4) XYXY of whole pixels.
        sizes: (D, 2) width and height of the labels.
        bounds: width and height of the image.

    Returns:
        (D, 4) XYXY.
    """
    x0, y0, x1, y1 = boxes.T
    width, height = sizes.T
    right, above, below = x1 + 1 - width, y0 - height, y1 + 1
    places = [(x0, above), (x0, below), (right, above), (right, below), (x1 + 1, y0), (x0 - width, y0)]  # outside
    places += [(x0, y0), (right, y0), (x0, y1 + 1 - height)]
    corners = np.moveaxis(np.array(places), 2, 0)  # (D, 9, 2)
    corners = np.maximum(0, np.minimum(corners, (bounds - sizes)[:, None]))
    candidates = np.concatenate([corners, corners + sizes[:, None]], axis=2)  # (D, 9, 4)
    own = 0.25 * _overlap(candidates, (boxes + np.array((0, 0, 1, 1)))[:, None])  # (D, 9)
    placed = np.empty_like(boxes)
    for i, labels in enumerate(candidates):
        placed[i] = labels[np.argmin(_overlap(labels[:, None], placed[:i]).sum(axis=1) + own[i])]
    return placed


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Count the pixels that both cover: (..., 4) XYXY, broadcast to (...)."""
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    counts: np.ndarray = np.maximum(0, width) * np.maximum(0, height)
    return counts


def _label(text: str, size: int, room: int) -> np.ndarray:
    """Return how much of each pixel of a label (H, W) the text covers, of 255; shortened to fit if necessary."""
    # A line break in a class name would draw outside the label; of a very long one no more is rendered than could fit.
    text = " ".join(text.split())[:room]
    # The last word is often a score: apart, so that the name is rendered once. Others may depend on what is before.
    name, _, last = text.rpartition(" ")
    words = [_rendered(word, size) for word in ((name, last) if name and last.isascii() else (text,))]
    space = _rendered(" ", size).shape[1] - 4 * _MARGIN  # less its own margins and those of the words beside it
    width = sum(word.shape[1] for word in words) + space * (len(words) - 1)
    if width > room:
        font = _font(size)
        while len(text) > 1 and font.getlength(text + "…") + 2 * _MARGIN > room:
            text = text[:-1]
        return _rendered(text + "…", size)
    label, x = np.zeros((words[0].shape[0], width), np.uint8), 0
    for word in words:
        part = label[:, x : x + word.shape[1]]
        np.maximum(part, word, out=part)
        x += word.shape[1] + space
    return label


@lru_cache(maxsize=4096)
def _rendered(text: str, size: int) -> np.ndarray:
    """Return how much of each pixel a text with its margins covers, of 255: (H, W), not to be written to."""
    font = _font(size)
    shape = int(np.ceil(font.getlength(text))) + 2 * _MARGIN, sum(font.getmetrics()) + 2
    image = Image.new("L", shape)
    ImageDraw.Draw(image).text((_MARGIN, 1), text, fill=255, font=font)
    return np.asarray(image)


def _write(image: np.ndarray, label: np.ndarray, ink: Colour, ground: Colour) -> None:
    """Write a label into the image's upper left, as far as it fits; colours are RGB."""
    height, width = image.shape[:2]
    covered = label[:height, :width]
    image[: covered.shape[0], : covered.shape[1]] = _blends(ink, ground).take(covered, axis=0)


@lru_cache(maxsize=256)
def _blends(ink: Colour, ground: Colour) -> np.ndarray:
    """Return the BGR of a pixel for how much of it, of 255, is covered by ink: (256, 3) uint8."""
    low, high = (np.array(colour[::-1]) for colour in (ground, ink))
    return np.round(low + np.arange(256)[:, None] / 255 * (high - low)).astype(np.uint8)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT, size)


def _on_white(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Put rows of images on white, columns aligned."""
    if not rows:
        return np.full((_BAR, _MIN_SIDE, 3), 255, np.uint8)
    column_width = max(image.shape[1] for row in rows for image in row)
    widths = [p.shape[1] if len(rows) == 1 else column_width for p in rows[0]]
    heights = [max(image.shape[0] for image in row) for row in rows]
    shape = (sum(heights) + _GAP * (len(heights) - 1), sum(widths) + _GAP * (len(widths) - 1), 3)
    canvas = np.full(shape, 255, np.uint8)
    y = 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for image, width in zip(row, widths, strict=False):  # the last row may be short
            canvas[y : y + image.shape[0], x : x + image.shape[1]] = image
            x += width + _GAP
        y += height + _GAP
    return canvas
