"""The same image in the sets that are trained and evaluated on, or twice in one of them, found by content.

Files of one size and one end, which the check of the images has read, are compared by a hash of all their bytes: so of
100,000 images only those that are probably there twice are read again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..errors import cut, some
from ..files import open_regular
from ..formats.coco import CocoFile
from ..formats.coco_index import CocoIndex, by_image


class CheckedSet(NamedTuple):
    """A set whose images were looked at."""

    name: str
    image_dir: str
    file: CocoFile
    is_trained_on: bool


class _Copy(NamedTuple):
    """An image of a set."""

    place: int  # of the set
    image: dict[str, Any]
    path: str


def duplicate_images(sets: Sequence[CheckedSet]) -> list[str]:
    """Return a warning for each pair of sets that share images, and for each set that has images twice."""
    shared: dict[tuple[int, int], list[str]] = {}
    repeated: dict[int, list[tuple[_Copy, ...]]] = {}
    for copies in _same_content(sets):
        first: dict[int, _Copy] = {}
        for copy in copies:
            first.setdefault(copy.place, copy)
        for place, one in first.items():
            paths = {copy.path: copy for copy in copies if copy.place == place}
            if len(paths) > 1:
                repeated.setdefault(place, []).append(tuple(paths.values()))
            for other in copies:
                if sets[place].is_trained_on and not sets[other.place].is_trained_on:
                    shared.setdefault((place, other.place), []).append(_pair(one, other))
    found = []
    for (trained, tested), pairs in shared.items():
        what = f"{len(pairs)} of the {len(sets[tested].file.coco['images'])} images of {sets[tested].name}"
        fix = "what was learnt by heart raises the scores; take them out of one of the sets"
        found.append(f"{what} are in {sets[trained].name} too, by content ({some('', pairs)}): {fix}")
    twice = {sets[place].name: _repeated(sets[place], groups) for place, groups in sorted(repeated.items())}
    return [*found, *twice.values()]


def _repeated(one: CheckedSet, groups: Sequence[tuple[_Copy, ...]]) -> str:
    index, rows = CocoIndex(one.file.coco), by_image(one.file.coco["annotations"])

    def objects(copy: _Copy) -> list[tuple[str, tuple[float, ...]]]:
        return sorted((index.name_of(row), tuple(row["bbox"])) for row in rows[copy.image["id"]])

    differing = [group for group in groups if any(objects(copy) != objects(group[0]) for copy in group)]
    pairs = some("", [_pair(*group[:2]) for group in differing or groups])
    what = f"{one.name}: {len(groups)} images are there more than once, by content"
    if not differing:
        return f"{what} ({pairs}): each counts as often; remove the copies"
    fix = "an object of one is background in the other; keep the right one"
    return f"{what}, {len(differing)} of them with different boxes ({pairs}): {fix}"


def _pair(one: _Copy, other: _Copy) -> str:
    names = [cut(repr(copy.image["file_name"])) for copy in (one, other)]
    return names[0] if names[0] == names[1] else " = ".join(names)


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
