"""Pascal VOC's folders as people have them, converted to COCO's form.

A set is a folder with Annotations/<name>.xml, a file for each image; JPEGImages/<name>.jpg (or another format); and
ImageSets/Main/<split>.txt, a name on each line. Annotations and images may also lie side by side in the folder.

Boxes. VOC numbers pixels from 1, and both corners belong to the object: xmin=1, xmax=W is the whole width of W pixels.
Pixel n spans n-1 to n, so x = xmin - 1 and width = xmax - xmin + 1. Detectron2's own loader makes the same boxes, by
subtracting 1 from xmin and ymin alone. Boxes of tools that count from 0 come out one pixel larger, towards the upper
left; they are clipped to the image.

Difficult objects are left out of training, and in evaluation count neither as missed nor, if found, as false, as in
VOC's own rules. In COCO that is iscrowd=1, for which the share of the detection that lies on the object replaces the
IoU, which is laxer. Detectron2's loader trains on them as on any other, and only takes .jpg images and VOC's classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ..errors import InputError, some
from .coco import CocoFile, check_coco
from .voc_folder import find_folder, read_split
from .voc_xml import Problems, VocImage, read_annotation

_SHOW_PROGRESS_FROM = 5000  # annotations; fewer take a second or two


class VocSet(NamedTuple):
    """A set that was read: what messages call it, and notes on what was taken of its folder, one line each."""

    place: Path
    image_dir: Path
    images: list[VocImage]
    notes: list[str]

    @property
    def class_names(self) -> set[str]:
        """The classes of all objects, difficult ones included."""
        return {thing.name for image in self.images for thing in image.objects}


def read_voc(folder: str | os.PathLike[str], split: str | None, usual_splits: Sequence[str] = ("train",)) -> VocSet:
    """Read the annotations of a split. Images must exist, and are opened only where the XML has no size.

    Args:
        split: of ImageSets/Main; None for the first of the usual ones that is there, or for all annotations where
            there are no splits.

    Raises:
        InputError: every problem, the files named: no such folder or split, names without annotation or image,
            repeated names, XML that cannot be read or declares a document type, fields that are missing or not numbers.
    """
    found = find_folder(folder)
    names, place, notes = read_split(found, split, usual_splits)
    images, problems, oddities = [], Problems(), Problems()
    for name in tqdm(names, "reading annotations", disable=True if len(names) < _SHOW_PROGRESS_FROM else None):
        image = read_annotation(found, name, problems, oddities)
        if image is not None:
            images.append(image)
    problems.raise_if_any(place, len(names))
    notes += oddities.lines(place, len(names))
    if place == str(found.folder):  # no split chose
        used = {image.file_name for image in images}
        unused = [file for files in found.images.by_name.values() for file in files if file not in used]
        what = "images have no annotation and were not taken; one without an object needs an empty annotation"
        notes += [f"{place}: {len(unused)} {what}: {some('', unused)}"] if unused else []
    return VocSet(Path(place), found.image_dir, images, notes)


def check_voc(voc: VocSet, class_names: Sequence[str], **image_checks: Any) -> CocoFile:
    """Check a set in COCO's form, like any COCO file.

    Args:
        class_names: all, in the order of the labels; their category ids become 1..K.
        image_checks: keyword arguments of `check_coco`.

    Raises:
        InputError: every problem that `check_coco` finds; a class that is not among the given ones; no classes.
    """
    if not class_names:
        raise InputError(f"{voc.place}: no annotation has an object, so there are no classes; annotate one")
    unknown = sorted(voc.class_names.difference(class_names))
    if unknown:
        raise InputError(
            f"{voc.place}: {some('class', unknown)} is not among {', '.join(class_names)}; "
            "correct the <name> of these objects"
        )
    checked = check_coco(as_coco(voc, class_names), voc.place, voc.image_dir, **image_checks)
    return checked._replace(notes=[*voc.notes, *checked.notes])


def as_coco(voc: VocSet, class_names: Sequence[str]) -> dict[str, Any]:
    """Convert the set to the contents of a COCO file.

    An annotation's id names its XML file, for messages; `check_coco` replaces it by a number.
    """
    category_ids = {name: label + 1 for label, name in enumerate(class_names)}
    images, annotations = [], []
    for image_id, image in enumerate(voc.images, start=1):
        size = {"width": image.width, "height": image.height}
        images.append({"id": image_id, "file_name": image.file_name, **size})
        for place, thing in enumerate(image.objects, start=1):
            xmin, ymin, xmax, ymax = thing.corners
            row = {"id": f"{image.annotation} object {place}", "image_id": image_id}
            row |= {"category_id": category_ids[thing.name], "iscrowd": int(thing.difficult)}
            annotations.append({**row, "bbox": [xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]})
    categories = [{"id": category_id, "name": name} for name, category_id in category_ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
