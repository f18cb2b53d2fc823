"""What is where in a Pascal VOC folder: its annotations, its pictures, its splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError, cut, some
from .folders import open_regular

_PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_SHOWN_SPLITS = 12
_LARGEST_SPLIT = 2**26  # bytes; ImageNet's names have 40 MB


class VocFolder(NamedTuple):
    """A folder as given, and where its annotations and pictures are."""

    folder: Path
    annotation_dir: Path
    image_dir: Path

    @property
    def split_dir(self) -> Path:
        """Where splits are, if there are any."""
        return self.folder / "ImageSets" / "Main"


def find_folder(folder: str | os.PathLike[str]) -> VocFolder:
    """Where a folder has its annotations and pictures: in folders of VOC's names, or side by side in itself.

    Raises:
        InputError: there are none.
    """
    path = Path(folder)
    if not str(folder) or not os.path.isdir(path):
        raise InputError(f"{cut(folder, 250)}: no such folder; name one that holds Annotations and JPEGImages")
    annotations, images = path / "Annotations", path / "JPEGImages"
    if not os.path.isdir(annotations):
        if not any(path.glob("*.xml")):
            raise InputError(f"{path}: has no folder Annotations, nor annotations (*.xml) of its own; add them")
        return VocFolder(path, path, images if os.path.isdir(images) else path)
    if not os.path.isdir(images):
        raise InputError(f"{path}: has no folder JPEGImages; put the pictures there")
    return VocFolder(path, annotations, images)


def read_split(found: VocFolder, split: str | None, usual_splits: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """The names of a split's pictures, in its order; what messages call the set; what was taken, in words.

    Args:
        split: None for the first of the usual ones that is there, or for all annotations if there are no splits.

    Raises:
        InputError: no such split, with those that there are; one that cannot be read, is empty or repeats names.
    """
    splits = {path.stem: path for path in sorted(found.split_dir.glob("*.txt"))}
    if split is None and not splits:
        names = sorted(path.stem for path in found.annotation_dir.glob("*.xml"))
        if not names:
            raise InputError(f"{found.annotation_dir}: no annotations (*.xml); add them")
        note = f"{found.folder}: no splits in {found.split_dir}, so all {len(names)} annotations were taken"
        return names, str(found.folder), [note]
    taken = split if split is not None else next((name for name in usual_splits if name in splits), None)
    if taken is None or taken not in splits:
        wanted = f"no split {split!r}" if split is not None else f"no split {' or '.join(usual_splits)}"
        there = _named(list(splits))
        fix = f"there are {there}; name one as {found.folder}:SPLIT" if splits else "leave it out to take all"
        raise InputError(f"{found.folder}: {wanted} in {found.split_dir}; {fix}")
    names = _read_names(splits[taken], found.annotation_dir)
    return names, f"{found.folder}:{taken}", [f"{found.folder}: took split {taken}, {len(names)} pictures"]


def pictures_by_stem(folder: Path) -> dict[str, list[str]]:
    """The names of a folder's pictures by what stands before their ending.

    Raises:
        InputError: the folder cannot be read.
    """
    found: dict[str, list[str]] = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder}: pictures that cannot be listed ({error.strerror}); give leave to") from error
    for name in names:
        stem, ending = os.path.splitext(name)
        if ending.lower() in _PICTURES:
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
        raise InputError(f"{path}: names no picture; write a name on each line, or take another split")
    if all(name.split()[-1] in ("-1", "0", "1") for name in names) and not _has(annotation_dir, names[0]):
        raise InputError(
            f"{path}: says of each picture whether it holds one class (1, -1, 0), so it is no split; take another"
        )
    places = [name for name in names if name in (".", "..") or "/" in name or "\\" in name]
    if places:
        raise InputError(
            f"{path}: {some('', [cut(repr(name)) for name in places])} is no name of a picture but a place; "
            "write names without folder and ending"
        )
    repeated = [cut(name) for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{path}: repeats {some('', repeated)}; name each picture once")
    return names


def _has(annotation_dir: Path, name: str) -> bool:
    return os.path.isfile(annotation_dir / f"{name}.xml")


def _named(splits: list[str]) -> str:
    """Splits for a message, without VOC's lists of a single class, such as cat_train."""
    whole = [name for name in splits if name.rpartition("_")[2] == name or name.rpartition("_")[2] not in splits]
    more = f" and {len(whole) - _SHOWN_SPLITS} more" if len(whole) > _SHOWN_SPLITS else ""
    return ", ".join(whole[:_SHOWN_SPLITS]) + more
