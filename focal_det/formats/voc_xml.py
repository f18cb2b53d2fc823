"""An annotation file of Pascal VOC, read and checked."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from ..errors import InputError, cut, some
from ..files import open_regular
from .coco_checks import CLASS_NAME_RULE, is_class_name
from .image_files import TURNED, open_image, orientation
from .voc_folder import VocFolder

_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")  # float() also takes 1_0
_LARGEST = 2**22  # bytes of an annotation; one of 100 objects has 20 kB
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocObject(NamedTuple):
    """An object: its class, its corners xmin, ymin, xmax, ymax as in the file, and whether it is difficult."""

    name: str
    corners: tuple[float, ...]
    difficult: bool


class VocImage(NamedTuple):
    """An image: the names of its annotation file and its own file, its size in pixels, and its objects."""

    annotation: str
    file_name: str
    width: int
    height: int
    objects: list[VocObject]


class Problems:
    """Problems of many files, one line for each kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, list[str]] = {}

    def add(self, kind: str, detail: str) -> None:
        """Add a problem of a kind, which includes the fix, in the file that the detail names."""
        self._kinds.setdefault(kind, []).append(detail)

    def raise_if_any(self, set_name: str, files: int) -> None:
        """Raise InputError with all problems of a set of so many files, if there are any."""
        found = [(kind, len(details), some("", details)) for kind, details in self._kinds.items()]
        if found:
            raise InputError([f"{set_name}: {n} in {files} annotations: {kind}: {names}" for kind, n, names in found])


def read_annotation(folder: VocFolder, name: str, files: list[str], problems: Problems) -> VocImage | None:
    """Read an annotation and find its image, by the annotation's name or else by its <filename>.

    Args:
        name: of the annotation, without ".xml".
        files: images with that stem.
        problems: receives what is wrong, where None is returned or an object is left out.
    """
    path = folder.annotation_dir / f"{name}.xml"
    root = _read_xml(path, problems)
    if root is None:
        return None
    given = os.path.basename((root.findtext("filename") or "").strip().replace("\\", "/"))
    if len(files) != 1:  # no image of the annotation's name, or a.jpg beside a.png
        files = [given] if given and os.path.isfile(folder.image_dir / given) else files
    if not files:
        problems.add(f"no image of that name in {folder.image_dir}; add it or remove the annotation", path.name)
        return None
    if len(files) > 1:
        problems.add("several images of that name; name one in <filename>", f"{path.name} ({', '.join(files)})")
        return None
    size = _size(root, folder.image_dir / files[0], path.name, problems)
    objects = list(_objects(root, path.name, problems))
    return None if size is None else VocImage(path.name, files[0], *size, objects)


class _NoDocumentType(ElementTree.TreeBuilder):
    """Refuses <!DOCTYPE>, so that no entities can be defined, which could grow to any size or read other files."""

    def doctype(self, *_: object) -> None:
        raise _DocumentTypeError


class _DocumentTypeError(Exception):
    pass


def _read_xml(path: Path, problems: Problems) -> ElementTree.Element | None:
    try:
        with open_regular(path, most=_LARGEST) as file:
            root = ElementTree.parse(file, ElementTree.XMLParser(target=_NoDocumentType())).getroot()
    except FileNotFoundError:
        problems.add(f"no such file in {path.parent}; add it or remove its name from the split", path.name)
    except _DocumentTypeError:
        problems.add("has a <!DOCTYPE>, which is refused since it may define entities; remove it", path.name)
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:  # the last two of its encoding
        problems.add("cannot be read as XML; correct the file or remove it", f"{path.name} ({error})")
    else:
        if root.tag == "annotation":
            return root
        detail = f"{path.name} (<{cut(root.tag)}>)"
        problems.add("is not an annotation of VOC's; its first tag must be <annotation>", detail)
    return None


def _size(root: ElementTree.Element, image: Path, name: str, problems: Problems) -> tuple[int, int] | None:
    """Return width and height from <size>; where they are missing or 0, from the image's header."""
    texts = [(root.findtext(f"size/{side}") or "0").strip() for side in ("width", "height")]
    if not all(text.isascii() and text.isdecimal() and len(text) < 10 for text in texts):
        problems.add("<size> is not in pixels; correct or remove it", f"{name} ({' x '.join(map(cut, texts))})")
        return None
    width, height = (int(text) for text in texts)
    if width and height:
        return width, height
    try:
        with open_regular(image) as file, open_image(file) as opened:
            return (opened.height, opened.width) if orientation(opened) in TURNED else (opened.width, opened.height)
    except Exception as error:  # whatever a decoder may raise on somebody's file
        detail = f"{name} ({image.name}: {type(error).__name__})"
        problems.add("has no <size>, and its image cannot be opened; replace the image", detail)
        return None


def _objects(root: ElementTree.Element, name: str, problems: Problems) -> Iterator[VocObject]:
    for number, element in enumerate(root.findall("object"), start=1):
        here = f"{name} object {number}"
        class_name = (element.findtext("name") or "").strip()
        if not class_name:
            problems.add("an object without <name>; add its class", here)
        elif not is_class_name(class_name):
            problems.add(f"a <name> that cannot be shown; {CLASS_NAME_RULE}", f"{here} ({cut(repr(class_name))})")
        corners = [(element.findtext(f"bndbox/{corner}") or "").strip() for corner in _CORNERS]
        wrong = [f"{c} is {cut(repr(t))}" for c, t in zip(_CORNERS, corners, strict=True) if not _is_number(t)]
        if wrong:
            detail = f"{here} ({', '.join(wrong)})"
            problems.add("a <bndbox> needs four numbers xmin, ymin, xmax, ymax; correct it", detail)
        difficult = (element.findtext("difficult") or "0").strip() or "0"
        if difficult not in ("0", "1"):
            problems.add("<difficult> must be 0 or 1", f"{here} ({cut(repr(difficult))})")
        if class_name and not wrong:
            yield VocObject(class_name, tuple(map(_number, corners)), difficult == "1")


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and math.isfinite(float(text))


def _number(text: str) -> float:
    """Parse a number; whole ones stay integers, so that boxes appear in messages as they were written."""
    value = float(text)
    return int(value) if value.is_integer() else value
