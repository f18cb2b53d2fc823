"""Pascal VOC's folders as people have them, read into COCO's form.

A set is a folder with Annotations/<name>.xml, a file for each picture; JPEGImages/<name>.jpg (or another format); and
ImageSets/Main/<split>.txt, a name on each line. Annotations and pictures may also lie side by side in the folder.

Boxes. VOC gives corners as numbers of pixels, counted from 1, and both belong to the object: xmin=1, xmax=W is the
whole width of W pixels. With pixel number n from n-1 to n, that is x = xmin - 1 and width = xmax - xmin + 1.
Detectron2's own loader makes the same boxes, by taking 1 from xmin and ymin alone. Tools that count from 0 write boxes
that come out one pixel up and left of theirs and one larger; they are clipped to the picture.

Difficult objects are left out of training, and in evaluation count neither as missed nor, if found, as false, as in
VOC's own rules. COCO says that by iscrowd=1, under which a detection is compared by the part of it that lies on the
object, which is laxer than IoU. Detectron2's loader trains on them as on any other, and takes pictures in .jpg and
classes in a given order only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ..errors import InputError, some
from .coco_json import CocoFile, check_coco
from .voc_splits import find_folder, pictures_by_stem, read_split
from .voc_xml import Problems, VocPicture, read_annotation

_SHOW_PROGRESS_FROM = 5000  # annotations; fewer take a second or two


class VocSet(NamedTuple):
    """A set that was read.

    place: what messages call it.
    image_dir: the folder of its pictures.
    notes: what was taken of the folder, one line each.
    """

    place: Path
    image_dir: Path
    pictures: list[VocPicture]
    notes: list[str]

    @property
    def class_names(self) -> set[str]:
        """Of all objects, the difficult too."""
        return {thing.name for picture in self.pictures for thing in picture.objects}


def read_voc(folder: str | os.PathLike[str], split: str | None, usual_splits: Sequence[str] = ("train",)) -> VocSet:
    """Read the annotations of a split. Pictures are only looked for, and opened where the XML has no size.

    Args:
        split: of ImageSets/Main; None for the first of the usual ones that is there, or for all annotations where
            there are no splits.

    Raises:
        InputError: every problem, the files named: no such folder or split, names without annotation or picture,
            repeated names, XML that cannot be read or declares a document type, fields that are missing or no numbers.
    """
    found = find_folder(folder)
    names, place, notes = read_split(found, split, usual_splits)
    by_stem = pictures_by_stem(found.image_dir)
    pictures, problems = [], Problems(place, len(names))
    for name in tqdm(names, "reading annotations", disable=len(names) < _SHOW_PROGRESS_FROM):
        picture = read_annotation(found, name, by_stem.get(name, []), problems)
        if picture is not None:
            pictures.append(picture)
    problems.raise_if_any()
    return VocSet(Path(place), found.image_dir, pictures, notes)


def check_voc(voc: VocSet, class_names: Sequence[str], **picture_checks: Any) -> CocoFile:
    """Check a set in COCO's form, as any COCO file is.

    Args:
        class_names: all, in the order of the labels; their category ids are 1..K.
        picture_checks: keyword arguments of `check_coco`.

    Raises:
        InputError: every problem that `check_coco` finds; classes that are not among the given; no classes.
    """
    if not class_names:
        raise InputError(f"{voc.place}: no object in any annotation, so there are no classes; annotate one")
    unknown = sorted(voc.class_names.difference(class_names))
    if unknown:
        raise InputError(
            f"{voc.place}: {some('class', unknown)} is not among {', '.join(class_names)}; "
            "correct the <name> of these objects"
        )
    checked = check_coco(as_coco(voc, class_names), voc.place, voc.image_dir, **picture_checks)
    return checked._replace(notes=[*voc.notes, *checked.notes])


def as_coco(voc: VocSet, class_names: Sequence[str]) -> dict[str, Any]:
    """The set as a COCO file would hold it.

    An annotation's id is a text that names its XML file, for the messages; `check_coco` replaces it by a number.
    """
    category_ids = {name: label + 1 for label, name in enumerate(class_names)}
    images, annotations = [], []
    for image_id, picture in enumerate(voc.pictures, start=1):
        size = {"width": picture.width, "height": picture.height}
        images.append({"id": image_id, "file_name": picture.file_name, **size})
        for place, thing in enumerate(picture.objects, start=1):
            xmin, ymin, xmax, ymax = thing.corners
            annotations.append(
                {
                    "id": f"{picture.annotation} object {place}",
                    "image_id": image_id,
                    "category_id": category_ids[thing.name],
                    "bbox": [xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1],
                    "iscrowd": int(thing.difficult),
                }
            )
    categories = [{"id": category_id, "name": name} for name, category_id in category_ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
