"""The parts of a Pascal VOC folder, also where a tool has named them otherwise: annotations, images, splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError, cut, some
from ..files import open_regular
from .image_files import SUFFIXES, leads_outside

_SHOWN_SPLITS = 12
_LARGEST_SPLIT = 2**26  # bytes; ImageNet's names have 40 MB
_IN_ROOT = ("train", "val", "valid", "test", "trainval")  # of a folder's texts, those that are splits; also *_list
_FLAGS = ("-1", "0", "1")


class Images(NamedTuple):
    """A folder's images and those below it, relative to it: by name without suffix, its last part, and file name."""

    by_name: dict[str, list[str]]
    by_stem: dict[str, list[str]]
    by_file: dict[str, list[str]]

    @classmethod
    def of(cls, folder: Path) -> Images:
        """List them; raise InputError if the folder cannot be read."""
        by_name = _by_name(folder, SUFFIXES)
        by_stem: dict[str, list[str]] = {}
        by_file: dict[str, list[str]] = {}
        for name, files in by_name.items():
            by_stem.setdefault(os.path.basename(name), []).extend(files)
            for file in files:
                by_file.setdefault(os.path.basename(file), []).append(file)
        return cls(by_name, by_stem, by_file)

    def find(self, name: str, given: str) -> list[str]:
        """Return the images of an annotation: of its name and folder, else of its name, else what it says.

        Args:
            name: of the annotation, with folder and without suffix.
            given: the image's file name in the annotation, which decides where the name does not.
        """
        same = self.by_name.get(name) or self.by_stem.get(os.path.basename(name), [])
        if len(same) == 1:
            return same
        named = self.by_file.get(given, [])
        return [file for file in named if os.path.dirname(file) == os.path.dirname(name)] or named or same


class VocFolder(NamedTuple):
    """A folder as given, and what is in it.

    annotation_dir, image_dir: with all that is below them.
    annotations: the files relative to their folder, by the name without suffix, such as "cam1/x".
    notes: what was taken from where, if not from folders of VOC's names.
    """

    folder: Path
    annotation_dir: Path
    image_dir: Path
    annotations: dict[str, str]
    images: Images
    notes: list[str]


def find_folder(folder: str | os.PathLike[str]) -> VocFolder:
    """Find annotations and images: in Annotations and JPEGImages, side by side, or in any other folder below.

    Raises:
        InputError: no such folder, no annotations, annotations in several folders, or one that cannot be listed.
    """
    path = Path(folder)
    if not str(folder) or not os.path.isdir(path):
        raise InputError(f"{cut(folder, 250)}: no such folder; name one that holds Annotations and JPEGImages")
    annotation_dir, image_dir, notes = path / "Annotations", path / "JPEGImages", []
    if not os.path.isdir(annotation_dir):
        annotation_dir = _folder_of_annotations(path)
        if os.path.isdir(annotation_dir / "Annotations"):  # VOC's own folder, one below, with its splits
            return find_folder(annotation_dir)
    if not os.path.isdir(image_dir):
        image_dir = path
    by_name = _by_name(annotation_dir, {".xml"})
    twice = [", ".join(files) for files in by_name.values() if len(files) > 1]
    if twice:
        raise InputError(f"{annotation_dir}: {some('several annotations of one name', twice)}; remove or rename them")
    annotations = {name: files[0] for name, files in by_name.items()}
    if not annotations:
        raise InputError(f"{annotation_dir}: no annotations (*.xml); add them")
    images = Images.of(image_dir)
    if image_dir == path != annotation_dir:
        folders = sorted({os.path.dirname(name) or "." for name in images.by_name})
        notes.append(f"{path}: took annotations from {annotation_dir.name}/ and images from {some('', folders)}")
    return VocFolder(path, annotation_dir, image_dir, annotations, images, notes)


def _folder_of_annotations(path: Path) -> Path:
    """Return the folder itself if it holds annotations, else the only one in it that does, at any depth."""
    if any(name.lower().endswith(".xml") for name in _listed(path)):
        return path
    found = [name for name in _listed(path) if os.path.isdir(path / name) and _by_name(path / name, {".xml"})]
    if not found:
        raise InputError(f"{path}: has no folder Annotations, nor annotations (*.xml) in it or below; add them")
    if len(found) > 1:
        places = some("", [str(path / name) for name in found])
        raise InputError(f"{path}: has annotations (*.xml) in {len(found)} folders; name one of them: {places}")
    return path / found[0]


def read_split(found: VocFolder, split: str | None, usual_splits: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """Read a split, from ImageSets/Main, else ImageSets, else the folder itself.

    Args:
        split: None for the first of the usual ones that exists, or for all annotations if there are no splits.

    Returns:
        The names of its annotations in order, the name of the set for messages, and notes on what was taken.

    Raises:
        InputError: no such split, with those that exist; one that cannot be read, is empty or repeats names.
    """
    splits = _splits(found.folder)
    split_dir = found.folder / "ImageSets" / "Main"
    if split is None and not splits:
        names = sorted(found.annotations)
        note = f"{found.folder}: no splits in {split_dir}, so all {len(names)} annotations were taken"
        return names, str(found.folder), [*found.notes, note]
    wanted = usual_splits if split is None else [split]
    for name in wanted:
        files = [splits[name]] if name in splits else [p for s, p in splits.items() if s.endswith(f"_{name}")]
        if files:
            names = _read_lists(files, found, of_classes=name not in splits)
            place = "" if name in splits and files[0].parent == split_dir else f" from {files[0]}"
            place += f" and the lists of {len(files) - 1} other classes" if len(files) > 1 else ""
            note = f"{found.folder}: took split {name}{place}, {len(names)} images"
            return names, f"{found.folder}:{name}", [*found.notes, note]
    missing = f"no split {' or '.join(map(repr, wanted)) if split is not None else ' or '.join(wanted)}"
    fix = (
        f"there are {_named(list(splits))}; name one as {found.folder}:SPLIT" if splits else "leave it out to take all"
    )
    raise InputError(f"{found.folder}: {missing} in {split_dir}; {fix}")


def _splits(folder: Path) -> dict[str, Path]:
    """Return the lists of names, by split; of one split that of ImageSets/Main first, that in the folder last."""
    found: dict[str, Path] = {}
    for place in (folder, folder / "ImageSets", folder / "ImageSets" / "Main"):
        for path in sorted(place.glob("*.txt")):
            name = path.stem.removesuffix("_list") if place == folder else path.stem
            if place != folder or name in _IN_ROOT:
                found[name] = path
    return found


def _by_name(folder: Path, suffixes: Collection[str]) -> dict[str, list[str]]:
    """Group the files of these suffixes in a folder and below it, relative to it, by name without suffix."""
    found: dict[str, list[str]] = {}
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(place, folder)
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in suffixes and not name.startswith("."):  # "._a.xml" is macOS's own
                prefix = "" if inside == "." else f"{inside}/"
                found.setdefault(prefix + stem, []).append(prefix + name)
    return found


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); make it readable") from error


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); make it readable") from error


def _read_lists(paths: Sequence[Path], found: VocFolder, *, of_classes: bool) -> list[str]:
    """Return the names in the lists of a split: in one, or in those of its classes together."""
    names = [name for path in paths for name in _read_names(path, found, of_class=of_classes)]
    return list(dict.fromkeys(names))


def _read_names(path: Path, found: VocFolder, *, of_class: bool) -> list[str]:
    try:
        with open_regular(path, most=_LARGEST_SPLIT) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error})") from error
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise InputError(f"{path}: names no image; write a name on each line, or take another split")
    flagged = [line for line in lines if line.split()[-1] in _FLAGS and line not in found.annotations]
    if len(flagged) == len(lines) and not of_class:
        raise InputError(f"{path}: lists which images hold one class (1, -1, 0), so it is not a split; take another")
    ends: dict[str, list[str]] = {}
    for name in found.annotations:
        ends.setdefault(os.path.basename(name), []).append(name)
    if of_class:
        lines = [line.rsplit(None, 1)[0] if line in set(flagged) else line for line in lines]
    outside = [line for line in lines if leads_outside(line) and _name(line, found, ends) not in found.annotations]
    if outside:
        lines_shown = some("", [cut(repr(line)) for line in outside])
        raise InputError(f"{path}: {lines_shown} leads out of the folder; write names of images in it")
    names = [_name(line, found, ends) for line in lines]
    repeated = [cut(name) for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{path}: repeats {some('', repeated)}; name each image once")
    return names


def _name(line: str, found: VocFolder, ends: dict[str, list[str]]) -> str:
    """Return the annotation's name in a line: "x", "x.jpg", "images/x.jpg" or "images/x.jpg annotations/x.xml".

    Args:
        ends: the annotations' names by their last part.
    """
    texts = [line, line.split()[-1]] if line.lower().endswith(".xml") else [line]
    for text in texts:
        path = text.replace("\\", "/").removeprefix("./")
        for part in (found.annotation_dir.name, found.image_dir.name):
            path = f"/{path}".rpartition(f"/{part}/")[2].removeprefix("/") if f"/{part}/" in f"/{path}" else path
        stem, suffix = os.path.splitext(path)
        name = stem if suffix.lower() in {".xml", *SUFFIXES} else path
        if path in found.annotations or name in found.annotations:
            return path if path in found.annotations else name
        same = ends.get(os.path.basename(name), [])
        if len(same) == 1 and ("/" not in name or name in found.images.by_name):  # in a folder, or its image is
            return same[0]
    return line


def _named(splits: list[str]) -> str:
    """Name splits for a message, without VOC's lists of a single class, such as cat_train."""
    named = [name for name in splits if name.rpartition("_")[2] == name or name.rpartition("_")[2] not in splits]
    more = f" and {len(named) - _SHOWN_SPLITS} more" if len(named) > _SHOWN_SPLITS else ""
    return ", ".join(named[:_SHOWN_SPLITS]) + more
