"""Pascal VOC's folders as people have them, read into COCO's form.

A set is a folder with Annotations/<name>.xml, a file for each picture; JPEGImages/<name>.jpg (or another format); and
ImageSets/Main/<split>.txt, a name on each line. Annotations and pictures may also lie side by side in the folder.

Boxes. VOC gives corners as numbers of pixels, counted from 1, and both belong to the object: xmin=1, xmax=W is the
whole width of W pixels. With pixel number n from n-1 to n, that is x = xmin - 1 and width = xmax - xmin + 1.
Detectron2's own loader makes the same boxes, by taking 1 from xmin and ymin alone. Tools that count from 0 write boxes
that come out one pixel up and left of theirs and one larger; they are clipped to the picture.

Difficult objects are left out of training, and in evaluation count neither as missed nor, if found, as false, as in
VOC's own rules. COCO says that by iscrowd=1, under which a detection is compared by the part of it that lies on the
object, which is laxer than IoU. Detectron2's loader trains on them as on any other, and takes pictures in .jpg and
classes in a given order only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from PIL import Image
from tqdm import tqdm

from ..errors import InputError, some
from .coco_json import CocoFile, check_coco
from .voc_splits import VocFolder, find_folder, pictures_by_stem, read_split

_SHOW_PROGRESS_FROM = 5000  # annotations; fewer take a second or two
_ORIENTATION = 0x0112  # EXIF; from 5 on width and height are swapped, and Detectron2 swaps them back
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


class VocSet(NamedTuple):
    """A set that was read.

    place: what messages call it.
    image_dir: the folder of its pictures.
    notes: what was taken of the folder, one line each.
    """

    place: Path
    image_dir: Path
    pictures: list[VocPicture]
    notes: list[str]

    @property
    def class_names(self) -> set[str]:
        """Of all objects, the difficult too."""
        return {thing.name for picture in self.pictures for thing in picture.objects}


def read_voc(folder: str | os.PathLike[str], split: str | None, usual_splits: Sequence[str] = ("train",)) -> VocSet:
    """Read the annotations of a split. Pictures are only looked for, and opened where the XML has no size.

    Args:
        split: of ImageSets/Main; None for the first of the usual ones that is there, or for all annotations where
            there are no splits.

    Raises:
        InputError: every problem, the files named: no such folder or split, names without annotation or picture,
            repeated names, XML that cannot be read or declares a document type, fields that are missing or no numbers.
    """
    found = find_folder(folder)
    names, place, notes = read_split(found, split, usual_splits)
    by_stem = pictures_by_stem(found.image_dir)
    pictures, problems = [], _Problems(place, len(names))
    for name in tqdm(names, "reading annotations", disable=len(names) < _SHOW_PROGRESS_FROM):
        picture = _read_picture(found, name, by_stem.get(name, []), problems)
        if picture is not None:
            pictures.append(picture)
    problems.raise_if_any()
    return VocSet(Path(place), found.image_dir, pictures, notes)


def check_voc(voc: VocSet, class_names: Sequence[str], *, decode: bool = False, skip_bad_images: int = 0) -> CocoFile:
    """Check a set in COCO's form, as any COCO file is.

    Args:
        class_names: all, in the order of the labels; their category ids are 1..K.
        decode, skip_bad_images: see `read_coco`.

    Raises:
        InputError: every problem that `check_coco` finds; classes that are not among the given; no classes.
    """
    if not class_names:
        raise InputError(f"{voc.place}: no object in any annotation, so there are no classes; annotate one")
    unknown = sorted(voc.class_names.difference(class_names))
    if unknown:
        raise InputError(
            f"{voc.place}: {some('class', unknown)} is not among {', '.join(class_names)}; "
            "correct the <name> of these objects"
        )
    raw = as_coco(voc, class_names)
    checked = check_coco(raw, voc.place, voc.image_dir, decode=decode, skip_bad_images=skip_bad_images)
    return checked._replace(notes=[*voc.notes, *checked.notes])


def as_coco(voc: VocSet, class_names: Sequence[str]) -> dict[str, Any]:
    """The set as a COCO file would hold it.

    An annotation's id is a text that names its XML file, for the messages; `check_coco` replaces it by a number.
    """
    category_ids = {name: label + 1 for label, name in enumerate(class_names)}
    images, annotations = [], []
    for image_id, picture in enumerate(voc.pictures, start=1):
        size = {"width": picture.width, "height": picture.height}
        images.append({"id": image_id, "file_name": picture.file_name, **size})
        for place, thing in enumerate(picture.objects, start=1):
            xmin, ymin, xmax, ymax = thing.corners
            annotations.append(
                {
                    "id": f"{picture.annotation} object {place}",
                    "image_id": image_id,
                    "category_id": category_ids[thing.name],
                    "bbox": [xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1],
                    "iscrowd": int(thing.difficult),
                }
            )
    categories = [{"id": category_id, "name": name} for name, category_id in category_ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


class _Problems:
    """Problems of many files, one line for each kind."""

    def __init__(self, place: str, files: int) -> None:
        self._place, self._files = place, files
        self._kinds: dict[str, list[str]] = {}

    def add(self, kind: str, detail: str) -> None:
        self._kinds.setdefault(kind, []).append(detail)

    def raise_if_any(self) -> None:
        if self._kinds:
            raise InputError(
                [
                    f"{self._place}: {len(details)} in {self._files} annotations: {kind}: {some('', details)}"
                    for kind, details in self._kinds.items()
                ]
            )


def _read_picture(folder: VocFolder, name: str, files: list[str], problems: _Problems) -> VocPicture | None:
    """One annotation and its picture, looked for by the annotation's name, else by what its <filename> says."""
    path = folder.annotation_dir / f"{name}.xml"
    root = _read_xml(path, problems)
    if root is None:
        return None
    given = os.path.basename((root.findtext("filename") or "").strip().replace("\\", "/"))
    if len(files) != 1:  # none of the annotation's name, or a.jpg beside a.png
        files = [given] if given and (folder.image_dir / given).is_file() else files
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


def _read_xml(path: Path, problems: _Problems) -> ElementTree.Element | None:
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_NoDocumentType())).getroot()
    except FileNotFoundError:
        problems.add(f"no such file in {path.parent}; add it or take its name out of the split", path.name)
    except _DocumentTypeError:
        problems.add("has a <!DOCTYPE>, which is refused since it may define entities; take it out", path.name)
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:  # the last two of its encoding
        problems.add("cannot be read as XML; correct the file or take it out", f"{path.name} ({error})")
    else:
        if root.tag == "annotation":
            return root
        problems.add("is no annotation of VOC's; its first tag must be <annotation>", f"{path.name} (<{root.tag}>)")
    return None


def _size(root: ElementTree.Element, picture: Path, name: str, problems: _Problems) -> tuple[int, int] | None:
    """Width and height from <size>; where they are missing or 0, from the picture's header."""
    texts = [(root.findtext(f"size/{side}") or "0").strip() for side in ("width", "height")]
    if not all(text.isascii() and text.isdecimal() and len(text) < 10 for text in texts):
        problems.add("<size> is not in pixels; correct it or take it out", f"{name} ({' x '.join(texts)})")
        return None
    width, height = (int(text) for text in texts)
    if width and height:
        return width, height
    try:
        with Image.open(picture) as opened:
            turned = opened.getexif().get(_ORIENTATION, 1) >= 5
            return (opened.height, opened.width) if turned else (opened.width, opened.height)
    except Exception as error:  # whatever a decoder may raise on somebody's file
        problems.add(
            "has no <size>, and its picture cannot be opened; replace the picture",
            f"{name} ({picture.name}: {type(error).__name__})",
        )
        return None


def _objects(root: ElementTree.Element, name: str, problems: _Problems) -> Iterator[VocObject]:
    for place, element in enumerate(root.findall("object"), start=1):
        here = f"{name} object {place}"
        class_name = (element.findtext("name") or "").strip()
        if not class_name:
            problems.add("an object without <name>; add its class", here)
        corners = [(element.findtext(f"bndbox/{corner}") or "").strip() for corner in _CORNERS]
        wrong = [f"{c} is {t!r}" for c, t in zip(_CORNERS, corners, strict=True) if not _is_number(t)]
        if wrong:
            problems.add(
                "a <bndbox> needs four numbers xmin, ymin, xmax, ymax; correct it", f"{here} ({', '.join(wrong)})"
            )
        difficult = (element.findtext("difficult") or "0").strip() or "0"
        if difficult not in ("0", "1"):
            problems.add("<difficult> must be 0 or 1", f"{here} ({difficult!r})")
        if class_name and not wrong:
            x0, y0, x1, y1 = (_number(text) for text in corners)
            yield VocObject(class_name, (x0, y0, x1, y1), difficult == "1")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _number(text: str) -> float:
    """Whole numbers stay whole, so that the boxes read as they were written."""
    value = float(text)
    return int(value) if value.is_integer() else value
