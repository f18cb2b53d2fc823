"""COCO annotation files as people have them: checked, completed where the format allows, and explained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import InputError, cut, some, some_lines
from ..plain_data import parse_json
from .box_checks import format_problem, like_corners, percent, reaching_out, without_area
from .coco_checks import (
    annotation_name,
    id_problems,
    is_area,
    number_problems,
    repeated_files,
    shape_problems,
    unread_problems,
)
from .folders import open_regular
from .picture_names import name_problems
from .pictures import PictureFault, fault_lines, look_at_pictures

LARGEST_JSON = 2**33  # bytes; Objects365's has 6 GB


class CocoFile(NamedTuple):
    """A checked annotation file.

    coco: what Detectron2 and pycocotools read, with `info`, `area`, `iscrowd` and ids filled in.
    notes: what was left out, and what may be wrong; a line that belongs to the one before begins with two spaces.
    boxes_left_out, pictures_left_out: how many.
    """

    coco: dict[str, Any]
    notes: list[str]
    boxes_left_out: int = 0
    pictures_left_out: int = 0

    @property
    def class_names(self) -> list[str]:
        """In the order of the contiguous labels 0..K-1, which is that of the category ids."""
        return [c["name"] for c in sorted(self.coco["categories"], key=lambda c: c["id"])]


def read_coco(
    json_file: str | os.PathLike[str],
    image_dir: str | os.PathLike[str],
    *,
    decode: bool = False,
    skip_bad_images: int = 0,
    allow_outside: bool = False,
) -> CocoFile:
    """Read a COCO detection file and check all that training or evaluation would trip over.

    Boxes without area inside their picture are left out and noted; only boxes are kept of the annotations.

    Args:
        decode: every picture, not only those whose file does not end as it should.
        skip_bad_images: so many pictures that are missing, damaged or of another size are left out, with their
            annotations, and noted; more are a problem.
        allow_outside: whether names of pictures may lead out of their folder.

    Raises:
        InputError: with every problem found: no such file, not JSON, not COCO's lists, repeated or unknown ids,
            boxes that are not four numbers or are stored as corners, pictures that are missing, damaged, of
            another size or outside their folder.
    """
    path = Path(json_file)
    try:
        with open_regular(path, most=LARGEST_JSON) as file:
            raw = parse_json(file.read())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such annotation file") from error
    except OSError as error:
        raise InputError(
            f"{cut(path, 250)}: an annotation file that cannot be read ({error.strerror or error}); name another"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error})") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    except MemoryError as error:
        raise InputError(f"{path}: needs more memory than there is; split the file") from error
    if not os.path.isdir(image_dir):
        raise InputError(f"{cut(image_dir, 250)}: no such folder of pictures (for {path})")
    return check_coco(raw, path, image_dir, decode=decode, skip_bad_images=skip_bad_images, allow_outside=allow_outside)


def check_coco(
    raw: Any,
    path: Path,
    image_dir: str | os.PathLike[str],
    *,
    pictures: bool = True,
    decode: bool = False,
    skip_bad_images: int = 0,
    allow_outside: bool = False,
    as_is: Literal["train", "val"] | None = None,
) -> CocoFile:
    """What `read_coco` does with a file's contents, whatever they were read from.

    Args:
        raw: what the file holds, as JSON would give it.
        path: of the file, for messages.
        pictures: whether to look at them.
        decode, skip_bad_images, allow_outside: see `read_coco`.
        as_is: the use for which Detectron2 reads the file itself, so that nothing can be completed or left out; None
            if it reads what is returned.

    Raises:
        InputError: with every problem found.
    """
    problems = shape_problems(raw)
    if problems:
        raise InputError([f"{path}: not a COCO detection file: {problem}" for problem in problems])

    outside = name_problems(raw["images"], allow_outside=allow_outside)
    problems = [*id_problems(raw), *number_problems(raw), *outside]
    report = look_at_pictures(raw["images"] if pictures and not outside else [], Path(image_dir), decode=decode)
    problems += unread_problems(raw, as_is) if as_is else []
    if not problems:
        problem = format_problem(*_arrays(raw))
        problems += [problem] if problem else []
    if len(report.faults) > max(0, skip_bad_images):
        problems += fault_lines(report.faults, len(raw["images"]), Path(image_dir), can_skip=as_is is None)
        if skip_bad_images > 0:
            problems.append(f"{len(report.faults)} pictures are bad, more than --skip-bad-images {skip_bad_images}")
    elif len(report.faults) == len(raw["images"]):
        problems.append(f"--skip-bad-images {skip_bad_images} leaves no picture of {len(raw['images'])}")
    if problems:
        raise InputError([f"{path}: {problem}" for problem in problems])
    notes = [f"{path}: {note}" for note in (*report.notes, *repeated_files(raw))]
    if report.faults:
        notes += _leave_out(raw, report.faults, path, Path(image_dir))
    return _complete(raw, path, notes, len(report.faults), is_read=as_is is None)


def _arrays(raw: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Of all annotations the boxes (N, 4) as they are, and the sizes (N, 2) of their pictures."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in raw["images"]}
    boxes = [annotation["bbox"] for annotation in raw["annotations"]]
    of_boxes = [sizes[annotation["image_id"]] for annotation in raw["annotations"]]
    return np.array(boxes, np.float64).reshape(-1, 4), np.array(of_boxes, np.float64).reshape(-1, 2)


def _leave_out(raw: dict[str, Any], faults: list[PictureFault], path: Path, folder: Path) -> list[str]:
    """Take the pictures and their annotations out of the file's contents; what was taken out, in words."""
    places = {fault.place for fault in faults}
    lines = fault_lines(faults, len(raw["images"]), folder)
    left = {image["id"] for place, image in enumerate(raw["images"]) if place in places}
    raw["images"] = [image for image in raw["images"] if image["id"] not in left]
    number = len(raw["annotations"])
    raw["annotations"] = [a for a in raw["annotations"] if a["image_id"] not in left]
    lost = number - len(raw["annotations"])
    return [
        f"{path}: left out {len(left)} pictures and their {lost} annotations, as --skip-bad-images allows:",
        *(f"  {line}" for line in lines),
    ]


def _complete(raw: dict[str, Any], path: Path, notes: list[str], pictures_left_out: int, *, is_read: bool) -> CocoFile:
    """is_read: whether Detectron2 reads the result, or else the file itself."""
    names = {image["id"]: image["file_name"] for image in raw["images"]}
    given_ids = [a.get("id") for a in raw["annotations"]]
    ids_usable = all(type(i) is int and 0 < i < 2**63 for i in given_ids) and len(set(given_ids)) == len(given_ids)
    boxes, sizes = _arrays(raw)
    empty = without_area(boxes, sizes)
    annotations, left_out = [], []
    for place, (annotation, is_empty) in enumerate(zip(raw["annotations"], empty.tolist(), strict=True)):
        if is_empty:
            left_out.append(
                f"{names[annotation['image_id']]} {annotation_name(annotation, place)} {annotation['bbox']}"
            )
            continue
        area, (_, _, width, height) = annotation.get("area"), annotation["bbox"]
        annotations.append(
            {
                "id": annotation["id"] if ids_usable else place + 1,  # pycocotools takes id 0 for "unmatched"
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": annotation["bbox"],
                "area": area if is_area(area) else width * height,
                "iscrowd": int(bool(annotation.get("iscrowd") or annotation.get("ignore"))),
            }
        )
    coco = {
        "info": raw.get("info", {}),
        "images": raw["images"],
        "annotations": annotations,
        "categories": raw["categories"],
    }
    if left_out:
        notes = [
            *notes,
            f"{path}: left out {len(left_out)} boxes without area in their picture:"
            if is_read
            else f"{path}: {len(left_out)} boxes without area in their picture, which training leaves out and "
            "evaluation counts as missed:",
            *some_lines(left_out),
        ]
    outside = reaching_out(boxes, sizes) & ~empty
    if outside.any():
        first = [annotation_name(raw["annotations"][place], place) for place in np.flatnonzero(outside).tolist()]
        suspected = like_corners(boxes, sizes) & outside
        notes = [
            *notes,
            f"{path}: {len(first)} of {len(annotations)} boxes reach out of their picture and are clipped "
            f"({some('', first)}); COCO's boxes are [x, y, width, height], not two corners"
            + (f", as {percent(suspected.sum() / len(annotations))} of them look to be" if suspected.any() else ""),
        ]
    return CocoFile(coco, notes, len(left_out) if is_read else 0, pictures_left_out)
