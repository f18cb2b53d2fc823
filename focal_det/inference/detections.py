"""The `Detections` of an image, their objects, and the interface of every detector."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload

import numpy as np
from PIL import Image

from ..errors import InputError, counted, some
from ..extras import missing_message
from .images import ImageInput, as_array

if TYPE_CHECKING:
    import pandas
    import supervision

_NOTEBOOK_SIDE = 1000  # px; a notebook keeps its drawings


class Detection(NamedTuple):
    """An object: its box XYXY in pixels of the image, its score, its label 0..K-1 and the label's name."""

    box: tuple[float, float, float, float]
    score: float
    class_id: int
    class_name: str


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """D objects of one image, best first, as arrays and one by one.

    `len(found)` is D, `found[0]` and `for one in found` give a `Detection`; a slice, a mask (D,) or positions give
    `Detections`, such as `found[found.classes == 2]`.

    Args:
        boxes: (D, 4) float32 XYXY, in pixels of the image as read, which has its EXIF rotation applied.
        scores: (D,) float32 in (0, 1).
        classes: (D,) int64 labels 0..K-1.
        class_names, category_ids: of the labels 0..K-1; () where they are not known, then "class 3" is a name.
        path: the image's file, which a drawing reads again. An image that was given as an array is not kept, since
            results would hold the memory of all their images.

    Raises:
        ValueError: the arrays are not of one length.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    class_names: Sequence[str] = ()
    category_ids: Sequence[int] = ()
    path: Path | None = None

    def __post_init__(self) -> None:
        shapes = self.boxes.shape, self.scores.shape, self.classes.shape
        if shapes != ((len(self.scores), 4), (len(self.scores),), (len(self.scores),)):
            raise ValueError(f"boxes, scores and classes are {shapes}; they must be (D, 4), (D,) and (D,)")

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        names = self._names()
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.classes.tolist(), names, strict=True)
        return (Detection(tuple(box), *rest) for box, *rest in rows)

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> Detection: ...

    @overload
    def __getitem__(self, index: slice | np.ndarray | Sequence[int] | Sequence[bool]) -> Detections: ...

    def __getitem__(self, index: Any) -> Detection | Detections:
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
            place = range(len(self))[index]  # raises IndexError
            return next(iter(self[place : place + 1]))
        if isinstance(index, list) and not index:
            index = slice(0)
        if isinstance(index, (list, np.ndarray)):
            index = np.asarray(index)
        if not (
            isinstance(index, slice) or (isinstance(index, np.ndarray) and index.ndim and index.dtype.kind in "bi")
        ):
            raise TypeError(f"an index is a position, a slice, a mask (D,) or a list of positions, not {index!r}")
        return replace(self, boxes=self.boxes[index], scores=self.scores[index], classes=self.classes[index])

    def __repr__(self) -> str:
        objects = [f"{one.class_name} {one.score:.2f}" for one in self]
        of = "" if self.path is None else f" in {self.path}"
        return f"<{counted(len(self), 'detection')}{of}{': ' if objects else ''}{some('', objects)}>"

    def above(self, thresh: float) -> Detections:
        """Return those with a score of at least `thresh`."""
        return self[self.scores >= thresh]

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return entries of COCO's results, whose bbox is XYWH in pixels.

        Args:
            category_ids: of the labels 0..K-1; None for the detector's own.

        Raises:
            ValueError: neither are known.
        """
        ids = self.category_ids if category_ids is None else category_ids
        if not len(ids) and len(self):
            raise ValueError("these detections know no category ids: give category_ids, one for each label 0..K-1")
        corners = self.boxes.astype(np.float64)
        boxes = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]).tolist()
        return [
            {"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score}
            for box, score, label in zip(boxes, self.scores.tolist(), self.classes.tolist(), strict=True)
        ]

    def to_pandas(self) -> pandas.DataFrame:
        """Return a row for each object: x1, y1, x2, y2 in pixels, score, class_id, class_name.

        Raises:
            InputError: pandas is missing.
        """
        try:
            import pandas
        except ImportError as error:
            raise InputError(missing_message(error)) from error
        boxes = dict(zip(("x1", "y1", "x2", "y2"), self.boxes.T, strict=True))
        return pandas.DataFrame(
            {**boxes, "score": self.scores, "class_id": self.classes, "class_name": self._names()}
        ).astype({"class_name": "str"})

    def to_supervision(self) -> supervision.Detections:
        """Return them for Roboflow's supervision, whose `data["class_name"]` has the names.

        Raises:
            InputError: supervision is missing.
        """
        try:
            import supervision
        except ImportError as error:
            raise InputError(missing_message(error)) from error
        names = np.array(self._names(), dtype=str)
        own: dict[str, Any] = {"xyxy": self.boxes, "confidence": self.scores, "class_id": self.classes}
        return supervision.Detections(**own, data={"class_name": names})

    def plot(self, image: ImageInput | None = None, *, max_side: int | None = None) -> Image.Image:
        """Return what `draw` draws, with its arguments and errors, as a PIL image, which notebooks show."""
        return Image.fromarray(np.ascontiguousarray(self.draw(image, max_side=max_side)[:, :, ::-1]))

    def draw(self, image: ImageInput | None = None, *, max_side: int | None = None) -> np.ndarray:
        """Draw the objects with names and scores.

        Args:
            image: that they were found in; None for the file at `path`.
            max_side: of the drawing, in pixels.

        Returns:
            (H, W, 3) uint8 BGR; small images are enlarged, so that the labels can be read.

        Raises:
            ImageError: the file cannot be read.
            ValueError: no image is given, and they are not of a file.
        """
        from .drawing import draw_boxes  # with a font, which not everyone who detects needs

        if image is None and self.path is None:
            raise ValueError("these detections are not of a file, and images are not kept: give the image")
        texts = [f"{one.class_name} {100 * one.score:.0f}%" for one in self]
        number = len(self.class_names) or int(self.classes.max(initial=0)) + 1
        pixels = as_array(self.path if image is None else image)
        return draw_boxes(pixels, self.boxes, self.classes, texts, num_classes=number, max_side=max_side)

    def _repr_png_(self) -> bytes | None:
        """Return a drawing for a notebook; None, for which it shows the text, if they are not of a file."""
        if self.path is None:
            return None
        coded = io.BytesIO()
        self.plot(max_side=_NOTEBOOK_SIDE).save(coded, "PNG")
        return coded.getvalue()

    def _names(self) -> list[str]:
        return [self.class_names[i] if len(self.class_names) else f"class {i}" for i in self.classes.tolist()]


class Detector(Protocol):
    """A callable that finds objects; its category ids are those of the annotation file that it was trained on."""

    class_names: list[str]
    category_ids: list[int]

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detect in each image, (H, W, 3) uint8 BGR; the others change nothing but the rounding."""
        ...
