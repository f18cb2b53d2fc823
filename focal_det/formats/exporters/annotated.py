"""Sets whose files name the class of each object: what their readers return, and how it becomes COCO's form.

A reader of a format only says which images there are and what is in them. Sizes that a format does not have come from
the images' headers; an image that cannot be found or opened keeps its place, so that the check of all images names it.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ...errors import InputError, some
from ...files import is_hidden, open_regular
from ..coco import CocoFile, check_coco
from ..coco_checks import CLASS_NAME_RULE, is_class_name
from ..file_names import ImageFinder
from ..image_files import TURNED, open_image, orientation
from ..voc_xml import Problems

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
_PART = re.compile(r"(?<![a-z])(train|valid(?:ation)?|val|test)(?:ing)?(?![a-z])")
_THREADS = 8  # they wait for the disk
_UNKNOWN = (1, 1)  # the size of an image that cannot be opened, which the check of the images refuses
# Where a PNG may have its orientation; to look for it, Pillow decodes the whole image.
_PNG_EXIF = re.compile(rb"eXIf|type exif|adobe\.xmp")


class Thing(NamedTuple):
    """An object.

    place: of it in its file, for messages.
    name: its class.
    box: x, y, width, height in pixels of the image, or as shares of its size, see `AnnotatedImage`.
    is_ignored: whether it is neither trained on nor counted.
    """

    place: str
    name: str
    box: tuple[float, float, float, float]
    is_ignored: bool = False


class AnnotatedImage(NamedTuple):
    """An image and its objects.

    file_name: relative to the set's `image_dir`.
    size: width and height in pixels; None to take them from the image.
    are_shares: whether boxes are shares of width and height, from 0 to 1.
    """

    file_name: str
    things: list[Thing]
    size: tuple[int, int] | None = None
    are_shares: bool = False


class AnnotatedSet(NamedTuple):
    """A set as a reader found it.

    place: what messages call it.
    notes: what was taken, converted or passed over, a line each.
    declared: the classes in the order of the format's own numbers, also those without objects; () if it has none.
    """

    place: str
    image_dir: Path
    images: list[AnnotatedImage]
    notes: list[str]
    declared: tuple[str, ...] = ()

    @property
    def class_names(self) -> set[str]:
        """The classes of all objects, and those declared."""
        return {thing.name for image in self.images for thing in image.things}.union(self.declared)


class Passed:
    """Counts what a reader converts or passes over, for one note a kind, with the first places."""

    def __init__(self) -> None:
        self._kinds: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, place: str) -> None:
        """Count one of a kind, which is the rest of the sentence "3 ..."."""
        self._kinds[kind].append(place)

    def notes(self, place: str) -> list[str]:
        """Return a note on each kind."""
        return [f"{place}: {len(found)} {kind}: {some('', found)}" for kind, found in self._kinds.items()]


def size_of(width: Any, height: Any) -> tuple[int, int] | None:
    """Return an image's size as its annotations state it, in pixels; None if they do not."""
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return width, height
    return None


def box_around(points: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """Return x, y, width, height of the smallest box around points (x, y)."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def turned(points: Sequence[Sequence[float]], degrees: float, pivot: Sequence[float]) -> list[tuple[float, float]]:
    """Turn points (x, y) around a pivot, clockwise as seen, since y points down."""
    angle = math.radians(degrees % 360)  # nan for inf, which the check of the boxes names
    cos, sin = math.cos(angle), math.sin(angle)
    (px, py), away = pivot, [(x - pivot[0], y - pivot[1]) for x, y in points]
    return [(px + dx * cos - dy * sin, py + dx * sin + dy * cos) for dx, dy in away]


def part_of(name: str) -> Part | None:
    """Return the part that the name of a file or folder says."""
    found = _PART.search(name.lower())
    if found is None:
        return None
    return next(part for part in PARTS if found[1].startswith(part))


def folders_of(folder: Path) -> list[Path]:
    """Return a folder and those in it that are neither hidden nor a part of their own, sorted."""
    inner = (one for one in folder.iterdir() if one.is_dir() and not is_hidden(one.name))
    return [folder, *sorted(one for one in inner if not part_of(one.name))]


def files_of(folder: Path, suffix: str = "") -> list[Path]:
    """Return the files of a folder that are not hidden, of one suffix in any case or of all, sorted."""
    files = (one for one in folder.iterdir() if one.is_file() and not is_hidden(one.name))
    return sorted(one for one in files if suffix in ("", one.suffix.lower()))


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height as EXIF turns the image, from its header; (1, 1) if it cannot be opened."""
    try:
        with open_regular(path) as file, open_image(file) as opened:
            if opened.format == "PNG" and not _PNG_EXIF.search(path.read_bytes()):
                return opened.size
            return opened.size[::-1] if orientation(opened) in TURNED else opened.size
    except Exception:  # whatever a decoder may raise on somebody's file, which the check of the images names
        return _UNKNOWN


def check_annotated(found: AnnotatedSet, class_names: Sequence[str], **image_checks: Any) -> CocoFile:
    """Check a set in COCO's form, like any COCO file.

    Args:
        class_names: all, in the order of the labels; their category ids become 1..K.
        image_checks: keyword arguments of `check_coco`.

    Raises:
        InputError: every problem that `check_coco` finds; no images; no classes; a class that cannot be shown.
    """
    if not found.images:
        raise InputError(f"{found.place}: there is no image; put images there")
    if not class_names:
        raise InputError(f"{found.place}: no annotation has an object, so there are no classes; annotate one")
    hidden = [repr(name) for name in class_names if not is_class_name(name)]
    if hidden:
        raise InputError(f"{found.place}: {some('class', hidden)} cannot be shown; {CLASS_NAME_RULE}")
    checked = check_coco(_as_coco(found, class_names), found.place, found.image_dir, **image_checks)
    return checked._replace(notes=[*found.notes, *checked.notes])


def _as_coco(found: AnnotatedSet, class_names: Sequence[str]) -> dict[str, Any]:
    """Convert the set to the contents of a COCO file, whose annotations' ids are their places, for messages."""
    category_ids = {name: label + 1 for label, name in enumerate(class_names)}
    images, annotations = [], []
    for image_id, (image, (width, height)) in enumerate(zip(found.images, _sizes(found), strict=True), start=1):
        images.append({"id": image_id, "file_name": image.file_name, "width": width, "height": height})
        scale_x, scale_y = (width, height) if image.are_shares else (1, 1)
        for thing in image.things:
            x, y, w, h = thing.box
            row = {"id": thing.place, "image_id": image_id, "category_id": category_ids[thing.name]}
            box = [x * scale_x, y * scale_y, w * scale_x, h * scale_y]
            annotations.append({**row, "bbox": box, "iscrowd": int(thing.is_ignored)})
    categories = [{"id": category_id, "name": name} for name, category_id in category_ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _sizes(found: AnnotatedSet) -> Iterable[tuple[int, int]]:
    """Return width and height of each image, which several threads read where the annotations do not have them."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda image: image.size or image_size(found.image_dir / image.file_name), found.images))


def joined_images(images: Iterable[AnnotatedImage]) -> list[AnnotatedImage]:
    """Join the objects of images that a format lists several times, in the order in which they come first."""
    found: dict[str, AnnotatedImage] = {}
    for image in images:
        first = found.setdefault(image.file_name, image)
        if first is not image:
            first.things.extend(image.things)
    return list(found.values())


def set_of(
    place: Path,
    finder: ImageFinder,
    images: Sequence[AnnotatedImage],
    number: int,
    problems: Problems,
    passed: Passed,
    declared: Sequence[str] = (),
) -> AnnotatedSet:
    """Return the set of what a reader found, each image once.

    Args:
        number: of its annotations, for the messages.

    Raises:
        InputError: all its problems, if there are any.
    """
    for pair in finder.ambiguous():
        problems.add("several names fit one file alone; add the images that are missing, or correct the names", pair)
    problems.raise_if_any(str(place), number)
    for name, times in Counter(image.file_name for image in images).items():
        if times > 1:
            passed.add("images are annotated several times, and their objects were joined", name)
    notes = [f"{place}: {note}" for note in finder.notes()] + passed.notes(str(place))
    return AnnotatedSet(str(place), finder.folder, joined_images(images), notes, tuple(declared))
