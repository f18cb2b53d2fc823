"""The parts of a Pascal VOC folder: its annotations, its images, its splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError, cut, some
from ..files import open_regular

_IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_SHOWN_SPLITS = 12
_LARGEST_SPLIT = 2**26  # bytes; ImageNet's names have 40 MB


class VocFolder(NamedTuple):
    """A folder as given, and where its annotations and images are."""

    folder: Path
    annotation_dir: Path
    image_dir: Path


def find_folder(folder: str | os.PathLike[str]) -> VocFolder:
    """Find annotations and images, in subfolders with VOC's names or side by side; raise InputError without them."""
    path = Path(folder)
    if not str(folder) or not os.path.isdir(path):
        raise InputError(f"{cut(folder, 250)}: no such folder; name one that holds Annotations and JPEGImages")
    annotations, images = path / "Annotations", path / "JPEGImages"
    if not os.path.isdir(annotations):
        if not any(path.glob("*.xml")):
            raise InputError(f"{path}: has no folder Annotations, nor annotations (*.xml) of its own; add them")
        return VocFolder(path, path, images if os.path.isdir(images) else path)
    if not os.path.isdir(images):
        raise InputError(f"{path}: has no folder JPEGImages; put the images there")
    return VocFolder(path, annotations, images)


def read_split(found: VocFolder, split: str | None, usual_splits: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """Read a split.

    Args:
        split: None for the first of the usual ones that exists, or for all annotations if there are no splits.

    Returns:
        The names of its images in order, the name of the set for messages, and notes on what was taken.

    Raises:
        InputError: no such split, with those that exist; one that cannot be read, is empty or repeats names.
    """
    split_dir = found.folder / "ImageSets" / "Main"
    splits = {path.stem: path for path in sorted(split_dir.glob("*.txt"))}
    if split is None and not splits:
        names = sorted(path.stem for path in found.annotation_dir.glob("*.xml"))
        if not names:
            raise InputError(f"{found.annotation_dir}: no annotations (*.xml); add them")
        note = f"{found.folder}: no splits in {split_dir}, so all {len(names)} annotations were taken"
        return names, str(found.folder), [note]
    taken = split if split is not None else next((name for name in usual_splits if name in splits), None)
    if taken is None or taken not in splits:
        wanted = f"no split {split!r}" if split is not None else f"no split {' or '.join(usual_splits)}"
        there = f"there are {_named(list(splits))}; name one as {found.folder}:SPLIT"
        fix = there if splits else "leave it out to take all"
        raise InputError(f"{found.folder}: {wanted} in {split_dir}; {fix}")
    names = _read_names(splits[taken], found.annotation_dir)
    return names, f"{found.folder}:{taken}", [f"{found.folder}: took split {taken}, {len(names)} images"]


def images_by_stem(folder: Path) -> dict[str, list[str]]:
    """Group the names of a folder's images by their stem; raise InputError if it cannot be read."""
    found: dict[str, list[str]] = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); make it readable") from error
    for name in names:
        stem, ending = os.path.splitext(name)
        if ending.lower() in _IMAGES:
            found.setdefault(stem, []).append(name)
    return found


def _read_names(path: Path, annotation_dir: Path) -> list[str]:
    try:
        with open_regular(path, most=_LARGEST_SPLIT) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error})") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"{path}: names no image; write a name on each line, or take another split")
    are_flagged = all(name.split()[-1] in ("-1", "0", "1") for name in names)
    if are_flagged and not os.path.isfile(annotation_dir / f"{names[0]}.xml"):
        raise InputError(f"{path}: lists which images hold one class (1, -1, 0), so it is not a split; take another")
    paths = [name for name in names if name in (".", "..") or "/" in name or "\\" in name]
    if paths:
        raise InputError(
            f"{path}: {some('', [cut(repr(name)) for name in paths])} is a path, not the name of an image; "
            "write names without folder and suffix"
        )
    repeated = [cut(name) for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{path}: repeats {some('', repeated)}; name each image once")
    return names


def _named(splits: list[str]) -> str:
    """Name splits for a message, without VOC's lists of a single class, such as cat_train."""
    named = [name for name in splits if name.rpartition("_")[2] == name or name.rpartition("_")[2] not in splits]
    more = f" and {len(named) - _SHOWN_SPLITS} more" if len(named) > _SHOWN_SPLITS else ""
    return ", ".join(named[:_SHOWN_SPLITS]) + more
