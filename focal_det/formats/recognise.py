"""Which format a folder or file of annotations is in, and which of its parts to take, by looking at it.

A data set may hold parts: `train`, `val` (also `valid` or `validation`) and `test` are folders of it, words in the
names of its annotation files, keys of a data.yaml or splits of Pascal VOC's. To train on, `train` is taken, to evaluate
on `val`, else `test`, and annotations of no part where there is no such part. Nothing is guessed: where several
annotations may be meant, none is taken, and all are named.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError, cut
from ..files import is_hidden, open_regular
from .exporters.annotated import PARTS, AnnotatedSet, Part, files_of, folders_of, part_of
from .exporters.csv_table import columns_of, read_csv
from .exporters.cvat import read_cvat
from .exporters.label_studio import read_label_studio
from .exporters.labelme import read_labelme
from .exporters.yolo import NAMES_FILES, is_there, read_yaml, read_yolo

COCO, VOC, YOLO = "COCO", "Pascal VOC", "YOLO"
CSV, CVAT, LABELME, LABEL_STUDIO = "CSV", "CVAT", "LabelMe", "Label Studio"
# Of the formats whose files name the class of each object: of path, folder that the images are below, part, and whether
# these may lie outside of it.
Reader = Callable[[Path, Path, "Part | None", bool], AnnotatedSet]
READERS: Mapping[str, Reader] = {
    YOLO: lambda path, _images, part, allow_outside: read_yolo(path, part, allow_outside=allow_outside),
    CSV: lambda path, images, _part, _outside: read_csv(path, images),
    CVAT: lambda path, images, _part, _outside: read_cvat(path, images),
    LABELME: lambda path, images, _part, _outside: read_labelme(path, images),
    LABEL_STUDIO: lambda path, images, _part, _outside: read_label_studio(path, images),
}
KNOWN = "COCO's or Label Studio's JSON, Pascal VOC's or CVAT's XML, YOLO's data.yaml, LabelMe's JSON files, CSV"

# What JSON of tools that are not read has in it, and what to do.
_OTHER_JSON = {
    '"region_attributes"': "VIA's, which is not read; export it as COCO",
    '"coordinates"': "CreateML's, which is not read; export it as COCO or YOLO",
    '"score"': "of detections, not annotations",
}
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_YOLO_LINE = re.compile(r"\s*\d+(\s+[\d.]+){4}\s")
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
    if not found and path.suffix.lower() == ".csv":
        return Found(CSV, path)  # whose reader says which columns it needs
    if not found:
        raise InputError(f"{cut(path, 250)}: no annotations were recognised there; {_what_is_there(path)}")
    for part in (*parts, None):
        taken = [one for one in found if one.part == part]
        if len(taken) > 1:
            raise InputError(
                f"{path}: several annotations may be meant: {', '.join(map(str, taken))}; name the file of one "
                "(classes.txt for YOLO, any for LabelMe), or Pascal VOC's folder by --train-voc or --val-voc"
            )
        if taken:
            return taken[0]
    there = ", ".join(dict.fromkeys(str(one.part) for one in found))
    raise InputError(
        f"{path}: has no part {' or '.join(parts)}, only {there}; name its file, or the folder of the part"
    )


def has_part(path: Path, parts: Sequence[Part]) -> bool:
    """Tell whether a folder or file has one of these parts, for YOLO with images that are there."""
    return any(
        one.part in parts and (one.format != YOLO or one.part is None or is_there(one.path, one.part))
        for one in look(path)
    )


def look(path: Path) -> list[Found]:
    """Return all annotations of a folder or file; raise InputError if there is none of that name."""
    try:
        if path.is_file():
            return [Found(YOLO, path.parent)] if path.name in NAMES_FILES else list(_of_folders(_in_file(path)))
        broken: list[str] = []
        found = list(_in_folder(path, broken))
        for folder in sorted(path.iterdir()):
            part = part_of(folder.name)
            if part and folder.is_dir() and not is_hidden(folder.name):
                found += [one._replace(part=part) for one in _in_folder(folder, broken)]
    except OSError as error:
        raise InputError(f"{cut(path, 250)}: no folder or file of annotations ({error.strerror})") from error
    if broken and not found:
        raise InputError(broken)
    return found


def image_folder(json_file: Path, top: Path, part: Part | None) -> Path:
    """Return the folder that the names of a COCO file's images are relative to.

    Args:
        json_file: which lies in the folder of its images, or anywhere below `top`, as these do.
        part: by whose name one of several such folders is taken.

    Raises:
        InputError: none or several have its first image.
    """
    name = _first_image(json_file)
    if name and os.path.isfile(json_file.parent / name):
        return json_file.parent
    folders = _folders(json_file.parent.parent if top.is_file() else top) if name else ()
    having = [folder for folder in folders if os.path.isfile(folder / name)]
    of_part = [folder for folder in having if part and part_of(folder.name) == part]
    having = of_part or having
    if len(having) == 1:
        return having[0]
    which = f"several folders have {name!r}: {', '.join(map(str, having))}" if having else f"no folder has {name!r}"
    which = which if name else 'neither its beginning nor its end has an image with a "file_name"'
    raise InputError(
        f"{json_file}: {which}; name the folder of its images, by --train-json and --train-images "
        "or --val-json and --val-images"
    )


def _in_folder(folder: Path, broken: list[str]) -> Iterator[Found]:
    """Yield the annotations in a folder and in those that it holds, if these are no parts of their own.

    What is wrong with YAML files that may be of other tools, in dialects of their own, is added to `broken`.
    """
    files = [file for one in folders_of(folder) for file in files_of(one)]
    instances = [file for file in files if file.name.startswith("instances_")]  # beside COCO's captions and keypoints
    seen: dict[Found, None] = {}
    for file in files:
        if instances and file not in instances and file.suffix.lower() == ".json":
            continue
        try:
            found = list(_in_file(file))
        except InputError as error:
            if re.search(r"^names\s*:", _ends(file), re.MULTILINE):
                raise
            broken += error.problems
            continue
        for one in found:
            # formats with a file for each image are of the folder
            seen[Found(one.format, folder) if one.format in (VOC, LABELME) else one] = None
    if Found(VOC, folder) in seen:
        splits = {path.stem for place in ("ImageSets/Main", "ImageSets", ".") for path in folder.glob(f"{place}/*.txt")}
        if parts := [part for part in PARTS if part in splits]:
            del seen[Found(VOC, folder)]
            seen |= dict.fromkeys(Found(VOC, folder, part) for part in parts)
    if not any(one.format == YOLO for one in seen) and any((folder / name).is_file() for name in NAMES_FILES):
        seen[Found(YOLO, folder)] = None
    yield from seen


def _of_folders(found: Iterable[Found]) -> Iterator[Found]:
    """Yield LabelMe's folder for a file of it, as each image has one."""
    for one in found:
        yield Found(LABELME, one.path.parent) if one.format == LABELME else one


def _what_is_there(path: Path) -> str:
    """Return what a path without annotations may be or hold, and what to do, for a message."""
    if path.suffix.lower() in _ARCHIVES:
        return "it is an archive: unpack it, and name the folder"
    files = [path] if path.is_file() else [file for one in folders_of(path) for file in files_of(one)]
    for file in files:
        signs = [sign for sign in _OTHER_JSON if file.suffix.lower() == ".json" and sign in _ends(file)]
        if signs:
            return f"{file.name} looks like JSON {_OTHER_JSON[signs[0]]}"
        if file.suffix.lower() == ".txt" and _YOLO_LINE.match(_ends(file)):
            return f"{file.name} looks like YOLO's: write the name of each class into a classes.txt, a line each"
    suffixes = Counter(file.suffix.lower() or "without suffix" for file in files)
    there = ", ".join(f"{number} {suffix}" for suffix, number in suffixes.most_common(5))
    return f"it holds {there}, but none of {KNOWN}" if there else "it is empty"


def _in_file(path: Path) -> Iterator[Found]:
    """Yield what a file holds, a part for each of a data.yaml's; nothing if it is not of annotations."""
    ending, part = path.suffix.lower(), part_of(path.stem)
    if ending in (".yaml", ".yml"):
        content = read_yaml(path) or {}
        yield from (Found(YOLO, path, part) for part in PARTS if content.get(part))
    elif ending == ".json" and (kind := _json_kind(_ends(path))):
        yield Found(kind, path, part)
    elif ending == ".xml" and (root := _root(path)) in ("annotation", "annotations"):
        yield Found(VOC if root == "annotation" else CVAT, path, part)
    elif ending == ".csv" and columns_of(_ends(path).partition("\n")[0]):
        yield Found(CSV, path, part)


def _json_kind(text: str) -> str | None:
    """Return the format of a JSON file by its beginning and end; None if it is of none."""
    if re.search(r'"shapes"\s*:\s*\[', text):
        return LABELME
    if text.lstrip().startswith("["):
        is_of_tasks = '"rectanglelabels"' in text or ('"annotations"' in text and '"data"' in text)
        return LABEL_STUDIO if is_of_tasks else None
    return COCO if re.search(r'"images"\s*:\s*\[', text) else None


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
            is_utf_16 = beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # PowerShell's ">"
            return (beginning + file.read()).decode("utf-16" if is_utf_16 else "utf-8-sig", "replace")
    except OSError:
        return ""


def _first_image(json_file: Path) -> str:
    found = re.search(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', _ends(json_file))
    try:
        return str(json.loads(found[1])) if found else ""
    except ValueError:
        return ""


def _folders(top: Path) -> Iterator[Path]:
    """Yield a folder and those below it, but for hidden ones and those that may not be listed."""
    for folder, inner, _ in os.walk(top, followlinks=True):
        yield Path(folder)
        depth = len(Path(folder).relative_to(top).parts)
        inner[:] = sorted(name for name in inner if not is_hidden(name)) if depth < _DEPTH else []
