"""LabelMe's JSON files, one for each image: rectangles, and the boxes of polygons, circles and masks.

`imagePath` is relative to the file; images are also found by the file's own name. `imageData` is not read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import cut
from ...files import open_regular
from ...plain_data import parse_json
from ..coco_checks import is_number
from ..file_names import ImageFinder
from ..voc_xml import Problems
from .annotated import (
    AnnotatedImage,
    AnnotatedSet,
    Passed,
    Thing,
    box_around,
    files_of,
    folders_of,
    set_of,
    size_of,
)

# Shapes with a box, by what a note calls several of them; a mask's points are its box's corners already.
_KINDS = {
    "rectangle": "",
    "mask": "masks",
    "polygon": "polygons",
    "circle": "circles",
    "rotation": "turned rectangles",  # X-AnyLabeling's, with four corners
}
_LARGEST = 2**28  # bytes of a file; imageData has a third more than the image


def read_labelme(folder: Path, image_dir: Path) -> AnnotatedSet:
    """Read the files of a folder and of those in it, if these are no parts of their own; images may be anywhere.

    Args:
        image_dir: the folder that the images are below.

    Raises:
        InputError: every problem, the files named: what is not JSON, shapes without label or points.
    """
    finder, problems, passed = ImageFinder(image_dir), Problems(), Passed()
    images, files = [], [path for one in folders_of(folder) for path in files_of(one, ".json")]
    for path in files:
        try:
            with open_regular(path, most=_LARGEST) as file:
                content = parse_json(file.read(), change=_without_pixels)
        except (OSError, ValueError) as error:
            problems.add("cannot be read as JSON; correct the file or remove it", f"{path.name} ({cut(error)})")
            continue
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            passed.add('JSON files have no "shapes", so they are not LabelMe\'s and were left out', path.name)
            continue
        given = str(content.get("imagePath") or path.with_suffix("").name)
        name = finder.find(given, path.parent, path.stem)  # the last where it was renamed together with its file
        if content.get("imageData") and name not in finder.names:
            problems.add("its image is in the file alone, as imageData; write it to a file of its imagePath", path.name)
        things = list(_things(path.name, content["shapes"], problems, passed))
        images.append(AnnotatedImage(name, things, size_of(content.get("imageWidth"), content.get("imageHeight"))))
    taken = {image.file_name for image in images}
    near = {os.path.dirname(name) for name in taken}
    for name in sorted(finder.names - taken):
        if os.path.dirname(name) in near:
            passed.add("images have no JSON file, so they were left out", name)
    return set_of(folder, finder, images, len(files), problems, passed)


def _things(file: str, shapes: list[Any], problems: Problems, passed: Passed) -> Iterator[Thing]:
    for number, shape in enumerate(shapes, start=1):
        place = f"{file} shape {number}"
        kind = (shape.get("shape_type") or "polygon") if isinstance(shape, dict) else ""
        if kind and kind not in _KINDS:
            passed.add(f"shapes are {cut(kind)}s, which have no box, and were left out", place)
            continue
        label, points = (shape.get("label"), shape.get("points")) if kind else (None, None)
        if not isinstance(label, (str, int)) or not str(label).strip():
            problems.add('a shape needs a "label"; add its class', place)
        elif not (isinstance(points, list) and len(points) >= 2 and all(map(_is_point, points))):
            problems.add('a shape needs "points", two or more [x, y]; draw it anew', f"{place} ({cut(points)})")
        else:
            if _KINDS[kind]:
                passed.add(f"{_KINDS[kind]} were replaced by their boxes", place)
            if kind == "circle":  # its centre, and a point on it
                (x, y), radius = points[0], math.dist(*points[:2])
                points = [(x - radius, y - radius), (x + radius, y + radius)]
            yield Thing(place, str(label).strip(), box_around(points))


def _without_pixels(read: dict[str, Any]) -> None:
    if "imageData" in read:
        read["imageData"] = bool(read["imageData"])


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))
