"""YOLO's text files: a line `class x y width height` for each object, in shares of the image's size, x, y its centre.

A data.yaml names the classes and, by `train`, `val` and `test`, folders of images or lists of them. The labels of
`.../images/.../a.jpg` are `.../labels/.../a.txt`, or `a.txt` beside the image. Without a data.yaml, a folder with
`classes.txt` (Label Studio) or `obj.names` (CVAT, darknet) is taken as one set. Lines of more numbers are the corners
of a polygon, whose box is taken, or with `kpt_shape` a box and keypoints, which are left out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...errors import InputError, cut, some
from ...files import is_hidden, open_regular
from ...plain_data import parse_yaml
from ..image_files import FLAG, SUFFIXES, passed_over
from ..voc_xml import Problems
from .annotated import PARTS, AnnotatedImage, AnnotatedSet, Passed, Thing

NAMES_FILES = ("classes.txt", "obj.names")
_ENDINGS = (".txt", ".TXT")  # of files of labels; Windows tells no difference
_LARGEST = 2**26  # bytes of a file of labels or of a list of images
_BEYOND = 1e-3  # that a share may exceed 1 by, from rounding


def read_yaml(path: Path) -> dict[str, Any] | None:
    """Read a data.yaml; None if it is not one, that is without `names`.

    Raises:
        InputError: it cannot be read, or is not YAML.
    """
    try:
        with open_regular(path) as file:
            found = parse_yaml(file.read().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({cut(error, 200)}); correct it") from error
    return found if isinstance(found, dict) and "names" in found else None


def read_yolo(path: Path, part: str | None, *, allow_outside: bool = False) -> AnnotatedSet:
    """Read a set; its images are looked for, and opened only for their sizes.

    Args:
        path: a data.yaml; or a folder of images and labels with one of `NAMES_FILES`.
        part: `train`, `val` or `test` of the data.yaml; None for a folder.
        allow_outside: whether a data.yaml may name images outside of its own folder.

    Raises:
        InputError: with every problem found: names of classes that are missing, folders that are not there or lead
            outside, and, with file and line, numbers that are no class, no share, or not as many as needed.
    """
    place, path = str(path) if part is None else f"{path}:{part}", _absolute(path)
    notes, keypoints = [], 0
    if part is None:
        root = path
        names_file = next(path / name for name in NAMES_FILES if (path / name).is_file())
        names = _each_once(names_file, "\n".join(_lines(names_file)).rstrip().split("\n"))  # but for blank last lines
        files = _files_below(path)
    else:
        root, content = path.parent, read_yaml(path) or {}
        names, keypoints = _class_names(path, content), _keypoint_numbers(path, content)
        places = [_resolve(path, content, text) for text in _texts(path, content, part)]
        if not allow_outside:
            _refuse_outside(path, places)
        notes.append(f"{place}: took the images of {some('', places)}")
        for other in PARTS:
            if content.get(other) and not is_there(path, other):
                notes.append(f"{path}: {other} is {cut(repr(content[other]))}, which is not there")
        files = [file for one in places for file in (_files_below(one) if one.is_dir() else _listed(one, root))]
        if not allow_outside:
            _refuse_outside(path, files)
        elif files:
            root = Path(os.path.commonpath([root, *(file.parent for file in files)]))
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    unread = [f"{place}: {note}" for note in passed_over(file.relative_to(root) for file in files)]
    if unread and not images:
        raise InputError(unread)
    notes += unread
    if not names:
        raise InputError(f"{path}: names no class; write one for each number from 0 on")
    return _read_labels(place, root, dict.fromkeys(images), names, notes, keypoints)


def is_there(path: Path, part: str) -> bool:
    """Tell whether the images are there that a data.yaml names for a part; raise InputError if it cannot be read."""
    path = _absolute(path)
    content = read_yaml(path) or {}
    try:
        return bool([_resolve(path, content, text) for text in _texts(path, content, part)])
    except InputError:
        return False


def _read_labels(
    place: str, root: Path, images: Iterable[Path], names: list[str], notes: list[str], keypoints: int
) -> AnnotatedSet:
    found, problems, passed = [], Problems(), Passed()
    used: set[Path] = set()
    for image in images:
        name = image.relative_to(root).as_posix()
        label = next((file for file in _label_files(image) if file.is_file()), None)
        things: list[Thing] = []
        if label is None:
            passed.add("images have no file of labels, so they count as images without objects", name)
        else:
            if label in used:
                passed.add("images share their file of labels with another image", name)
            used.add(label)
            things = list(_things(label, names, keypoints, problems, passed))
        found.append(AnnotatedImage(name, things, are_shares=True))
    if found and not used:
        where = some("", [str(file) for file in _label_files(root / found[0].file_name)])
        raise InputError(f"{place}: none of {len(found)} images has a file of labels, such as {where}; add them")
    problems.raise_if_any(place, len(used))
    for folder in sorted({file.parent for file in used}):
        for file in sorted({file for ending in _ENDINGS for file in folder.glob(f"*{ending}")} - used):
            if not (is_hidden(file.name) or file.name in NAMES_FILES or file.with_suffix("").name in PARTS):
                passed.add("files of labels have no image among those taken, so they were left out", file.name)
    return AnnotatedSet(place, root, found, [*notes, *passed.notes(place)], tuple(names))


def _things(
    label: Path, names: list[str], keypoints: int, problems: Problems, passed: Passed
) -> Iterator[Thing]:  # keypoints: numbers behind a box
    try:
        lines = _lines(label)
    except InputError as error:
        problems.add("cannot be read", str(error))
        return
    classes: dict[float, str] = dict(enumerate(names))
    for number, line in enumerate(lines, start=1):
        place, fields = f"{label.name} line {number}", line.split()
        if not fields:
            continue
        try:
            first, *shares = map(float, fields)
        except ValueError:
            problems.add("a line has numbers alone, `class x y width height`", f"{place} ({cut(line)})")
            continue
        if keypoints and len(shares) == 4 + keypoints:
            passed.add("lines have keypoints, which were left out", place)
            del shares[4:]
        if first not in classes:
            kinds = f"a class is a number from 0 to {len(names) - 1}, which the {len(names)} names give"
            problems.add(f"{kinds}; correct it or add its name", f"{place} ({cut(fields[0])})")
        elif len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
            fix = "or an even number of polygon corners" if len(shares) != 5 else "without a score"
            problems.add(
                f"a line has five columns, `class x y width height`, {fix}", f"{place} ({len(fields)} columns)"
            )
        elif not all(-_BEYOND <= share <= 1 + _BEYOND for share in shares):
            problems.add(
                "shares of the image's size lie in 0..1; divide pixels by width and height", f"{place} ({cut(line)})"
            )
        else:
            if len(shares) > 4:
                passed.add("polygons were replaced by their boxes", place)
                left, top, right, bottom = min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2])
                box = left, top, right - left, bottom - top
            else:
                x, y, width, height = shares
                box = x - width / 2, y - height / 2, width, height
            yield Thing(place, classes[first], box)


def _class_names(path: Path, content: Mapping[str, Any]) -> list[str]:
    names = content["names"]
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    if isinstance(names, list) and any(isinstance(name, bool) for name in names):
        what = "yes, no, on, off, true and false are no texts in YAML"
        raise InputError(f"{path}: names is {cut(repr(names))}, as {what}; put such names in quotes")
    if not isinstance(names, list) or not all(isinstance(name, (str, int, float)) for name in names):
        raise InputError(f"{path}: names is {cut(repr(names))}; write a list, or 0: NAME, 1: NAME, ... without gaps")
    if content.get("nc") not in (None, len(names)):
        raise InputError(f"{path}: nc is {content['nc']}, but there are {len(names)} names; correct one of them")
    return _each_once(path, list(map(str, names)))


def _keypoint_numbers(path: Path, content: Mapping[str, Any]) -> int:
    """Return how many numbers of keypoints follow the box in a line of labels: 0 but for YOLO's pose data."""
    shape = content.get("kpt_shape", [0, 0])
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(one, int) for one in shape)):
        raise InputError(f"{path}: kpt_shape is {cut(repr(shape))}; write [number of keypoints, 2 or 3]")
    return int(shape[0] * shape[1])


def _each_once(path: Path, names: list[str]) -> list[str]:
    repeated = [name for name, number in Counter(names).items() if number > 1]
    if repeated:
        raise InputError(f"{path}: names has {some('', repeated)} twice; give each class its own name")
    return names


def _texts(path: Path, content: Mapping[str, Any], part: str) -> list[str]:
    value = content.get(part)
    texts: list[Any] = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise InputError(f"{path}: {part} is {cut(repr(value))}; write the folder of its images, or a list of them")
    return texts


def _resolve(path: Path, content: Mapping[str, Any], text: str) -> Path:
    """Return the folder or list that a text names: below `path`, the file's own folder, or without leading "../"."""
    base = path.parent / str(content.get("path") or "")
    inner = text.replace("\\", "/")
    while inner.startswith(("../", "./")):
        inner = inner.partition("/")[2]
    tried = [base / text, path.parent / text, path.parent / inner]  # Roboflow's ../train/images is beside the file
    found = next((one for one in map(_absolute, tried) if os.path.exists(one)), None)
    if found is None:
        raise InputError(
            f"{path}: {cut(text)!r} is not there, as {some('', list(dict.fromkeys(map(str, tried))))}; correct it"
        )
    return found


def _listed(path: Path, root: Path) -> list[Path]:
    """Return the images that a text file names, each on a line, relative to it or to the folder of the data.yaml."""
    found, missing = [], []
    for line in filter(None, map(str.strip, _lines(path))):
        tried = [path.parent / line, root / line, root / line.partition("/")[2]]  # CVAT writes data/ before each
        image = next((one for one in map(_absolute, tried) if os.path.isfile(one)), None)
        if image is None:
            missing.append(cut(line))
        else:
            found.append(image)
    if missing:
        raise InputError(f"{path}: {len(missing)} of its images are not there: {some('', missing)}; add them")
    return found


def _files_below(folder: Path) -> list[Path]:
    """Return the files of a folder and those below it, by name; those of an `images` folder alone where one is."""
    images = folder / "images"
    top = images if images.is_dir() else folder
    found = []
    for directory, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not is_hidden(name)]
        found += [Path(directory, name) for name in names if not is_hidden(name)]
    return sorted(found)


def _label_files(image: Path) -> list[Path]:
    """Return where an image's labels may be, first in `labels` in the place of the last `images`, then beside it."""
    found = [image]
    parts = list(image.parts)
    if places := [place for place, part in enumerate(parts[:-1]) if part == "images"]:
        parts[places[-1]] = "labels"
        found.insert(0, Path(*parts))
    return [path.with_suffix(ending) for ending in _ENDINGS for path in found]


def _absolute(path: Path) -> Path:
    """Return an absolute path without "..", with symbolic links as they are: they may lead anywhere."""
    return Path(os.path.abspath(path))


def _refuse_outside(path: Path, named: Sequence[Path]) -> None:
    outside = [str(one) for one in named if not one.is_relative_to(path.parent)]
    if outside:
        fix = f"move it to its images, or, where you trust it, add {FLAG}"
        raise InputError(f"{path}: names images outside of its folder, {some('', outside)}; {fix}")


def _lines(path: Path) -> list[str]:
    try:
        with open_regular(path, most=_LARGEST) as file:
            return file.read().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error})") from error
