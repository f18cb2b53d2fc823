"""Which format a folder or file of annotations is in, and which of its parts to take, by looking at it.

A data set may hold parts: `train`, `val` (also `valid` or `validation`) and `test` are folders of it, words in the
names of its annotation files, keys of a data.yaml or splits of Pascal VOC's. To train on, `train` is taken, to evaluate
on `val`, else `test`, and annotations of no part where there is no such part. Nothing is guessed: where several
annotations may be meant, none is taken, and all are named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import InputError, cut
from ..files import open_regular
from .annotated import AnnotatedSet
from .yolo import NAMES_FILES, read_yaml, read_yolo

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
COCO, VOC, YOLO = "COCO", "Pascal VOC", "YOLO"
# Formats whose files name the class of each object: path, folder of the images, part, and whether these may lead out.
Reader = Callable[[Path, Path, "Part | None", bool], AnnotatedSet]
READERS: Mapping[str, Reader] = {
    YOLO: lambda path, _, part, allow_outside: read_yolo(path, part, allow_outside=allow_outside),
}
KNOWN = "COCO's or Label Studio's JSON, Pascal VOC's or CVAT's XML, YOLO's data.yaml, LabelMe's JSON files, CSV"

_PART = re.compile(r"(?<![a-z])(train|valid(?:ation)?|val|test)(?:ing)?(?![a-z])")
_LOOKED_AT = 2**16  # bytes at the beginning and at the end of a file
_DEPTH = 3  # folders below the one that is given in which the images of a COCO file are looked for


class Found(NamedTuple):
    """Annotations that were recognised.

    path: the file, or the folder where each image has a file.
    part: None where they are of no part.
    """

    format: str
    path: Path
    part: Part | None = None

    def __str__(self) -> str:
        return f"{self.format}'s {self.path}{f' ({self.part})' if self.part else ''}"


def recognise(path: Path, parts: Sequence[Part]) -> Found:
    """Return the annotations of the first part that is there, else those of no part.

    Args:
        path: a folder, or a file of annotations.
        parts: wanted, the first that is there is taken.

    Raises:
        InputError: no such path; nothing was recognised; no such part; several that may be meant.
    """
    found = look(path)
    if not found:
        raise InputError(f"{cut(path, 250)}: no annotations were recognised there; it may hold {KNOWN}")
    for part in (*parts, None):
        taken = [one for one in found if one.part == part]
        if len(taken) > 1:
            raise InputError(
                f"{path}: several annotations may be meant: {', '.join(map(str, taken))}; name the file of one, or "
                "Pascal VOC's folder by --train-voc or --val-voc"
            )
        if taken:
            return taken[0]
    there = ", ".join(dict.fromkeys(str(one.part) for one in found))
    raise InputError(
        f"{path}: has no part {' or '.join(parts)}, only {there}; name its file, or the folder of the part"
    )


def has_part(path: Path, parts: Sequence[Part]) -> bool:
    """Tell whether a folder or file has one of these parts."""
    return any(one.part in parts for one in look(path))


def look(path: Path) -> list[Found]:
    """Return all annotations of a folder or file; raise InputError if there is none of that name."""
    try:
        if path.is_file():
            return list(_in_file(path))
        found = list(_in_folder(path))
        for folder in sorted(path.iterdir()):
            part = part_of(folder.name)
            if part and folder.is_dir():
                found += [one._replace(part=part) for one in _in_folder(folder)]
    except OSError as error:
        raise InputError(f"{cut(path, 250)}: no folder or file of annotations ({error.strerror})") from error
    return found


def part_of(name: str) -> Part | None:
    """Return the part that the name of a file or folder says."""
    found = _PART.search(name.lower())
    if found is None:
        return None
    return next(part for part in PARTS if found[1].startswith(part))


def image_folder(json_file: Path, top: Path, part: Part | None) -> Path:
    """Return the folder that the names of a COCO file's images are relative to.

    Args:
        json_file: which lies in the folder of its images, or anywhere below `top`, as these do.
        part: by whose name one of several such folders is taken.

    Raises:
        InputError: none or several have its first image.
    """
    name = _first_image(json_file)
    folders = [json_file.parent, *_folders(json_file.parent.parent if top.is_file() else top, _DEPTH)]
    having = list(dict.fromkeys(folder for folder in folders if name and (folder / name).is_file()))
    if json_file.parent in having:
        return json_file.parent
    of_part = [folder for folder in having if part and part_of(folder.name) == part]
    having = of_part or having
    if len(having) == 1:
        return having[0]
    which = f"several folders have {name!r}: {', '.join(map(str, having))}" if having else f"no folder has {name!r}"
    raise InputError(f"{json_file}: {which}; name the folder of its images, by --train-json and --train-images")


def _in_folder(folder: Path) -> Iterator[Found]:
    """Yield the annotations in a folder and in its folders of annotations, those of each image as one."""
    inner = [one for one in sorted(folder.iterdir()) if one.is_dir() and not part_of(one.name)]
    files = [one for one in sorted(folder.iterdir()) if one.is_file()]
    files += [file for one in inner if one.name.lower().startswith("annot") for file in sorted(one.glob("*.json"))]
    instances = [file for file in files if file.name.startswith("instances_")]  # beside COCO's captions and keypoints
    seen: dict[Found, None] = {}
    for file in files:
        if not instances or file in instances or file.suffix.lower() != ".json":
            seen |= dict.fromkeys(_in_file(file))
    if any(_root(file) == "annotation" for one in (folder, *inner) for file in [*one.glob("*.xml")][:1]):
        splits = {path.stem for place in ("ImageSets/Main", "ImageSets", ".") for path in folder.glob(f"{place}/*.txt")}
        parts: list[Part | None] = [part for part in PARTS if part in splits]
        seen |= dict.fromkeys(Found(VOC, folder, part) for part in parts or [None])
    if not any(one.format == YOLO for one in seen) and any((folder / name).is_file() for name in NAMES_FILES):
        seen[Found(YOLO, folder)] = None
    yield from seen


def _in_file(path: Path) -> Iterator[Found]:
    """Yield what a file holds: a part for each of a data.yaml's; nothing if it is not of annotations."""
    ending = path.suffix.lower()
    if ending in (".yaml", ".yml"):
        content = read_yaml(path) or {}
        yield from (Found(YOLO, path, part) for part in PARTS if content.get(part))
    elif ending == ".json" and (kind := _json_kind(path)):
        yield Found(kind, path, part_of(path.stem))


def _json_kind(path: Path) -> str | None:
    return COCO if re.search(r'"images"\s*:\s*\[', _ends(path)) else None


def _root(path: Path) -> str | None:
    """Return the first tag of an XML file."""
    found = re.search(r"<([A-Za-z_][\w.-]*)", _ends(path))
    return found and found[1]


def _ends(path: Path) -> str:
    """Return the beginning and the end of a file; "" if it cannot be read."""
    try:
        with open_regular(path) as file:
            beginning = file.read(_LOOKED_AT)
            file.seek(max(_LOOKED_AT, path.stat().st_size - _LOOKED_AT))
            return (beginning + file.read()).decode("utf-8-sig", "replace")
    except OSError:
        return ""


def _first_image(json_file: Path) -> str:
    found = re.search(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', _ends(json_file))
    try:
        return str(json.loads(found[1])) if found else ""
    except ValueError:
        return ""


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if depth:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir():
                yield from _folders(inner, depth - 1)
