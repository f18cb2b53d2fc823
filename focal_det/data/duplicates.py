"""The same image in the sets that are trained and evaluated on, or twice in one of them, found by content.

Files of one size and one end, which the check of the images has read, are compared by a hash of all their bytes: so of
100,000 images only those that are probably there twice are read again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import cut, some
from ..files import open_regular
from ..formats.coco import CocoFile
from ..formats.coco_index import CocoIndex, by_image, xyxy_boxes

_SAME = 1.0  # pixels by which coordinates of one box may differ, as by the rounding of a format


class CheckedSet(NamedTuple):
    """A set whose images were looked at."""

    name: str
    image_dir: str
    file: CocoFile
    is_trained_on: bool


class Copies(NamedTuple):
    """Images of the same content.

    sets: of the first and of the others, by name: two for an image that is trained and evaluated on, else one.
    images: of the files' "images", in that order.
    agree: whether all have the same boxes and classes.
    """

    sets: tuple[str, str]
    images: tuple[dict[str, Any], ...]
    agree: bool

    @property
    def file_names(self) -> list[str]:
        """The names of their files, each once."""
        return list(dict.fromkeys(image["file_name"] for image in self.images))

    def as_json(self) -> dict[str, Any]:
        """Return plain data: "sets", "file_names" of the copies, the first set's first, and whether they "agree"."""
        names = [image["file_name"] for image in self.images]
        return {"sets": list(self.sets), "file_names": names, "agree": self.agree}

    @property
    def is_leak(self) -> bool:
        """Whether they are in a set to train on and in one to evaluate on."""
        return self.sets[0] != self.sets[1]


class _Copy(NamedTuple):
    """An image of a set."""

    place: int  # of the set
    image: dict[str, Any]
    path: str


def duplicate_images(sets: Sequence[CheckedSet]) -> list[Copies]:
    """Return the images that sets to train on share with others, a pair each; then those that a set has twice or more.

    Two annotations of one image contradict each other where one has a box that the other lacks.
    """
    annotations = [_Annotations(one.file.coco) for one in sets]
    shared: dict[tuple[int, int], list[Copies]] = {}
    repeated: dict[int, list[Copies]] = {}

    def copies_of(places: tuple[int, int], group: Sequence[_Copy]) -> Copies:
        first, *others = (annotations[copy.place].of(copy.image) for copy in group)
        agree = all(_agree(first, other) for other in others)
        names = sets[places[0]].name, sets[places[1]].name
        return Copies(names, tuple(copy.image for copy in group), agree)

    for copies in _same_content(sets):
        first: dict[int, _Copy] = {}
        for copy in copies:
            first.setdefault(copy.place, copy)
        for place, one in first.items():
            paths = {copy.path: copy for copy in copies if copy.place == place}
            if len(paths) > 1:
                repeated.setdefault(place, []).append(copies_of((place, place), list(paths.values())))
            for other in copies:
                if sets[place].is_trained_on and not sets[other.place].is_trained_on:
                    pair = place, other.place
                    shared.setdefault(pair, []).append(copies_of(pair, (one, other)))
    return [
        copies for by_set in (shared, dict(sorted(repeated.items()))) for found in by_set.values() for copies in found
    ]


def duplicate_warnings(sets: Sequence[CheckedSet], found: Sequence[Copies]) -> list[str]:
    """Return a warning for each pair of sets that share images, and for each set that has images twice."""
    numbers = {one.name: len(one.file.coco["images"]) for one in sets}
    groups: dict[tuple[str, str], list[Copies]] = {}
    for copies in found:
        groups.setdefault(copies.sets, []).append(copies)
    warnings = []
    for (first, other), of_sets in groups.items():
        differing = [copies for copies in of_sets if not copies.agree]
        of_them = f", {len(differing)} of them with different boxes" if differing else ""
        pairs = some("", [_names(copies) for copies in differing or of_sets])
        if of_sets[0].is_leak:
            what = f"{len(of_sets)} of the {numbers[other]} images of {other} are in {first} too, by content{of_them}"
            fix = "images memorised in training raise the scores; take them out of one of the sets"
            warnings.append(f"{what} ({pairs}): {fix}")
            continue
        what = f"{first}: {len(of_sets)} images are there more than once, by content{of_them} ({pairs})"
        fix = "an object of one is background in the other; keep the right one"
        warnings.append(f"{what}: {fix if differing else 'each counts as often; remove the copies'}")
    return warnings


def _names(copies: Copies) -> str:
    return " = ".join(cut(repr(name)) for name in copies.file_names[:2])


class _Annotations:
    """The annotations of a set by image; grouped when the first is asked for."""

    def __init__(self, coco: Mapping[str, Any]) -> None:
        self._coco, self._rows = coco, dict[int, list[dict[str, Any]]]()

    def of(self, image: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return an image's boxes (N, 4) XYXY by the names of their classes."""
        if not self._rows:
            self._index, self._rows = CocoIndex(self._coco), by_image(self._coco["annotations"])
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in self._rows.get(image["id"], ()):
            rows.setdefault(self._index.name_of(row), []).append(row)
        return {name: xyxy_boxes(of_class) for name, of_class in rows.items()}


def _agree(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """Tell whether each box of one is among the other's of its class, and the other way round."""
    if {name: len(boxes) for name, boxes in one.items()} != {name: len(boxes) for name, boxes in other.items()}:
        return False
    return all(_are_among(one[n], other[n]) and _are_among(other[n], one[n]) for n in one)


def _are_among(boxes: np.ndarray, others: np.ndarray) -> bool:
    """Tell whether each of the boxes (N, 4) is one of the others; only those that begin at the same x are compared."""
    others = others[np.argsort(others[:, 0])]
    low = np.searchsorted(others[:, 0], boxes[:, 0] - _SAME)
    high = np.searchsorted(others[:, 0], boxes[:, 0] + _SAME, side="right")
    near = (others[i:j] for i, j in zip(low, high, strict=True))
    return all((np.abs(few - box) <= _SAME).all(axis=1).any() for box, few in zip(boxes, near, strict=True))


def _same_content(sets: Sequence[CheckedSet]) -> Iterable[list[_Copy]]:
    """Yield the images of each content that is there more than once."""
    alike: dict[int, list[_Copy]] = {}
    for place, one in enumerate(sets):
        for image in one.file.coco["images"]:
            if (mark := one.file.marks.get(image["id"])) is not None:
                path = os.path.abspath(os.path.join(one.image_dir, image["file_name"]))
                alike.setdefault(mark, []).append(_Copy(place, image, path))
    for copies in alike.values():
        paths = {copy.path for copy in copies}
        hashes = {path: path if len(paths) == 1 else _hash(path) for path in paths} if len(copies) > 1 else {}
        same: dict[str, list[_Copy]] = {}
        for copy in copies if hashes else ():
            same.setdefault(hashes[copy.path], []).append(copy)
        yield from (group for group in same.values() if len(group) > 1)


def _hash(path: str) -> str:
    try:
        with open_regular(path) as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:  # gone since it was checked: the training will name it
        return path
