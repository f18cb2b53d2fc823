"""Annotations that are probably wrong: boxes of a pixel, boxes around the whole image, and twins of one object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import cut, some
from ..formats.coco_index import CocoIndex, image_sizes, xyxy_boxes

_TINY = 1.0  # px; the side of a box that a slip of the mouse makes
_COVERING = 0.95  # share of the image, from which on a box is probably the image's frame
_TWINS = 0.9  # IoU, from which on two boxes are probably of one object
# With IoU >= t, two boxes share at least t of what they cover together in x, and in y: so they begin at most
# (1 - t) / t of either's side apart.
_APART = (1 - _TWINS) / _TWINS
KINDS = {
    "tiny": f"boxes of at most {_TINY:g} px in width or height",
    "covering": f"boxes that cover at least {_COVERING:.0%} of their image",
    "twins": f"pairs of boxes with IoU >= {_TWINS:g}, probably of one object",
}


class Suspect(NamedTuple):
    """An annotation that is probably wrong, or two.

    kind: of `KINDS`.
    image: of the file's "images".
    rows: the annotations, one or, for twins, two.
    classes: their names.
    measure: the shorter side in px, the share of the image, or the IoU.
    """

    kind: str
    image: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    classes: list[str]
    measure: float

    def __str__(self) -> str:
        boxes = [", ".join(f"{side:.1f}".removesuffix(".0") for side in row["bbox"]) for row in self.rows]
        named = (f"{cut(name)} [{box}]" for name, box in zip(self.classes, boxes, strict=True))
        return f"{self.image['file_name']} {' and '.join(named)}"

    def as_json(self) -> dict[str, Any]:
        """Return plain data: "file_name", "classes", "boxes" as [x, y, width, height] in px, and "measure"."""
        boxes = [list(row["bbox"]) for row in self.rows]
        measure = round(self.measure, 4)
        return {"file_name": self.image["file_name"], "classes": self.classes, "boxes": boxes, "measure": measure}


def find_suspects(coco: Mapping[str, Any]) -> dict[str, list[Suspect]]:
    """Return what is probably wrong with the objects of a checked COCO file, by kind, the worst first.

    Crowds, and VOC's difficult objects, are not looked at. A box that has several twins is named with one of them.
    """
    index = CocoIndex(coco)
    rows, boxes, sizes = index.objects, xyxy_boxes(index.objects), image_sizes(coco, index.objects)
    shorter = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf)
    inside = np.clip(boxes, 0, np.tile(sizes, 2))
    shares = (inside[:, 2:] - inside[:, :2]).prod(axis=1) / sizes.prod(axis=1)
    pairs, ious = twins(boxes, np.array([row["image_id"] for row in rows], np.int64))

    def suspects(kind: str, places: np.ndarray, measures: np.ndarray) -> list[Suspect]:
        order = np.argsort(measures if kind == "tiny" else -measures, kind="stable")
        found = []
        for group, measure in zip(places[order].tolist(), measures[order].tolist(), strict=True):
            of_group = [rows[place] for place in group]
            image = index.images[of_group[0]["image_id"]]
            found.append(Suspect(kind, image, of_group, [index.name_of(row) for row in of_group], measure))
        return found

    tiny, covering = (np.flatnonzero(of_kind) for of_kind in (shorter <= _TINY, shares >= _COVERING))
    return {
        "tiny": suspects("tiny", tiny[:, None], shorter[tiny]),
        "covering": suspects("covering", covering[:, None], shares[covering]),
        "twins": suspects("twins", pairs, ious),
    }


def describe_suspects(found: Mapping[str, Sequence[Suspect]]) -> Iterator[str]:
    """Yield a line for each kind that is there, with the number and the first."""
    for kind, suspects in found.items():
        if suspects:
            differing = sum(len(set(suspect.classes)) > 1 for suspect in suspects)
            classes = f", {differing} of them of two classes" if differing else ""
            yield f"{KINDS[kind]}: {len(suspects)}{classes} ({some('', suspects)})"


def twins(boxes: np.ndarray, image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes of one image that nearly cover each other, without trying all pairs.

    The boxes are sorted by image and x1 + y1, so that twins are near each other. Each is compared with the one before,
    the one before that, ..., until it has a twin or none can come.

    Args:
        boxes: (N, 4) XYXY.
        image_ids: (N,).

    Returns:
        (P, 2) positions, the lower first, and IoUs (P,); of several twins of a box there may be one alone.
    """
    start, sides = boxes[:, :2].sum(axis=1), boxes[:, 2:] - boxes[:, :2]
    areas, reach = sides.prod(axis=1), _APART * sides.sum(axis=1)
    order = np.lexsort((start, image_ids))
    pairs, ious = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    places, step = np.arange(len(boxes)), 1  # in that order, of the boxes that may still have a twin
    while len(places := places[places >= step]):
        one, other = order[places - step], order[places]
        near = (image_ids[one] == image_ids[other]) & (start[other] - start[one] <= reach[other])
        places, one, other = places[near], one[near], other[near]
        shared = np.minimum(boxes[one, 2:], boxes[other, 2:]) - np.maximum(boxes[one, :2], boxes[other, :2])
        overlap = np.maximum(shared, 0).prod(axis=1)
        iou = overlap / (areas[one] + areas[other] - overlap)
        found = iou >= _TWINS
        pairs.append(np.sort(np.stack([one[found], other[found]], axis=1), axis=1))
        ious.append(iou[found])
        places, step = places[~found], step + 1
    return np.concatenate(pairs), np.concatenate(ious)
