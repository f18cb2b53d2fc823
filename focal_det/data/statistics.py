"""Counts of a detection data set, its objects as arrays, and the hash of its content."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..formats.coco_index import CocoIndex, by_image, image_sizes, xywh_boxes, xyxy_boxes
from .tiling import Tiles, shown_in, tile_corners

# COCO's bounds of the area, in square pixels of the image as it is, where medium and large objects begin.
SIZE_LIMITS = (32**2, 96**2)
T = TypeVar("T")


class Objects(NamedTuple):
    """The objects of a set that are trained on: no crowds, no boxes without area.

    boxes: (N, 4) XYXY float64, clipped to the image, in its pixels.
    sizes: (N, 2) float64, width and height of each one's image.
    classes: (N,) int64, labels 0..K-1 in the order of the category ids.
    areas: (N,) float64, as the file has them.
    """

    boxes: np.ndarray
    sizes: np.ndarray
    classes: np.ndarray
    areas: np.ndarray

    @classmethod
    def none(cls) -> Objects:
        """Return the objects of no set."""
        return cls(np.zeros((0, 4)), np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros(0))

    @property
    def sides(self) -> np.ndarray:
        """The square root of each one's width times height, (N,), in pixels."""
        return np.sqrt((self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1))

    @property
    def aspect_ratios(self) -> np.ndarray:
        """Width over height, (N,)."""
        width, height = (self.boxes[:, 2:] - self.boxes[:, :2]).T
        return width / height


class AnchorFit(NamedTuple):
    """The objects in the network's input, and how anchors fit them.

    sides: (N,) the square root of each one's area, in px.
    ious: (N,) the highest IoU of each one with any anchor.
    thresholds: MODEL.RETINANET.IOU_THRESHOLDS, of background and objects.
    size: of the images there, as text.
    """

    sides: np.ndarray
    ious: np.ndarray
    thresholds: tuple[float, float]
    size: str


class SetStatistics(NamedTuple):
    """Counts of a set: its images, those with an object, the annotations that are crowds, and the others.

    tiles, tiles_with_objects: of its images that need more than one.
    class_images: (K,) the number of images that have an object of each class.
    """

    images: int
    with_objects: int
    crowds: int
    class_names: list[str]
    category_ids: list[int]
    objects: Objects
    tiles: int = 0
    tiles_with_objects: int = 0
    class_images: Sequence[int] = ()

    @property
    def instances(self) -> np.ndarray:
        """The number of objects of each class, (K,)."""
        return np.bincount(self.objects.classes, minlength=len(self.class_names))


def statistics(coco: Mapping[str, Any], tiles: Tiles | None = None) -> SetStatistics:
    """Count what a COCO file holds that has been checked, and if it is cut into tiles, those."""
    index = CocoIndex(coco)
    sizes = image_sizes(coco, index.objects)
    boxes = np.clip(xyxy_boxes(index.objects), 0, np.tile(sizes, 2))
    kept: np.ndarray = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    classes = index.labels_of(index.objects)
    areas = np.array([a.get("area", 0) for a in index.objects], np.float64)
    in_tiles = _tile_counts(coco, index.objects, tiles) if tiles and tiles.size else (0, 0)
    return SetStatistics(
        images=len(coco["images"]),
        with_objects=len({a["image_id"] for a in itertools.compress(index.objects, kept)}),
        crowds=len(coco["annotations"]) - len(index.objects),
        class_names=index.names,
        category_ids=index.category_ids,
        objects=Objects(boxes[kept], sizes[kept], classes[kept], areas[kept]),
        tiles=in_tiles[0],
        tiles_with_objects=in_tiles[1],
        class_images=_images_by_class([a["image_id"] for a in index.objects], classes, kept, len(index.names)),
    )


def _images_by_class(image_ids: list[int], classes: np.ndarray, kept: np.ndarray, num_classes: int) -> list[int]:
    _, places = np.unique(image_ids, return_inverse=True)
    pairs = np.unique(places.reshape(-1)[kept] * num_classes + classes[kept])
    return np.bincount(pairs % max(1, num_classes), minlength=num_classes).tolist()


def _tile_counts(coco: Mapping[str, Any], objects: Sequence[Mapping[str, Any]], tiles: Tiles) -> tuple[int, int]:
    """Count the tiles of the images that need more than one, and those of them that show an object."""
    number, with_objects, of_image = 0, 0, by_image(objects)
    for image in coco["images"]:
        width, height = image["width"], image["height"]
        corners = tile_corners(height, width, tiles)
        if len(corners) > 1:
            boxes = np.clip(xyxy_boxes(of_image[image["id"]]), 0, [width, height, width, height])
            number += len(corners)
            with_objects += sum(len(shown.objects) > 0 for shown in shown_in(boxes, corners))
    return number, with_objects


def joined(sets: Sequence[Objects]) -> Objects:
    """Join the objects of several sets of the same classes."""
    return Objects(*(np.concatenate(parts) for parts in zip(*sets, strict=True)))


def sample(objects: Objects, number: int) -> Objects:
    """Return at most so many of them, evenly through the set."""
    step = max(1, -(-len(objects.boxes) // number))
    return Objects(*(part[::step] for part in objects))


def iou_text(iou: float) -> str:
    """Return an IoU as text, such as ".5"."""
    return f"{iou:g}".removeprefix("0")


def fingerprint(coco: Mapping[str, Any]) -> str:
    """Hash, by SHA-256, what a training reads of a checked COCO file, in the order in which it reads it.

    It covers the images' names and sizes, and each object's box, class and whether it is a crowd; not the pixels, the
    names of the classes, or where the files are. Two seconds for COCO's 860,000 objects.
    """
    images = sorted(coco["images"], key=lambda image: image["id"])  # as Detectron2 reads them
    position = {image["id"]: number for number, image in enumerate(images)}
    labels, annotations = CocoIndex(coco).labels, coco["annotations"]
    objects = np.array(
        [(position[a["image_id"]], labels[a["category_id"]], bool(a.get("iscrowd"))) for a in annotations], "<i8"
    ).reshape(-1, 3)
    boxes = xywh_boxes(annotations).astype("<f8")
    order = np.argsort(objects[:, 0], kind="stable")
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image['file_name']}\n{image['width']} {image['height']}\n".encode(errors="surrogatepass"))
    digest.update(objects[order].tobytes())
    digest.update(boxes[order].tobytes())
    return digest.hexdigest()


def evenly_spread(records: Sequence[T], count: int) -> list[T]:
    """Return at most `count` of them, the first among them, at equal distances."""
    count = min(count, len(records))
    return [records[i * len(records) // count] for i in range(count)]
