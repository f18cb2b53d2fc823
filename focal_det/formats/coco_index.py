"""Look-ups in the contents of a COCO file, each in one place: labels, images, annotations by image, boxes as arrays.

A file's boxes are [x, y, width, height] in pixels of the image. Labels 0..K-1 are in the order of the category ids.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

Row = Mapping[str, Any]  # an annotation, or a detection in COCO's results format


class CocoIndex:
    """The classes and images of a COCO file that has been checked, and its objects.

    Attributes:
        category_ids, names: of the labels 0..K-1.
        labels, images: by id.
        objects: the annotations that are not crowds.
    """

    def __init__(self, coco: Mapping[str, Any]) -> None:
        categories = sorted(coco["categories"], key=itemgetter("id"))
        self.category_ids: list[int] = [category["id"] for category in categories]
        self.names: list[str] = [category["name"] for category in categories]
        self.labels = {category_id: label for label, category_id in enumerate(self.category_ids)}
        self.images: dict[int, dict[str, Any]] = {image["id"]: image for image in coco["images"]}
        self.objects: list[dict[str, Any]] = [a for a in coco["annotations"] if not a.get("iscrowd")]

    def labels_of(self, rows: Iterable[Row]) -> np.ndarray:
        """Return the labels (N,) int64 of annotations or detections."""
        return np.array([self.labels[row["category_id"]] for row in rows], np.int64)

    def name_of(self, row: Row) -> str:
        """Return the class name of an annotation or detection."""
        return self.names[self.labels[row["category_id"]]]


def by_image(rows: Iterable[Row]) -> defaultdict[int, list[Any]]:
    """Group annotations or detections by image id, in their order."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["image_id"]].append(row)
    return groups


def image_sizes(coco: Mapping[str, Any], rows: Iterable[Row]) -> np.ndarray:
    """Return width and height of each row's image, (N, 2) float64."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    return np.array([sizes[row["image_id"]] for row in rows], np.float64).reshape(-1, 2)


def xywh_boxes(rows: Sequence[Row]) -> np.ndarray:
    """Return the boxes (N, 4) float64 as the file has them: x, y, width, height."""
    return np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)


def xyxy_boxes(rows: Sequence[Row]) -> np.ndarray:
    """Return the boxes (N, 4) float64 as corners: x1, y1, x2, y2."""
    boxes = xywh_boxes(rows)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def area_of(annotation: Row) -> float:
    """Return the area of an annotation or a detection in px^2: the one it states, else its box's."""
    area = annotation.get("area")
    return float(annotation["bbox"][2] * annotation["bbox"][3] if area is None else area)
