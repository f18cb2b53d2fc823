"""Detect on all pictures of an annotation file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import InputError
from ..inference.detections import Detector, to_coco
from ..inference.pictures import read_picture
from ..inference.sources import read_ahead


def detect_all(
    detector: Detector, ground_truth: Mapping[str, Any], folder: Path, *, batch_size: int = 8
) -> list[dict[str, Any]]:
    """Detections on every picture in COCO's results format.

    Args:
        ground_truth: an annotation file's content; the detector's classes are found in it by their names.
        folder: that its file names are relative to.

    Raises:
        InputError: a class of the annotations that the detector does not know, or the other way round.
        PictureError: a picture cannot be read.
    """
    category_ids = _ids_of(detector.class_names, ground_truth["categories"])
    images = ground_truth["images"]
    coming = read_ahead(((image, read_picture(folder / image["file_name"])) for image in images), 2 * batch_size)
    results: list[dict[str, Any]] = []
    with tqdm(total=len(images), desc="detecting", unit="picture") as bar:
        while batch := list(islice(coming, batch_size)):
            for (image, _), found in zip(batch, detector([picture for _, picture in batch]), strict=True):
                results += to_coco(found, image["id"], category_ids)
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
