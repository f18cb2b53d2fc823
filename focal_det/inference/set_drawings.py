"""Drawings of data sets: images with their boxes, copies of one image beside each other, and suspects cut out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.dataset_spec import OwnSet
from ..data.duplicates import Copies
from ..data.statistics import evenly_spread
from ..data.suspects import Suspect
from ..formats.coco_index import CocoIndex, by_image, xyxy_boxes
from .drawing import ON_SHEET, beside, draw_boxes, sheet, titled
from .images import ImageError, read_image

COLUMNS = 4
_COPIES = 12  # on a sheet, those with different boxes first
_SIDE_BY_SIDE = 3  # of an image that is there more often
_OF_EACH_KIND = 8  # of a set, the worst
_MARGIN = 0.5  # around a suspect, of its longer side
_LEAST_MARGIN = 40  # px

Warn = Callable[[str], None]  # takes what is wrong with an image that is left out


class Drawn(NamedTuple):
    """An image of a set with the drawing of its boxes, (H, W, 3) uint8 BGR."""

    image: dict[str, Any]
    annotations: list[dict[str, Any]]
    drawing: np.ndarray


class SetDrawings:
    """Draws the images of a checked set; one that cannot be read is warned of and left out."""

    def __init__(self, name: str, own: OwnSet, warn: Warn) -> None:
        self.name, self.coco = name, own.file.coco
        self._folder, self._warn, self._index = Path(own.image_dir), warn, CocoIndex(own.file.coco)

    def spread(self, count: int, only_class: str | None) -> Iterator[Drawn]:
        """Yield images spread evenly over those that hold a class, with its boxes alone; None for all classes."""
        name_of = self._index.name_of
        rows_by_image = by_image(a for a in self.coco["annotations"] if only_class in (None, name_of(a)))
        images = [image for image in self.coco["images"] if only_class is None or image["id"] in rows_by_image]
        for image in evenly_spread(images, count):
            rows = rows_by_image[image["id"]]
            if (pixels := self._read(image)) is not None:
                yield Drawn(image, rows, self._draw(pixels, rows))

    def whole(self, image: Mapping[str, Any]) -> np.ndarray | None:
        """Draw an image with all its boxes, under its name."""
        rows = [row for row in self.coco["annotations"] if row["image_id"] == image["id"]]
        if (pixels := self._read(image)) is None:
            return None
        drawing = self._draw(pixels, rows, max_side=ON_SHEET)
        return titled(drawing, f"{self.name}: {image['file_name']}")

    def cut_out(self, suspect: Suspect) -> np.ndarray | None:
        """Draw an annotation that is probably wrong, or two, and what is around it, under the image's name."""
        if (pixels := self._read(suspect.image)) is None:
            return None
        boxes = xyxy_boxes(suspect.rows)
        low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
        margin = max(_LEAST_MARGIN, _MARGIN * (high - low).max())
        height, width = pixels.shape[:2]
        left, top = np.clip(np.floor(low - margin), 0, (width - 1, height - 1)).astype(int)
        right, bottom = np.clip(np.ceil(high + margin), (left + 1, top + 1), (width, height)).astype(int)
        part = np.ascontiguousarray(pixels[top:bottom, left:right])
        drawing = self._draw(part, suspect.rows, offset=(left, top), max_side=ON_SHEET)
        return titled(drawing, f"{suspect.kind} {suspect.measure:.3g}: {suspect.image['file_name']}")

    def _read(self, image: Mapping[str, Any]) -> np.ndarray | None:
        try:
            return read_image(self._folder / image["file_name"])
        except ImageError as error:
            self._warn(f"{error}; skipped")
            return None

    def _draw(
        self,
        pixels: np.ndarray,
        rows: Sequence[Mapping[str, Any]],
        *,
        offset: tuple[int, int] = (0, 0),
        max_side: int | None = None,
    ) -> np.ndarray:
        boxes = xyxy_boxes(rows) - np.tile(offset, 2)
        texts = [self._index.name_of(a) + (" (ignored)" if a["iscrowd"] else "") for a in rows]
        labels, number = self._index.labels_of(rows), len(self._index.names)
        return draw_boxes(pixels, boxes, labels, texts, num_classes=number, max_side=max_side)


def sheet_of_copies(sets: Mapping[str, SetDrawings], found: Sequence[Copies]) -> np.ndarray:
    """Draw copies of one image beside each other, each with its own boxes, those with different boxes first."""
    rows = []
    for copies in sorted(found, key=lambda copies: copies.agree)[:_COPIES]:
        first, other = (sets[name] for name in copies.sets)
        images = enumerate(copies.images[:_SIDE_BY_SIDE])
        drawings = [(other if place else first).whole(image) for place, image in images]
        rows.append(beside(*(drawing for drawing in drawings if drawing is not None)))
    return sheet(rows) if rows else _nothing("no image is there twice")


def sheet_of_suspects(
    sets: Mapping[str, SetDrawings], found: Mapping[str, Mapping[str, Sequence[Suspect]]], only_class: str | None
) -> np.ndarray:
    """Draw the worst annotations of each set and kind, cut out of their images; those of one class if it is given."""
    drawings = []
    for name, kinds in found.items():
        for suspects in kinds.values():
            chosen = [suspect for suspect in suspects if only_class is None or only_class in suspect.classes]
            drawings += [sets[name].cut_out(suspect) for suspect in chosen[:_OF_EACH_KIND]]
    there = [drawing for drawing in drawings if drawing is not None]
    return sheet(there, COLUMNS) if there else _nothing("no suspicious box")


def _nothing(text: str) -> np.ndarray:
    return titled(sheet([]), text)
