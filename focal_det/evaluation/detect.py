"""Detect on all images of an annotation file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import InputError
from ..inference.detections import Detector
from ..inference.images import read_image
from ..inference.inputs import read_ahead


def detect_all(
    detector: Detector, ground_truth: Mapping[str, Any], folder: Path, *, batch_size: int = 8
) -> list[dict[str, Any]]:
    """Detect on every image and return COCO's results.

    Args:
        ground_truth: an annotation file's content; the detector's classes are found in it by their names.
        folder: that its file names are relative to.

    Raises:
        InputError: a class that only the annotations or only the detector has.
        ImageError: an image cannot be read.
    """
    category_ids = _ids_of(detector.class_names, ground_truth["categories"])
    images = ground_truth["images"]
    coming = read_ahead(((image, read_image(folder / image["file_name"])) for image in images), 2 * batch_size)
    results: list[dict[str, Any]] = []
    with tqdm(total=len(images), desc="detecting", unit="image", disable=None) as bar:
        while batch := list(islice(coming, batch_size)):
            for (image, _), found in zip(batch, detector([pixels for _, pixels in batch]), strict=True):
                results += found.to_coco(image["id"], category_ids)
            bar.update(len(batch))
    return results


def _ids_of(class_names: Sequence[str], categories: Sequence[Mapping[str, Any]]) -> list[int]:
    ids = {category["name"]: category["id"] for category in categories}
    strange = sorted(set(ids) ^ set(class_names))
    if strange:
        raise InputError(
            f"the model detects {', '.join(class_names)}; the annotations have {', '.join(ids)}: both need the same "
            f"names, unlike {', '.join(strange)}"
        )
    return [ids[name] for name in class_names]
