"""What a detection data set holds: pictures, objects by class, and the objects as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# COCO's bounds of the area, in square pixels of the picture as it is, where medium and large objects begin.
SIZE_LIMITS = (32**2, 96**2)


class Objects(NamedTuple):
    """The objects of a set that are trained on: no crowds, no boxes without area.

    boxes: (N, 4) XYXY float64, clipped to the picture, in its pixels.
    sizes: (N, 2) float64, width and height of each one's picture.
    classes: (N,) int64, labels 0..K-1 in the order of the category ids.
    areas: (N,) float64, as the file has them.
    """

    boxes: np.ndarray
    sizes: np.ndarray
    classes: np.ndarray
    areas: np.ndarray

    @classmethod
    def none(cls) -> Objects:
        """Of no set."""
        return cls(np.zeros((0, 4)), np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros(0))


class SetStatistics(NamedTuple):
    """pictures: all; with_objects: those with an object that is no crowd; crowds: how many; objects: the others."""

    pictures: int
    with_objects: int
    crowds: int
    class_names: list[str]
    category_ids: list[int]
    objects: Objects

    @property
    def instances(self) -> np.ndarray:
        """Objects of each class, (K,)."""
        return np.bincount(self.objects.classes, minlength=len(self.class_names))


def statistics(coco: Mapping[str, Any]) -> SetStatistics:
    """Of the contents of a COCO detection file that is sound."""
    categories = sorted(coco["categories"], key=lambda c: c["id"])
    labels = {category["id"]: label for label, category in enumerate(categories)}
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    annotations = [a for a in coco["annotations"] if not a.get("iscrowd")]
    boxes = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    of_boxes = np.array([sizes[a["image_id"]] for a in annotations], np.float64).reshape(-1, 2)
    boxes = np.clip(boxes, 0, np.tile(of_boxes, 2))
    kept: np.ndarray = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    classes = np.array([labels[a["category_id"]] for a in annotations], np.int64)
    areas = np.array([a.get("area", 0) for a in annotations], np.float64)
    with_objects = {a["image_id"] for a, is_kept in zip(annotations, kept.tolist(), strict=True) if is_kept}
    return SetStatistics(
        pictures=len(coco["images"]),
        with_objects=len(with_objects),
        crowds=len(coco["annotations"]) - len(annotations),
        class_names=[category["name"] for category in categories],
        category_ids=[category["id"] for category in categories],
        objects=Objects(boxes[kept], of_boxes[kept], classes[kept], areas[kept]),
    )


def joined(sets: Sequence[Objects]) -> Objects:
    """The objects of several sets of the same classes."""
    return Objects(*(np.concatenate(parts) for parts in zip(*sets, strict=True)))


def sample(objects: Objects, number: int) -> Objects:
    """So many of them, evenly through the set, or all if there are no more."""
    step = max(1, -(-len(objects.boxes) // number))
    return Objects(*(part[::step] for part in objects))
