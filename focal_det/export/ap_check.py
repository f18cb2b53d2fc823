"""How the average precision of a file in 8 bits differs from that of the same detector in float32."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import InputError
from ..evaluation.coco_scores import Evaluation, evaluate
from ..evaluation.detect import detect_all
from ..inference.detections import Detector
from ..inference.images import ImageError
from .images_of_run import AnnotatedImages


class PrecisionChange(NamedTuple):
    """The scores of both on the same images, in percent, and the largest fall of AP that is accepted, in points."""

    before: Evaluation
    after: Evaluation
    most: float

    @property
    def problem(self) -> str:
        """Say why the file is not to be kept; "" if it is."""
        drop = self.before.AP - self.after.AP
        if drop <= self.most:
            return ""
        return (
            f"AP falls by {drop:.2f} points, from {self.before.AP:.2f} to "
            f"{self.after.AP:.2f}, more than --max-ap-drop {self.most:g}; calibrate on more images, or on "
            "images such as it is to detect in (--calibrate, --calibrate-images), or leave the activations in float32"
        )

    def __str__(self) -> str:
        pairs = ((name, getattr(self.before, name), getattr(self.after, name)) for name in ("AP", "AP50", "AP75"))
        figures = ", ".join(f"{name} {after:.2f} (was {before:.2f})" for name, before, after in pairs)
        return f"{figures} on {self.before.images} images"


def compare_scores(before: Detector, after: Detector, images: AnnotatedImages, *, most: float) -> PrecisionChange:
    """Score two detectors on the same images.

    Raises:
        InputError: an image that cannot be read, other classes, or an AP of 0 or nan before, of which nothing can fall.
    """
    try:
        first = evaluate(images.coco, detect_all(before, images.coco, images.folder))
        if not first.AP > 0:
            raise InputError(
                f"AP on {images.name} is {first.AP:.1f} in float32, so there is nothing that 8 bits could lower: "
                "evaluate on images with objects that the model finds"
            )
        return PrecisionChange(first, evaluate(images.coco, detect_all(after, images.coco, images.folder)), most)
    except ImageError as error:
        raise InputError(str(error)) from error
