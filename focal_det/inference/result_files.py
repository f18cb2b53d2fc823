"""Files of what was found: COCO's JSON, CSV, YOLO's text files, crops. Each is written whole, and takes any number."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from tempfile import SpooledTemporaryFile
from typing import Any, Protocol, TextIO

import numpy as np
import yaml

from ..errors import counted
from ..files import is_hidden, write_text_whole, written_whole
from ..formats.image_files import SUFFIXES
from .detections import Detections
from .drawing import write_image
from .inputs import Frame, InputFile

COCO_FILE, CSV_FILE, YOLO_FOLDER, CROPS_FOLDER = "detections.json", "detections.csv", "yolo", "crops"

_CSV_COLUMNS = ("image", "width", "height", "x1", "y1", "x2", "y2", "score", "class_id", "class_name")
_IN_MEMORY = 2**24  # bytes of rows; what is more lies on the disk until the file is written
_MOST_CROPS = 100_000  # file systems and people are slow with more files
# With these no file can be written, whatever its name.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class UnwrittenError(Exception):
    """A file of one image cannot be written, such as for its name; the others can be. `count` such files, if more."""

    def __init__(self, what: str, path: Path, error: OSError) -> None:
        self.what, self.count = what, 1
        super().__init__(f"{path}: the {what} cannot be written ({error.strerror or error}); its detections are kept")


@contextmanager
def written_or_named(what: str, path: Path) -> Iterator[None]:
    """Raise UnwrittenError for an OSError that is of this file alone."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise
        raise UnwrittenError(what, path, error) from error


class DetectionWriter(Protocol):
    """Takes what was found in one image after the other; `close` writes what is still to be written."""

    def add(self, frame: Frame, image: np.ndarray, found: Detections) -> None:
        """Add an image, (H, W, 3) uint8 BGR; raise UnwrittenError where only its own files cannot be written."""
        ...

    def close(self) -> list[str]:
        """Finish, and return notes on what was not written."""
        ...


class _Rows:
    """The rows of a list in JSON."""

    def __init__(self) -> None:
        self.count = 0
        # in ASCII, whose escapes also hold names that are not UTF-8
        self._file = SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="ascii")  # noqa: SIM115 - closed when written

    def add(self, row: dict[str, Any]) -> None:
        self._file.write(f"{', ' if self.count else ''}{json.dumps(row)}")
        self.count += 1

    def write_to(self, file: TextIO) -> None:
        self._file.seek(0)
        shutil.copyfileobj(self._file, file)
        self._file.close()


class CocoWriter:
    """Detections in COCO's format, with their images and categories, so that they serve as an annotation file."""

    def __init__(self, out: Path, class_names: Sequence[str], category_ids: Sequence[int]) -> None:
        self.path = out / COCO_FILE
        self._images, self._annotations = _Rows(), _Rows()
        self._categories = [{"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)]

    def add(self, frame: Frame, image: np.ndarray, found: Detections) -> None:
        """Add an image with its detections."""
        image_id, (height, width) = self._images.count + 1, image.shape[:2]
        self._images.add({"id": image_id, "file_name": frame.name, "width": width, "height": height})
        for entry in found.to_coco(image_id):
            area = entry["bbox"][2] * entry["bbox"][3]
            self._annotations.add({"id": self._annotations.count + 1, **entry, "area": area, "iscrowd": 0})

    def close(self) -> list[str]:
        """Write the file, if an image was added."""
        if self._images.count:
            with written_whole(self.path) as partial, partial.open("w", encoding="ascii") as file:
                file.write('{"images": [')
                self._images.write_to(file)
                file.write('], "annotations": [')
                self._annotations.write_to(file)
                file.write(f'], "categories": {json.dumps(self._categories)}}}')
        return []


class CsvWriter:
    """A line for each object, which has a header; an image without objects has a line of its own."""

    def __init__(self, out: Path) -> None:
        self.path = out / CSV_FILE
        self._open = ExitStack()
        self._rows: Any = None

    def add(self, frame: Frame, image: np.ndarray, found: Detections) -> None:
        """Add an image with its detections."""
        if self._rows is None:
            partial = self._open.enter_context(written_whole(self.path))
            # so that the file can be read whatever one name in it is
            file = self._open.enter_context(partial.open("w", encoding="utf-8", errors="backslashreplace", newline=""))
            self._rows = csv.writer(file, lineterminator="\n")
            self._rows.writerow(_CSV_COLUMNS)
        of_image = (frame.name, image.shape[1], image.shape[0])
        # float32's own digits
        rows = [[*(f"{x:.9g}" for x in (*box, score)), label, name] for box, score, label, name in found]
        try:
            self._rows.writerows([*of_image, *row] for row in rows or [[""] * 7])
        except OSError:
            with self._open:  # which removes it, since it is cut
                raise

    def close(self) -> list[str]:
        """Finish the file."""
        self._open.close()
        return []


class YoloWriter:
    """A data set in YOLO's layout: data.yaml, links to the images, and a file of labels for each.

    Frames of videos, and images of other suffixes, are written as JPEG.
    """

    def __init__(self, out: Path, class_names: Sequence[str]) -> None:
        self.folder, self.class_names = out / YOLO_FOLDER, class_names
        self._places: dict[InputFile, PurePosixPath] = {}
        self._taken: set[str] = set()

    def add(self, frame: Frame, image: np.ndarray, found: Detections) -> None:
        """Write an image's label file and link or write the image."""
        place = self._place(frame.file)
        if frame.number is not None:
            place /= f"{frame.number:06d}.jpg"
        path = self.folder / "images" / place
        with written_or_named("image for YOLO", path):
            # labels first: an image without them would be one without objects
            lines = "".join(f"{line}\n" for line in _yolo_lines(found, image.shape))
            write_text_whole(self.folder / "labels" / place.with_suffix(".txt"), lines)
            path.parent.mkdir(parents=True, exist_ok=True)
            if frame.number is None and path.suffix == frame.file.path.suffix:
                os.symlink(frame.file.path, path)
            else:
                write_image(path, image)

    def close(self) -> list[str]:
        """Write data.yaml, if an image was added."""
        if self._places:
            content = {"train": "images", "val": "images", "names": dict(enumerate(self.class_names))}
            text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
            write_text_whole(self.folder / "data.yaml", text)
        return []

    def _place(self, file: InputFile) -> PurePosixPath:
        """Return a name below `images` from which readers find the labels, and that differs by more than its suffix."""
        if file in self._places:
            return self._places[file]
        # readers pass hidden ones over, and take the last `images` in a path for the one beside `labels`
        parts = [f"_{part}" if is_hidden(part) else part for part in PurePosixPath(file.name).parts]
        place = PurePosixPath(*(f"{part}_" if part == "images" else part for part in parts[:-1]), parts[-1])
        if not file.is_video and place.suffix.lower() not in SUFFIXES:
            place = place.with_name(f"{place.name}.jpg")
        suffix = "" if file.is_video else place.suffix
        stem = place.name.removesuffix(suffix)
        while (key := str(place.with_name(stem)).casefold()) in self._taken:
            stem += "_"
        self._taken.add(key)
        self._places[file] = place.with_name(stem + suffix)
        return self._places[file]


def _yolo_lines(found: Detections, shape: Sequence[int]) -> Iterator[str]:
    """Yield `class x y width height` in shares of the image's size; x, y is the box's centre."""
    sides = np.tile((shape[1], shape[0]), 2)
    shares = np.clip(found.boxes.astype(np.float64) / sides, 0, 1)
    for label, (x1, y1, x2, y2) in zip(found.classes.tolist(), shares.tolist(), strict=True):
        if x1 < x2 and y1 < y2:
            yield " ".join([str(label), *(f"{x:.9g}" for x in ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1))])


class CropWriter:
    """The objects cut out: crops/CLASS/IMAGE_NUMBER_SCORE.jpg, of a video CLASS/VIDEO/FRAME_NUMBER_SCORE.jpg.

    An image's name is unique, and so is the number in it, which counts from 1, the best.
    """

    def __init__(self, out: Path, class_names: Sequence[str]) -> None:
        self.folders = [out / CROPS_FOLDER / name for name in folder_names(class_names)]
        self._count = self._left_out = 0

    def add(self, frame: Frame, image: np.ndarray, found: Detections) -> None:
        """Write an image's crops."""
        name = frame.file.name if frame.number is None else f"{frame.file.name}/{frame.number:06d}"
        height, width = image.shape[:2]
        failed: list[UnwrittenError] = []
        for number, (box, score, label, _) in enumerate(found, 1):
            if self._count == _MOST_CROPS:
                self._left_out += 1
                continue
            left, top = np.clip(np.floor(box[:2]), 0, (width - 1, height - 1)).astype(int)
            right, bottom = np.clip(np.ceil(box[2:]), (left + 1, top + 1), (width, height)).astype(int)
            path = self.folders[label] / f"{name}_{number:03d}_{score:.2f}.jpg"
            try:
                with written_or_named("crop", path):
                    write_image(path, np.ascontiguousarray(image[top:bottom, left:right]))
                self._count += 1
            except UnwrittenError as error:  # those of other classes may have another folder
                failed.append(error)
        if failed:
            failed[0].count = len(failed)
            raise failed[0]

    def close(self) -> list[str]:
        """Return a note on the crops beyond the number that is written."""
        fix = "give a higher --score-thresh or fewer images at a time"
        left_out = f"{counted(self._left_out, 'crop')} beyond the first {_MOST_CROPS} were not written; {fix}"
        return [left_out] if self._left_out else []


def folder_names(class_names: Sequence[str]) -> list[str]:
    """Return a name for each class's folder: letters, digits, "_", "-" and spaces, no two the same in any case."""
    found: dict[str, str] = {}
    for label, name in enumerate(class_names):
        plain = re.sub(r"[^\w -]", "_", unicodedata.normalize("NFC", name)).strip()[:48] or "class"
        while plain.casefold() in found:
            plain += f"_{label}"
        found[plain.casefold()] = plain
    return list(found.values())
