"""What detectors share: the images that they are called with, and who their detections belong to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import overload

import numpy as np

from .detections import Detections
from .images import ImageInput, as_array

_READ_TOGETHER = 4  # batches; those images of them that have one size go through the network together
MOST_TOGETHER = 4096  # images or tiles of a batch: a slip is refused before memory is spent on it


class ImageDetector(ABC):
    """A `Detector` that also takes files, PIL images and whatever yields them one after the other.

    Attributes:
        class_names, category_ids: of the labels 0..K-1.
        batch_size: most images, or tiles, that go through the network together.
    """

    class_names: list[str]
    category_ids: list[int]
    batch_size: int

    @abstractmethod
    def _detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detect in each image, (H, W, 3) uint8 BGR."""

    @overload
    def __call__(self, images: ImageInput) -> Detections: ...  # type: ignore[overload-overlap]  # a str is a Sequence too

    @overload
    def __call__(self, images: Sequence[ImageInput] | Iterator[ImageInput]) -> list[Detections]: ...

    def __call__(
        self, images: ImageInput | Sequence[ImageInput] | Iterator[ImageInput]
    ) -> Detections | list[Detections]:
        """Detect in one image, or in each of several, in pixels of the image as read.

        Args:
            images: a file or PIL image, which is turned upright, or an array (H, W, 3) uint8 BGR; or a sequence or
                generator of these, for which a list is returned. Of many, a few batches are in memory at a time.

        Raises:
            ImageError: a file that is not an image, or a folder.
            ValueError: an array of another kind, or none of these.
        """
        if not isinstance(images, (Sequence, Iterator)) or isinstance(images, (str, bytes, bytearray)):
            return self._named([images])[0]
        return self._named(images)

    def _named(self, images: Iterable[ImageInput]) -> list[Detections]:
        """Detect in a few batches after the other; the detections know their classes and files."""
        found: list[Detections] = []
        names, ids, coming = tuple(self.class_names), tuple(self.category_ids), iter(images)
        while some := list(islice(coming, _READ_TOGETHER * self.batch_size)):
            for image, one in zip(some, self._detect([as_array(image) for image in some]), strict=True):
                path = Path(image) if isinstance(image, (str, Path)) else None
                found.append(replace(one, class_names=names, category_ids=ids, path=path))
        return found


def batch_size_problems(batch_size: object) -> list[str]:
    """Return what is wrong with a caller's value, which may be of any type."""
    is_whole = isinstance(batch_size, Integral) and not isinstance(batch_size, bool)
    if not is_whole or not 1 <= batch_size <= MOST_TOGETHER:  # type: ignore[operator]
        return [f"batch_size is {batch_size!r}; it must be a whole number, 1 to {MOST_TOGETHER:,}"]
    return []
