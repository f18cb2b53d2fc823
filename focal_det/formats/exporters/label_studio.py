"""Label Studio's JSON and JSON-MIN exports: rectangles with labels, in percent of the image's size.

The export names images as they were uploaded or stored, such as /data/upload/3/1a2b3c4d-a.jpg: they are found by the
end of that name, with the prefix of an upload or without.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ...errors import InputError, cut
from ...files import open_regular
from ...plain_data import parse_json
from ..coco import LARGEST_JSON
from ..coco_checks import is_coordinate
from ..file_names import ImageFinder
from ..image_files import SUFFIXES
from ..voc_xml import Problems
from .annotated import (
    AnnotatedImage,
    AnnotatedSet,
    Passed,
    Thing,
    box_around,
    set_of,
    size_of,
    turned,
)

_UPLOAD = re.compile(r"^[0-9a-f]{8}-")


def read_label_studio(path: Path, image_dir: Path) -> AnnotatedSet:
    """Read an export; the images need not be there.

    Args:
        image_dir: the folder that the images are below.

    Raises:
        InputError: it cannot be read or is no list of tasks; tasks that name no image, regions without label or
            numbers, by task.
    """
    try:
        with open_regular(path, most=LARGEST_JSON) as file:
            tasks = parse_json(file.read())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({cut(error, 200)})") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise InputError(f"{path}: is no list of tasks; export as JSON or JSON-MIN")
    finder, problems, passed = ImageFinder(image_dir), Problems(), Passed()
    images = []
    for number, task in enumerate(tasks):
        place = f"task {task.get('id', number)}"
        given = _image_name(task.get("data", task))
        regions = _regions(task, place, passed)
        if given is None:
            problems.add("a task names no image", place)
        elif regions is not None:
            name = finder.find(given, path.parent, _UPLOAD.sub("", os.path.basename(given)))
            sized = (size_of(region.get("original_width"), region.get("original_height")) for region in regions)
            size = next(filter(None, sized), None)
            things = list(_things(regions, place, size or (1, 1), problems, passed))
            images.append(AnnotatedImage(name, things, size, are_shares=True))
    return set_of(path, finder, images, len(tasks), problems, passed)


def _regions(task: Mapping[str, Any], place: str, passed: Passed) -> list[dict[str, Any]] | None:
    """Return the regions of the first annotation that was not skipped; None for a task without one."""
    if "data" not in task:  # JSON-MIN: each control of the labelling is a field of the task
        lists = [value for value in task.values() if isinstance(value, list)]
        return [region for one in lists for region in one if isinstance(region, dict)]
    given = task.get("annotations")
    done = [one for one in given if _is_done(one)] if isinstance(given, list) else []
    if not done:
        passed.add("tasks have no annotation, or one that was skipped, so they were left out", place)
        return None
    if len(done) > 1:
        passed.add("tasks have several annotations, of which the first was taken", place)
    return [region for region in done[0]["result"] if isinstance(region, dict)]


def _is_done(annotation: Any) -> bool:
    return (
        isinstance(annotation, dict)
        and isinstance(annotation.get("result"), list)
        and not annotation.get("was_cancelled")
    )


def _things(
    regions: Sequence[Mapping[str, Any]], place: str, size: tuple[int, int], problems: Problems, passed: Passed
) -> Iterator[Thing]:
    for region in regions:
        value: Any = region.get("value", region)
        value = value if isinstance(value, dict) else {}
        kind = next((key for key in ("rectanglelabels", "polygonlabels") if key in value), None)
        here = f"{place} region {region.get('id', '')}".strip()
        if kind is None:
            passed.add(f"regions are no boxes but of kind {cut(region.get('type', '?'))}, and were left out", here)
            continue
        labels = value[kind]
        if (
            not isinstance(labels, list)
            or not labels
            or not all(isinstance(label, str) and label.strip() for label in labels)
        ):
            problems.add("a region needs a label", here)
            continue
        if region.get("image_rotation") or value.get("image_rotation"):
            problems.add("the image was turned in Label Studio; turn the file itself, and label it upright", here)
            continue
        points, angle = _points(value), value.get("rotation", 0)
        if points is None or not is_coordinate(angle):
            problems.add(
                "a rectangle needs x, y, width, height, a polygon points, in percent",
                here,
            )
            continue
        if kind == "polygonlabels":
            passed.add("polygons were replaced by their boxes", here)
        if angle:
            passed.add("turned boxes were replaced by the upright boxes around them", here)
            width, height = size
            in_pixels = [(x * width, y * height) for x, y in points]
            points = [(x / width, y / height) for x, y in turned(in_pixels, angle, in_pixels[0])]
        for label in labels:
            yield Thing(here, label.strip(), box_around(points))


def _points(value: Mapping[str, Any]) -> list[tuple[float, float]] | None:
    """Return the corners of a rectangle, the upper left one first, or a polygon, as shares; None if they are none."""
    pairs = value.get("points")
    if pairs is None:
        sides: list[Any] = [value.get(name) for name in ("x", "y", "width", "height")]
        if not all(map(is_coordinate, sides)):
            return None
        x, y, width, height = sides
        pairs = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    if not isinstance(pairs, list) or not pairs:
        return None
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(is_coordinate, pair)) for pair in pairs):
        return None
    return [(x / 100, y / 100) for x, y in pairs]


def _image_name(data: Any) -> str | None:
    """Return the first value that ends like the name of an image, without address and query."""
    for value in data.values() if isinstance(data, dict) else ():
        if isinstance(value, str):
            name = unquote(value.rpartition("?d=")[2].partition("?")[0])
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                return name
    return None
