"""One annotation of Pascal VOC, as it stands in its XML file."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from ..errors import InputError, cut, some
from .coco_checks import CLASS_NAME_RULE, is_class_name
from .exif import TURNED, orientation
from .folders import open_regular
from .picture_files import open_picture
from .voc_splits import VocFolder

_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")  # Python takes 1_0 for one too
_LARGEST = 2**22  # bytes of an annotation; one of 100 objects has 20 kB
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocObject(NamedTuple):
    """An object: its class, its corners (xmin, ymin, xmax, ymax) as the file gives them, whether it is difficult."""

    name: str
    corners: tuple[float, ...]
    difficult: bool


class VocPicture(NamedTuple):
    """A picture: its annotation file and its own, both by name, its size in pixels, and its objects."""

    annotation: str
    file_name: str
    width: int
    height: int
    objects: list[VocObject]


class Problems:
    """Problems of many files, one line for each kind.

    Args:
        place: what messages call the set.
        files: how many there are.
    """

    def __init__(self, place: str, files: int) -> None:
        self._place, self._files = place, files
        self._kinds: dict[str, list[str]] = {}

    def add(self, kind: str, detail: str) -> None:
        """A problem of a kind, which also says how to mend it, in the file that the detail names."""
        self._kinds.setdefault(kind, []).append(detail)

    def raise_if_any(self) -> None:
        """Raise an InputError with all of them."""
        if self._kinds:
            raise InputError(
                [
                    f"{self._place}: {len(details)} in {self._files} annotations: {kind}: {some('', details)}"
                    for kind, details in self._kinds.items()
                ]
            )


def read_annotation(folder: VocFolder, name: str, files: list[str], problems: Problems) -> VocPicture | None:
    """One annotation and its picture, looked for by the annotation's name, else by what its <filename> says.

    Args:
        name: of the annotation, without ".xml".
        files: pictures of that name.
        problems: gets what is wrong.

    Returns:
        None if the file or its picture cannot be used.
    """
    path = folder.annotation_dir / f"{name}.xml"
    root = _read_xml(path, problems)
    if root is None:
        return None
    given = os.path.basename((root.findtext("filename") or "").strip().replace("\\", "/"))
    if len(files) != 1:  # none of the annotation's name, or a.jpg beside a.png
        files = [given] if given and os.path.isfile(folder.image_dir / given) else files
    if not files:
        problems.add(f"no picture of that name in {folder.image_dir}; add it or take the annotation out", path.name)
        return None
    if len(files) > 1:
        problems.add("several pictures of that name; say which in <filename>", f"{path.name} ({', '.join(files)})")
        return None
    size = _size(root, folder.image_dir / files[0], path.name, problems)
    objects = list(_objects(root, path.name, problems))
    return None if size is None else VocPicture(path.name, files[0], *size, objects)


class _NoDocumentType(ElementTree.TreeBuilder):
    """Refuses <!DOCTYPE>, without which there are no entities that could grow to any size or read other files."""

    def doctype(self, *_: object) -> None:
        raise _DocumentTypeError


class _DocumentTypeError(Exception):
    pass


def _read_xml(path: Path, problems: Problems) -> ElementTree.Element | None:
    try:
        with open_regular(path, most=_LARGEST) as file:
            root = ElementTree.parse(file, ElementTree.XMLParser(target=_NoDocumentType())).getroot()
    except FileNotFoundError:
        problems.add(f"no such file in {path.parent}; add it or take its name out of the split", path.name)
    except _DocumentTypeError:
        problems.add("has a <!DOCTYPE>, which is refused since it may define entities; take it out", path.name)
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:  # the last two of its encoding
        problems.add("cannot be read as XML; correct the file or take it out", f"{path.name} ({error})")
    else:
        if root.tag == "annotation":
            return root
        problems.add(
            "is no annotation of VOC's; its first tag must be <annotation>", f"{path.name} (<{cut(root.tag)}>)"
        )
    return None


def _size(root: ElementTree.Element, picture: Path, name: str, problems: Problems) -> tuple[int, int] | None:
    """Width and height from <size>; where they are missing or 0, from the picture's header."""
    texts = [(root.findtext(f"size/{side}") or "0").strip() for side in ("width", "height")]
    if not all(text.isascii() and text.isdecimal() and len(text) < 10 for text in texts):
        problems.add("<size> is not in pixels; correct it or take it out", f"{name} ({' x '.join(map(cut, texts))})")
        return None
    width, height = (int(text) for text in texts)
    if width and height:
        return width, height
    try:
        with open_regular(picture) as file, open_picture(file) as opened:
            return (opened.height, opened.width) if orientation(opened) in TURNED else (opened.width, opened.height)
    except Exception as error:  # whatever a decoder may raise on somebody's file
        problems.add(
            "has no <size>, and its picture cannot be opened; replace the picture",
            f"{name} ({picture.name}: {type(error).__name__})",
        )
        return None


def _objects(root: ElementTree.Element, name: str, problems: Problems) -> Iterator[VocObject]:
    for place, element in enumerate(root.findall("object"), start=1):
        here = f"{name} object {place}"
        class_name = (element.findtext("name") or "").strip()
        if not class_name:
            problems.add("an object without <name>; add its class", here)
        elif not is_class_name(class_name):
            problems.add(f"a <name> that cannot be shown; {CLASS_NAME_RULE}", f"{here} ({cut(repr(class_name))})")
        corners = [(element.findtext(f"bndbox/{corner}") or "").strip() for corner in _CORNERS]
        wrong = [f"{c} is {cut(repr(t))}" for c, t in zip(_CORNERS, corners, strict=True) if not _is_number(t)]
        if wrong:
            problems.add(
                "a <bndbox> needs four numbers xmin, ymin, xmax, ymax; correct it", f"{here} ({', '.join(wrong)})"
            )
        difficult = (element.findtext("difficult") or "0").strip() or "0"
        if difficult not in ("0", "1"):
            problems.add("<difficult> must be 0 or 1", f"{here} ({cut(repr(difficult))})")
        if class_name and not wrong:
            x0, y0, x1, y1 = (_number(text) for text in corners)
            yield VocObject(class_name, (x0, y0, x1, y1), difficult == "1")


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and math.isfinite(float(text))


def _number(text: str) -> float:
    """Whole numbers stay whole, so that the boxes read as they were written."""
    value = float(text)
    return int(value) if value.is_integer() else value
