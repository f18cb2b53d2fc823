"""Boxes with labels that can be read, and contact sheets. All images are (H, W, 3) uint8 BGR."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import written_whole
from ..formats.drawn_names import FONT, drawable

ON_SHEET = 390  # longest side of a pair's images, so that two pairs in a row of a sheet are not reduced again
_MIN_SIDE, _MOST_ENLARGED = 320, 1600  # the shorter side is enlarged to the first, the longer to the second at most
_GAP = 8  # white pixels between images
_BAR = 24  # height of a title

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
    drawn = Image.fromarray(cv2.cvtColor(base, cv2.COLOR_BGR2RGB))
    canvas = ImageDraw.Draw(drawn)
    short = min(drawn.size)
    width, font = min(max(2, round(short / 250)), 5), _font(min(max(11, round(short / 32)), 26))
    corners = np.nan_to_num(np.asarray(boxes, dtype=np.float64).reshape(-1, 4)) * np.tile(scale, 2)
    corners = np.clip(np.round(corners), 0, np.tile(drawn.size, 2) - 1).astype(int)
    colours = [class_colour(int(label), num_classes) for label in classes]
    texts = [drawable(text, int(label)) for text, label in zip(texts, classes, strict=True)]
    labels = [(i, *_fitting(text, font, drawn.width)) for i, text in enumerate(texts) if text]
    sizes = np.array([size for _, _, size in labels], int).reshape(-1, 2)
    places = _place(corners[[i for i, _, _ in labels]], sizes, drawn.size).tolist()
    for (x0, y0, x1, y1), colour in reversed(list(zip(corners.tolist(), colours, strict=True))):
        canvas.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=width)
    for (i, text, _), (x0, y0, x1, y1) in reversed(list(zip(labels, places, strict=True))):
        colour = colours[i]
        canvas.rectangle((x0, y0, x1 - 1, y1 - 1), fill=colour)
        is_light = np.dot(colour, (0.299, 0.587, 0.114)) > 110
        canvas.text((x0 + 3, y0 + 1), text, fill="black" if is_light else "white", font=font)
    return cv2.cvtColor(np.asarray(drawn), cv2.COLOR_RGB2BGR)


def titled(image: np.ndarray, title: str) -> np.ndarray:
    """Put a white bar with a title above the image."""
    bar = Image.new("RGB", (image.shape[1], _BAR), "white")
    font = _font(14)
    ImageDraw.Draw(bar).text((6, 3), _fitting(title, font, bar.width)[0], fill="black", font=font)
    return np.concatenate([np.asarray(bar), image])


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


def sheet(images: Sequence[np.ndarray], columns: int = 2, max_width: int = 1600) -> np.ndarray:
    """Make a contact sheet, row by row; where it would exceed `max_width` pixels, all images are reduced alike."""
    columns = max(1, min(columns, len(images)))
    widest = max((image.shape[1] for image in images), default=1)
    scale = min(1.0, (max_width - (columns - 1) * _GAP) / (columns * widest))
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
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    counts: np.ndarray = np.maximum(0, sides).prod(axis=-1)
    return counts


def _fitting(text: str, font: ImageFont.FreeTypeFont, room: int) -> tuple[str, tuple[int, int]]:
    """Return the text, shortened to fit if necessary, and the size of its label, in pixels."""
    text = " ".join(text.split())  # a line break in a class name would draw outside the label
    height = sum(font.getmetrics()) + 2
    shown, length = text, font.getlength(text)
    while len(text) > 1 and length + 6 > room:
        text = text[:-1]
        shown, length = text + "…", font.getlength(text + "…")
    return shown, (int(np.ceil(length)) + 6, height)


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
