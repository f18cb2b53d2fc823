"""CVAT's own XML, "CVAT for images 1.1": annotations.xml beside or above a folder of images.

Boxes are taken, turned ones and polygons as the boxes around them; masks, points and other shapes are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from ...errors import InputError, cut
from ...files import open_regular
from ..file_names import ImageFinder
from ..voc_xml import Problems, parse_xml
from .annotated import AnnotatedImage, AnnotatedSet, Passed, Thing, box_around, set_of, size_of, turned

_LARGEST = 2**32  # bytes
_NO_SHAPES = ("tag", "attribute")


def read_cvat(path: Path, image_dir: Path) -> AnnotatedSet:
    """Read a file; the images need not be there.

    Args:
        image_dir: the folder that the images are below.

    Raises:
        InputError: it cannot be read, is of a video, or has shapes without label or coordinates, by image and number.
    """
    try:
        with open_regular(path, most=_LARGEST) as file:
            root = parse_xml(file)
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:  # the last two of its encoding
        raise InputError(f"{path}: cannot be read as XML ({error})") from error
    elements = root.findall("image")
    if not elements:
        what = "tracks of a video" if root.find("track") is not None else "no <image>"
        raise InputError(f"{path}: has {what}; export as 'CVAT for images 1.1', with images")
    finder, problems, passed = ImageFinder(image_dir), Problems(), Passed()
    images = []
    for element in elements:
        given = element.get("name", "")
        width, height = (
            int(text) if (text := element.get(side, "")).isdecimal() and len(text) < 10 else 0
            for side in ("width", "height")
        )
        things = list(_things(element, given, problems, passed))
        images.append(AnnotatedImage(finder.find(given, path.parent), things, size_of(width, height)))
    declared = [(name.text or "").strip() for name in root.findall("meta//labels/label/name")]
    return set_of(path, finder, images, len(images), problems, passed, tuple(dict.fromkeys(filter(None, declared))))


def _things(image: ElementTree.Element, name: str, problems: Problems, passed: Passed) -> Iterator[Thing]:
    for number, shape in enumerate(image, start=1):
        place = f"{name} {shape.tag} {number}"
        label = shape.get("label", "").strip()
        if shape.tag not in ("box", "polygon"):
            if shape.tag not in _NO_SHAPES:
                passed.add(
                    f"shapes are neither boxes nor polygons but of kind {cut(shape.tag)}, and were left out", place
                )
            continue
        try:
            if shape.tag == "box":
                points, degrees = _corners(shape), float(shape.get("rotation", 0)) % 360  # of inf that is NaN
            else:
                points, degrees = [_pair(text) for text in shape.attrib["points"].split(";")], 0.0
        except (KeyError, ValueError):
            problems.add("a box needs xtl, ytl, xbr, ybr, a polygon points", place)
            continue
        if not label:
            problems.add("a shape needs a label", place)
            continue
        if shape.tag == "polygon":
            passed.add("polygons were replaced by their boxes", place)
        if degrees:
            passed.add("turned boxes were replaced by the upright boxes around them", place)
            points = turned(points, degrees, [sum(one) / 4 for one in zip(*points, strict=True)])
        yield Thing(place, label, box_around(points))


def _corners(shape: ElementTree.Element) -> list[tuple[float, float]]:
    left, top, right, bottom = (float(shape.attrib[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _pair(text: str) -> tuple[float, float]:
    x, y = map(float, text.split(","))
    return x, y
