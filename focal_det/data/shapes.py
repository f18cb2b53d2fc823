"""A data set that needs no download: images of coloured shapes among clutter, in COCO format.

Each image is drawn from (split, index) alone, so any number of them is the same on every machine, and the
training and validation splits share none. Objects are disks, boxes and triangles, squeezed and turned a little;
clutter is strokes, crosses and specks in the same colours, which belong to no class. There are two kinds of scenes:
the plain one, with objects from a tenth to half of the image's side, and the rare one, made for the imbalance that
the paper is about: one to three small and thin objects among much clutter, some of it in their own outlines.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

CLASSES = ("disk", "box", "triangle")
_SPLITS = ("train", "val")
_NAME = re.compile(r"shapes_(?P<split>train|val)_(?P<images>[1-9]\d{0,6})_(?P<side>[1-9]\d{1,3})px(?P<rare>_rare)?")
# Raise it whenever the images change, so that a set of older ones is not taken for a new one.
_VERSION = 1
_MIN_SIDE, _MAX_SIDE = 32, 2048
_MAX_TURN = np.pi / 8  # either way: triangles stay upright, boxes stay boxes and no diamonds
_MAX_OVERLAP = 0.2  # of the smaller box's area: more would hide one object behind another


class ShapesSpec(NamedTuple):
    """The parts of a data set's name, "shapes_<split>_<count>_<side>px[_rare]", as in shapes_train_2000_128px."""

    split: str
    images: int
    side: int
    rare: bool = False


class _Scene(NamedTuple):
    """How many things of each kind an image holds, as ranges without their end; sizes as fractions of its side."""

    clutter: tuple[int, int]
    outlines: tuple[int, int] | None
    objects: tuple[int, int]
    smallest: float
    largest_to_smallest: float
    thinnest: float  # shorter side over longer, before the turn


_PLAIN = _Scene((2, 7), None, (1, 9), smallest=0.1, largest_to_smallest=5, thinnest=0.6)
_RARE = _Scene((4, 10), (3, 9), (1, 4), smallest=0.06, largest_to_smallest=4, thinnest=0.35)


def parse_name(name: str) -> ShapesSpec | None:
    """Parse a data set's name; None if it does not begin with "shapes_".

    Raises:
        ValueError: a name of shapes that does not follow the pattern, or a side outside 32..2048.
    """
    if not name.startswith("shapes_"):
        return None
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f'data set "{name}": generated shapes are named shapes_<train|val>_<images>_<side>px, '
            "as in shapes_train_2000_128px, with _rare appended for few and small objects"
        )
    spec = ShapesSpec(match["split"], int(match["images"]), int(match["side"]), match["rare"] is not None)
    if not _MIN_SIDE <= spec.side <= _MAX_SIDE:
        raise ValueError(f'data set "{name}": the side must be {_MIN_SIDE}..{_MAX_SIDE} px, not {spec.side}')
    return spec


def shapes_files(name: str, root: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Return the annotation file and the image folder of a set under the root of all data sets."""
    folder = Path(root) / "shapes" / f"v{_VERSION}" / name
    return folder / "annotations.json", folder / "images"


def make_shapes(name: str, root: str | os.PathLike[str]) -> None:
    """Draw the set of that name under `root` unless it exists.

    It is made in a folder beside it and renamed at the end, so a run that is stopped leaves no half-drawn set.

    Raises:
        ValueError: not the name of generated shapes.
        OSError: the folder cannot be written.
    """
    spec = parse_name(name)
    if spec is None:
        raise ValueError(f'"{name}" does not name generated shapes')
    annotation_file, _ = shapes_files(name, root)
    folder = annotation_file.parent
    if annotation_file.is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder.parent))
    try:
        (partial / "images").mkdir()
        coco = _write_images(spec, partial / "images", name)
        (partial / "annotations.json").write_text(json.dumps(coco))
        try:
            partial.rename(folder)
        except OSError:
            if not annotation_file.is_file():  # else another process was first, with the same images
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_images(spec: ShapesSpec, folder: Path, name: str) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in tqdm(range(spec.images), desc=f"drawing {name}", unit="image", disable=None):
        image, boxes, classes = draw_image(spec.split, index, spec.side, rare=spec.rare)
        file_name = f"{index:06d}.png"
        if not cv2.imwrite(str(folder / file_name), image):
            raise OSError(f"{folder / file_name} cannot be written")
        images.append({"id": index + 1, "file_name": file_name, "width": spec.side, "height": spec.side})
        for (x0, y0, x1, y1), label in zip(boxes.tolist(), classes.tolist(), strict=True):
            row = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": label + 1}
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            annotations.append({**row, **box, "iscrowd": 0})
    return {
        "info": {"description": f"generated shapes: {spec.split}, {spec.side} px"},
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        "images": images,
        "annotations": annotations,
    }


def draw_image(split: str, index: int, side: int, *, rare: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one image.

    Args:
        index: of the image in its split, >= 0.
        side: of the square image, in pixels.
        rare: few, small and thin objects among their own outlines.

    Returns:
        image (side, side, 3) uint8 BGR, boxes (G, 4) XYXY in pixels, classes (G,) indices into CLASSES; G >= 1.
    """
    scene = _RARE if rare else _PLAIN
    rng = np.random.default_rng([_SPLITS.index(split), index, *([1] if rare else [])])
    image = _background(rng, side)
    for _ in range(rng.integers(*scene.clutter)):
        _draw_clutter(rng, image)
    for _ in range(rng.integers(*scene.outlines) if scene.outlines else 0):
        _, corners, size = _place(rng, scene, side)
        cv2.polylines(image, [corners], isClosed=True, color=_colour(rng), thickness=1 if size < side / 8 else 2)
    boxes: list[np.ndarray] = []
    classes: list[int] = []
    wanted = int(rng.integers(*scene.objects))
    for _ in range(4 * wanted):
        if len(boxes) == wanted:
            break
        label, corners, _ = _place(rng, scene, side)
        box = np.concatenate([corners.min(axis=0), corners.max(axis=0) + 1])  # pixels are unit squares
        if all(_overlap(box, other) <= _MAX_OVERLAP for other in boxes):
            cv2.fillPoly(image, [corners], _colour(rng))
            boxes.append(box)
            classes.append(label)
    noise = rng.normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), np.array(boxes), np.array(classes)


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw a smooth patchwork of muted colours."""
    coarse = rng.integers(60, 160, size=(4, 4, 3)).astype(np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def _draw_clutter(rng: np.random.Generator, image: np.ndarray) -> None:
    side = image.shape[0]
    colour = _colour(rng)
    kind = rng.integers(3)
    centre = rng.uniform(0, side, 2)
    reach = side * rng.uniform(0.05, 0.25)
    if kind == 0:  # a stroke
        end = centre + rng.normal(0, reach * 2, 2)
        cv2.line(image, _point(centre), _point(end), colour, int(rng.integers(1, 4)))
    elif kind == 1:  # a cross
        turn = rng.uniform(0, np.pi)
        for angle in (turn, turn + np.pi / 2):
            arm = reach * np.array([np.cos(angle), np.sin(angle)])
            cv2.line(image, _point(centre - arm), _point(centre + arm), colour, max(1, side // 64))
    else:  # specks
        for speck in rng.normal(centre, reach, size=(12, 2)):
            cv2.circle(image, _point(speck), max(1, side // 100), colour, -1)


def _place(rng: np.random.Generator, scene: _Scene, side: int) -> tuple[int, np.ndarray, float]:
    """Place a shape in the image; return its label, its corner points (P, 2) int32, and its size in pixels."""
    label = int(rng.integers(len(CLASSES)))
    size = side * scene.smallest * scene.largest_to_smallest ** rng.random()  # log-uniform: small ones as often
    outline = _outline(rng, label, size, scene.thinnest)
    outline += rng.uniform(-outline.min(axis=0) + 1, side - 2 - outline.max(axis=0))
    return label, np.round(outline).astype(np.int32), size


def _outline(rng: np.random.Generator, label: int, size: float, thinnest: float) -> np.ndarray:
    """Return corner points (P, 2) around (0, 0), on a circle of diameter `size` that is squeezed and turned."""
    squeeze = np.array([1.0, rng.uniform(thinnest, 1.0)])
    if CLASSES[label] == "disk":
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    elif CLASSES[label] == "box":
        angles = np.pi / 4 + np.arange(4) * np.pi / 2
    else:
        angles = -np.pi / 2 + np.arange(3) * 2 * np.pi / 3  # a corner up
    points = size / 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1) * squeeze
    turn = rng.uniform(-_MAX_TURN, _MAX_TURN)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return points @ rotation.T


def _overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Return the shared area as a fraction of the smaller box's."""
    shared = np.clip(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0, None).prod()
    return float(shared / min((box[2:] - box[:2]).prod(), (other[2:] - other[:2]).prod()))


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """Choose a colour that differs from the background's middle greys in at least one channel."""
    colour = rng.integers(0, 256, 3)
    colour[rng.integers(3)] = rng.choice([rng.integers(0, 40), rng.integers(215, 256)])
    b, g, r = (int(c) for c in colour)
    return b, g, r


def _point(xy: np.ndarray) -> tuple[int, int]:
    return round(float(xy[0])), round(float(xy[1]))
