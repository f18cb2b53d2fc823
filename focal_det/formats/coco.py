"""COCO annotation files as people have them: read, checked, and completed where the format allows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import InputError, cut, some, some_lines
from ..files import open_regular
from ..plain_data import parse_json
from . import coco_checks as checks
from .class_names import alike_names
from .coco_amend import amend, without_outline
from .coco_index import CocoIndex, image_sizes, xywh_boxes
from .file_names import inside, renamed_note, resolve
from .image_checks import MISSING, ImageFault, fault_lines, look_at_images
from .image_files import leads_outside, name_problems

LARGEST_JSON = 2**33  # bytes; Objects365's has 6 GB


class CocoFile(NamedTuple):
    """A checked annotation file.

    coco: what Detectron2 and pycocotools read, with `info`, `area`, `iscrowd` and ids filled in.
    notes: what was left out, and what may be wrong; a line that continues the one before begins with two spaces.
    of_boxes_left_out: the id of the image of each box that was left out.
    images_left_out: the paths of the images that were left out.
    is_annotated: False for a file without "annotations", such as COCO's test-dev; `coco` then has an empty list.
    marks: by image id, what files of the same content share; see `look_at_images`. Empty where none was looked at.
    """

    coco: dict[str, Any]
    notes: list[str]
    of_boxes_left_out: tuple[int, ...] = ()
    images_left_out: tuple[str, ...] = ()
    is_annotated: bool = True
    marks: Mapping[int, int] = MappingProxyType({})

    @property
    def is_federated(self) -> bool:
        """Whether it is LVIS's, whose rules then score it."""
        return checks.is_federated(self.coco)

    def contents(self) -> dict[str, Any]:
        """Return what is written into a file."""
        return {k: v for k, v in self.coco.items() if k != "annotations" or self.is_annotated or self.is_federated}

    @property
    def class_names(self) -> list[str]:
        """The names by label 0..K-1, that is in the order of the category ids."""
        return CocoIndex(self.coco).names

    def with_classes(self, names: Sequence[str], ids: Sequence[int], place: str) -> CocoFile:
        """Return the file with the classes of another, which have all of its own, matched by name and said.

        Args:
            names, ids: of the other's labels.
            place: the other's, for the note.
        """
        index = CocoIndex(self.coco)
        without = [name for name in names if name not in set(map(index.name_of, index.objects))]
        note = f"its {len(index.names)} classes are among the {len(names)} of {place}, and were numbered as there"
        note += f"; without an object here: {some('', without)}" if without else ""
        return self.renumbered(dict(zip(names, ids, strict=True)))._replace(notes=[*self.notes, note])

    def renumbered(self, ids: Mapping[str, int]) -> CocoFile:
        """Return the file with these classes, matched by name, which every object's class must be among."""
        index = CocoIndex(self.coco)
        rows = [{**a, "category_id": ids[index.name_of(a)]} for a in self.coco["annotations"]]
        categories = [{"id": category_id, "name": name} for name, category_id in ids.items()]
        return self._replace(coco={**self.coco, "annotations": rows, "categories": categories})


def read_coco(
    json_file: str | os.PathLike[str],
    image_dir: str | os.PathLike[str],
    *,
    decode: bool = False,
    skip_bad_images: int = 0,
    allow_outside: bool = False,
    may_lack_annotations: bool = False,
) -> CocoFile:
    """Read a COCO detection file and check everything that training or evaluation would trip over.

    Boxes without area inside their image are left out and noted. Of the annotations only the boxes are kept.

    Args:
        decode: decode every image, not only those whose file does not end as it should.
        skip_bad_images: up to so many images that are missing, damaged or of another size are left out, with their
            annotations, and noted; more are a problem.
        allow_outside: whether names of images may lead out of their folder.
        may_lack_annotations: whether a file without "annotations" is taken, whose images are only to be detected on.

    Raises:
        InputError: with every problem found: no such file, not JSON, not COCO's lists, repeated or unknown ids,
            boxes that are not four numbers or are stored as corners, images that are missing, damaged, of
            another size or outside their folder.
    """
    path = Path(json_file)
    try:
        with open_regular(path, most=LARGEST_JSON) as file:
            raw = parse_json(file.read(), change=without_outline)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such annotation file") from error
    except OSError as error:
        raise InputError(
            f"{cut(path, 250)}: the annotation file cannot be read ({error.strerror or error}); name another"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error})") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    except MemoryError as error:
        raise InputError(f"{path}: needs more memory than there is; split the file") from error
    if not os.path.isdir(image_dir):
        raise InputError(f"{cut(image_dir, 250)}: no such folder of images (for {path})")
    return check_coco(
        raw,
        path,
        image_dir,
        decode=decode,
        skip_bad_images=skip_bad_images,
        allow_outside=allow_outside,
        may_lack_annotations=may_lack_annotations,
    )


def check_coco(
    raw: Any,
    path: Path | str,
    image_dir: str | os.PathLike[str],
    *,
    images: bool = True,
    decode: bool = False,
    skip_bad_images: int | None = 0,
    allow_outside: bool = False,
    may_lack_annotations: bool = False,
    as_is: Literal["train", "val"] | None = None,
) -> CocoFile:
    """Check a file's contents as `read_coco` does, wherever they come from.

    Args:
        raw: the contents, as JSON gives them; it may be changed.
        path: of the file, or another name for it, for messages.
        images: whether to check the images too.
        decode, skip_bad_images, allow_outside, may_lack_annotations: see `read_coco`; `skip_bad_images` None where
            no flag can leave them out.
        as_is: the use for which Detectron2 reads the file itself, so that nothing can be completed or left out; None
            if it reads what is returned.

    Raises:
        InputError: with every problem found.
    """
    is_annotated = not (may_lack_annotations and isinstance(raw, dict) and "annotations" not in raw)
    if not is_annotated:
        raw["annotations"] = []
    can_skip, skip_bad_images = as_is is None and skip_bad_images is not None, skip_bad_images or 0
    amended = amend(raw) if can_skip and not checks.is_federated(raw) else []
    if checks.is_federated(raw):
        checks.name_by_url(raw["images"])
    problems = checks.shape_problems(raw)
    if problems:
        raise InputError([f"{path}: not a COCO detection file: {problem}" for problem in problems])

    names = {place: image["file_name"] for place, image in enumerate(raw["images"])} if images and can_skip else {}
    if names and not allow_outside:
        _bring_inside(raw["images"], Path(image_dir))
    outside = name_problems(raw["images"], allow_outside=allow_outside)
    problems = [*checks.id_problems(raw), *checks.number_problems(raw), *outside]
    seen, marks = raw["images"] if images and not outside else [], dict[int, int]()
    look = partial(look_at_images, seen, Path(image_dir), decode=decode, marks=marks)
    faults, notes = look()
    missing = [fault.position for fault in faults if fault.kind == MISSING]
    if names and missing and resolve(raw["images"], missing, image_dir):
        faults, notes = look()
    renamed = {place: name for place, name in names.items() if name != raw["images"][place]["file_name"]}
    notes += renamed_note(renamed, raw["images"])
    problems += checks.unread_problems(raw, as_is) if as_is else []
    if not problems:
        rows, boxes = raw["annotations"], xywh_boxes(raw["annotations"])
        problem = checks.reversed_problem(rows, boxes) or checks.format_problem(boxes, image_sizes(raw, rows))
        problems += [problem] if problem else []
    if len(faults) > max(0, skip_bad_images):
        problems += fault_lines(faults, len(raw["images"]), Path(image_dir), can_skip=can_skip)
        if skip_bad_images > 0:
            problems.append(f"{len(faults)} images are bad, more than --skip-bad-images {skip_bad_images}")
    elif len(faults) == len(raw["images"]):
        problems.append(f"--skip-bad-images {skip_bad_images} leaves no image of {len(raw['images'])}")
    if problems:
        raise InputError([f"{path}: {problem}" for problem in problems])
    notes = [f"{path}: {note}" for note in (*amended, *notes, *checks.repeated_files(raw), *alike_names(raw))]
    marks = {raw["images"][place]["id"]: mark for place, mark in marks.items()}
    folder = os.path.realpath(image_dir)
    left_out = [os.path.join(folder, raw["images"][fault.position]["file_name"]) for fault in faults]
    if faults:
        notes += _leave_out(raw, faults, path, Path(image_dir))
    checked = _complete(raw, path, notes, is_read=as_is is None)
    return checked._replace(images_left_out=tuple(left_out), is_annotated=is_annotated, marks=marks)


def _bring_inside(images: list[dict[str, Any]], folder: Path) -> None:
    """Make names that lead outside relative to the folder, where they mean a file in it."""
    outside = [place for place, image in enumerate(images) if leads_outside(image["file_name"])]
    for place in outside:
        images[place]["file_name"] = inside(images[place]["file_name"], folder) or images[place]["file_name"]
    resolve(images, (place for place in outside if leads_outside(images[place]["file_name"])), folder)


def _leave_out(raw: dict[str, Any], faults: list[ImageFault], path: Path | str, folder: Path) -> list[str]:
    """Remove the images and their annotations from the file's contents, and return notes on what was removed."""
    lines = fault_lines(faults, len(raw["images"]), folder)
    ids = {raw["images"][fault.position]["id"] for fault in faults}
    number = len(raw["annotations"])
    raw["images"] = [image for image in raw["images"] if image["id"] not in ids]
    raw["annotations"] = [a for a in raw["annotations"] if a["image_id"] not in ids]
    lost = number - len(raw["annotations"])
    title = f"{path}: left out {len(ids)} images and their {lost} annotations, as --skip-bad-images allows:"
    return [title, *(f"  {line}" for line in lines)]


def _complete(raw: dict[str, Any], path: Path | str, notes: list[str], *, is_read: bool) -> CocoFile:
    """Fill in what is missing and leave out boxes without area; `is_read` by Detectron2, or else the file itself."""
    names = {image["id"]: image["file_name"] for image in raw["images"]}
    given_ids = [a.get("id") for a in raw["annotations"]]
    ids_usable = all(type(i) is int and 0 < i < 2**63 for i in given_ids) and len(set(given_ids)) == len(given_ids)
    boxes, sizes = xywh_boxes(raw["annotations"]), image_sizes(raw, raw["annotations"])
    empty = checks.without_area(boxes, sizes)
    annotations, left_out, of_left_out = [], [], []
    for place, (annotation, is_empty) in enumerate(zip(raw["annotations"], empty.tolist(), strict=True)):
        if is_empty:
            name = names[annotation["image_id"]]
            of_left_out.append(annotation["image_id"])
            left_out.append(f"{name} {checks.annotation_name(annotation, place)} {annotation['bbox']}")
            continue
        area, (_, _, width, height) = annotation.get("area"), annotation["bbox"]
        annotations.append(
            {
                "id": annotation["id"] if ids_usable else place + 1,  # pycocotools takes id 0 for "unmatched"
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": annotation["bbox"],
                "area": area if checks.is_area(area) else width * height,
                "iscrowd": int(bool(annotation.get("iscrowd") or annotation.get("ignore"))),
            }
        )
    if left_out:
        what = "boxes without area in their image"
        note = f"left out {len(left_out)} {what}:"
        if not is_read:
            note = f"{len(left_out)} {what}, which training leaves out and evaluation counts as missed:"
        notes += [f"{path}: {note}", *some_lines(left_out)]
    outside = checks.reaching_out(boxes, sizes) & ~empty
    if outside.any():
        first = [checks.annotation_name(raw["annotations"][place], place) for place in np.flatnonzero(outside).tolist()]
        suspected = (checks.like_corners(boxes, sizes) & outside).sum() / len(annotations)
        look = checks.percent(suspected)
        notes.append(
            f"{path}: {len(first)} of {len(annotations)} boxes extend beyond their image and are clipped "
            f"({some('', first)})"
            + (f"; boxes are [x, y, width, height], not two corners, as {look} of them look to be" if suspected else "")
        )
    coco = {"info": {}, **raw, "annotations": annotations}
    coco = {section: coco[section] for section in ("info", "images", "annotations", "categories")}
    return CocoFile(coco, notes, tuple(of_left_out) if is_read else ())
