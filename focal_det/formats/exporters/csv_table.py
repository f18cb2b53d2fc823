"""CSV with a box on each line: Open Images' columns, those of other tools by their names, or none.

Without a header the columns are path, x1, y1, x2, y2, class; by a header, width and height may take the place of x2
and y2. Open Images' coordinates (ImageID, LabelName) are shares of the image's size, all others pixels. A line with an
image alone, whose other fields are empty, has no object.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import InputError, cut
from ...files import open_regular
from ..file_names import ImageFinder
from ..voc_xml import Problems
from .annotated import AnnotatedImage, AnnotatedSet, Passed, Thing, joined_images, set_of, size_of

_LARGEST = 2**32  # bytes; Open Images' boxes to train on have 1.4 GB
# What the columns are called, without regard to case and to what is no letter or digit.
_COLUMNS: Mapping[str, str] = {
    "image": "imageid image imagename imagepath filename file path img",
    "class": "labelname label class classname category",
    **{"x1": "xmin x1 left x", "y1": "ymin y1 top y", "x2": "xmax x2 right", "y2": "ymax y2 bottom"},
    **{"width": "width imagewidth", "height": "height imageheight", "group": "isgroupof"},
    **{"w": "w boxwidth bboxwidth", "h": "h boxheight bboxheight"},
}
_NEEDED = ("image", "x1", "y1", "x2", "y2", "class")


class CsvColumns(NamedTuple):
    """Where each column is, whether the first line only names them, and whether coordinates are shares.

    With `are_sizes` the columns of x2 and y2 have a box's width and height.
    """

    places: Mapping[str, int]
    are_named: bool
    are_shares: bool
    are_sizes: bool = False


def columns_of(line: str) -> CsvColumns | None:
    """Return the columns, by the first line of a file; None if it is not a table of boxes."""
    try:
        fields = next(csv.reader([line], delimiter=_delimiter(line), skipinitialspace=True), [])
    except csv.Error:  # a field of more than 131,072 characters
        return None
    names = [re.sub(r"[\W_]", "", field.lower()) for field in fields]
    places = {c: names.index(n) for c, called in _COLUMNS.items() for n in called.split()[::-1] if n in names}
    are_sizes = "x2" not in places and "y2" not in places
    if are_sizes:  # where the box has no columns of its own for its size, width and height are not the image's
        sizes = ("w", "h") if "w" in places else ("width", "height")
        places |= {c: places.pop(size) for c, size in zip(("x2", "y2"), sizes, strict=True) if size in places}
    if all(column in places for column in _NEEDED):
        return CsvColumns(places, True, {"imageid", "labelname"} <= set(names), are_sizes)
    if len(fields) == len(_NEEDED) and all(not field.strip() or _number(field) is not None for field in fields[1:5]):
        return CsvColumns({column: place for place, column in enumerate(_NEEDED)}, False, False)
    return None


def read_csv(path: Path, image_dir: Path) -> AnnotatedSet:
    """Read a file; the images need not be there.

    Args:
        image_dir: the folder that the images are below.

    Raises:
        InputError: it cannot be read or is not such a table; lines with fields that are missing or no numbers.
    """
    try:
        with open_regular(path, most=_LARGEST) as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error})") from error
    first = text.partition("\n")[0]
    columns = columns_of(first)
    if columns is None:
        raise InputError(f"{path}: its first line is no header and no box: {cut(first)}; write {','.join(_NEEDED)}")
    called = _descriptions(path.parent) if columns.are_shares else {}
    finder, problems, passed, images = ImageFinder(image_dir), Problems(), Passed(), []
    known: dict[str, str] = {}
    rows = csv.reader(io.StringIO(text), delimiter=_delimiter(first), skipinitialspace=True)
    for row in _rows(rows, path):
        if not any(row) or (columns.are_named and rows.line_num == 1):
            continue
        place = f"line {rows.line_num}"
        fields = {column: row[at].strip() for column, at in columns.places.items() if at < len(row)}
        if not fields.get("image"):
            problems.add("a line needs the name of an image", place)
            continue
        given = fields["image"]
        name = known.get(given) or known.setdefault(given, finder.find(given, path.parent))
        corners = [_number(fields.get(corner, "")) for corner in _NEEDED[1:5]]
        size = size_of(*(int(n) if (n := _number(fields.get(side, ""))) else None for side in ("width", "height")))
        image = AnnotatedImage(name, [], size, columns.are_shares)
        if any(fields.get(column) for column in _NEEDED[1:]):
            if None in corners or not fields.get("class"):
                problems.add("a box needs four numbers and a class", f"{place} ({cut(row)})")
                continue
            x1, y1, x2, y2 = (corner or 0.0 for corner in corners)
            size_of_box = (x2, y2) if columns.are_sizes else (x2 - x1, y2 - y1)
            label = called.get(fields["class"], fields["class"])
            image.things.append(Thing(place, label, (x1, y1, *size_of_box), fields.get("group") == "1"))
        images.append(image)
    joined = joined_images(images)
    for image in joined:
        once: dict[Any, Thing] = {}
        for thing in image.things:
            if once.setdefault((thing.name, thing.box), thing) is not thing:
                passed.add("lines repeat a box of the same class and image, and were left out", thing.place)
        image.things[:] = once.values()
    return set_of(path, finder, joined, len(images), problems, passed)


def _rows(rows: Any, path: Path) -> Iterator[list[str]]:
    try:
        yield from rows
    except csv.Error as error:
        fix = "correct that line or the quotes before it"
        raise InputError(f"{path}: cannot be read as CSV from line {rows.line_num} on ({error}); {fix}") from error


def _descriptions(folder: Path) -> dict[str, str]:
    """Return the names of Open Images' classes, such as /m/011k07, where their file lies beside."""
    found: dict[str, str] = {}
    for path in folder.glob("*class-descriptions*.csv"):
        with open_regular(path, most=2**26) as file:
            rows: list[Sequence[str]] = list(csv.reader(io.StringIO(file.read().decode("utf-8-sig", "replace"))))
        found |= {row[0]: row[1] for row in rows if len(row) == 2}
    return found


def _delimiter(line: str) -> str:
    return max(",;\t", key=line.count)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
