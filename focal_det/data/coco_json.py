"""COCO annotation files as people have them: checked, completed where the format allows, and explained."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError, some
from .pictures import picture_problems

_MAX_COORDINATE = 1e7  # pixels; beyond it, and for inf and NaN, a box is a mistake
_ROUNDING = 1.0  # pixels that a box may reach out of its picture without a word


class CocoFile(NamedTuple):
    """A checked annotation file.

    coco: what Detectron2 and pycocotools read, with `info`, `area`, `iscrowd` and ids filled in.
    notes: what was left out, one line each.
    """

    coco: dict[str, Any]
    notes: list[str]

    @property
    def class_names(self) -> list[str]:
        """In the order of the contiguous labels 0..K-1, which is that of the category ids."""
        return [c["name"] for c in sorted(self.coco["categories"], key=lambda c: c["id"])]


def read_coco(json_file: str | os.PathLike[str], image_dir: str | os.PathLike[str]) -> CocoFile:
    """Read a COCO detection file and check all that training or evaluation would trip over.

    Boxes without area inside their picture are left out and noted; only boxes are kept of the annotations.

    Raises:
        InputError: with every problem found: no such file, not JSON, not COCO's lists, repeated or unknown ids,
            boxes that are not four numbers, pictures that are not in the folder.
    """
    path = Path(json_file)
    if not path.is_file():
        raise InputError(f"{path}: no such annotation file")
    if not Path(image_dir).is_dir():
        raise InputError(f"{image_dir}: no such folder of pictures (for {path})")
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    return check_coco(raw, path, image_dir)


def check_coco(raw: Any, path: Path, image_dir: str | os.PathLike[str]) -> CocoFile:
    """Check annotations in COCO's form, wherever they were read from, and complete them.

    Args:
        raw: what the file holds, or should: an object of lists.
        path: where it was read from, for the messages.
        image_dir: the folder that the pictures' names are relative to.

    Raises:
        InputError: with every problem found, each beginning with the path.
    """
    problems = _shape_problems(raw)
    if problems:
        raise InputError([f"{path}: not a COCO detection file: {problem}" for problem in problems])

    problems = [*_id_problems(raw), *_box_problems(raw), *picture_problems(raw["images"], Path(image_dir))]
    if problems:
        raise InputError([f"{path}: {problem}" for problem in problems])
    return _complete(raw, path)


def _shape_problems(raw: Any) -> list[str]:
    if not isinstance(raw, dict):
        return [f'the file holds {_in_json(raw)}; an object with "images", "annotations", "categories" is needed']
    problems = []
    needed: dict[str, dict[str, type]] = {
        "images": {"id": int, "file_name": str, "width": int, "height": int},
        "annotations": {"image_id": int, "category_id": int, "bbox": list},
        "categories": {"id": int, "name": str},
    }
    for section, fields in needed.items():
        rows = raw.get(section)
        if not isinstance(rows, list):
            problems.append(f'"{section}" is {"missing" if rows is None else "not a list"}')
            continue
        if not rows and section != "annotations":
            problems.append(f'"{section}" is empty')
        for place, row in enumerate(rows):
            wrong = _wrong_field(row, fields)
            if wrong:
                problems.append(f"{section}[{place}]: {wrong}")
                break  # a file with one such row mostly has thousands
    return problems


def _wrong_field(row: Any, fields: dict[str, type]) -> str | None:
    if not isinstance(row, dict):
        return f"is {_in_json(row)}, not an object"
    for field, kind in fields.items():
        value = row.get(field)
        if field not in row:
            return f'"{field}" is missing'
        if not isinstance(value, kind) or isinstance(value, bool):
            return f'"{field}" is {value!r}, not {_KIND_NAMES[kind]}'
        if field in ("width", "height") and row[field] <= 0:
            return f'"{field}" is {value}, not a size in pixels'
    for field in ("iscrowd", "ignore"):
        if row.get(field) not in (None, 0, 1):
            return f'"{field}" is {row[field]!r}, not 0 or 1'
    return None


def _in_json(value: Any) -> str:
    """A value's kind in JSON's own words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


_KIND_NAMES = {int: "an integer", str: "a text", list: "a list"}


def _id_problems(raw: dict[str, Any]) -> list[str]:
    problems = []
    for section in ("images", "categories"):
        counts = Counter(row["id"] for row in raw[section])
        repeated = sorted(i for i, count in counts.items() if count > 1)
        if repeated:
            problems.append(f"{section}: repeated {some('id', repeated)}; each needs its own")
    image_ids, category_ids = ({row["id"] for row in raw[s]} for s in ("images", "categories"))
    name_counts = Counter(row["name"] for row in raw["categories"])
    repeated_names = [name for name, count in name_counts.items() if count > 1]
    if repeated_names:
        problems.append(f"categories: repeated {some('name', repeated_names)}; each needs its own")
    strangers: dict[int, list[str]] = {}
    orphans = []
    for place, annotation in enumerate(raw["annotations"]):
        if annotation["category_id"] not in category_ids:
            strangers.setdefault(annotation["category_id"], []).append(_annotation_name(annotation, place))
        if annotation["image_id"] not in image_ids:
            orphans.append(f"image_id={annotation['image_id']} ({_annotation_name(annotation, place)})")
    for category_id, names in strangers.items():
        problems.append(
            f"category_id={category_id} ({some('', names)}) is not in categories {sorted(category_ids)}; "
            "add the category or correct the id"
        )
    if orphans:
        problems.append(f"{some('', orphans)} not in images; add the image or remove the annotation")
    return problems


def _box_problems(raw: dict[str, Any]) -> list[str]:
    wrong = [
        f"bbox={annotation['bbox']} ({_annotation_name(annotation, place)})"
        for place, annotation in enumerate(raw["annotations"])
        if len(annotation["bbox"]) != 4
        or not all(isinstance(v, (int, float)) and abs(v) < _MAX_COORDINATE for v in annotation["bbox"])
    ]
    return [f"{some('', wrong)}: a box is four numbers [x, y, width, height] in pixels"] if wrong else []


def _complete(raw: dict[str, Any], path: Path) -> CocoFile:
    sizes = {image["id"]: (image["width"], image["height"]) for image in raw["images"]}
    names = {image["id"]: image["file_name"] for image in raw["images"]}
    given_ids = [a.get("id") for a in raw["annotations"]]
    ids_usable = all(isinstance(i, int) and i > 0 for i in given_ids) and len(set(given_ids)) == len(given_ids)
    annotations, left_out, outside = [], [], []
    for place, annotation in enumerate(raw["annotations"]):
        x, y, width, height = annotation["bbox"]
        image_width, image_height = sizes[annotation["image_id"]]
        inside_width = min(x + width, image_width) - max(x, 0)
        inside_height = min(y + height, image_height) - max(y, 0)
        if min(width, height, inside_width, inside_height) <= 0:
            left_out.append(
                f"{names[annotation['image_id']]} {_annotation_name(annotation, place)} {annotation['bbox']}"
            )
            continue
        if min(x, y, image_width - x - width, image_height - y - height) < -_ROUNDING:
            outside.append(_annotation_name(annotation, place))
        area = annotation.get("area")
        annotations.append(
            {
                "id": annotation["id"] if ids_usable else place + 1,  # pycocotools takes id 0 for "unmatched"
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": annotation["bbox"],
                "area": area if isinstance(area, (int, float)) and area > 0 else width * height,
                "iscrowd": int(bool(annotation.get("iscrowd") or annotation.get("ignore"))),
            }
        )
    coco = {
        "info": raw.get("info", {}),
        "images": raw["images"],
        "annotations": annotations,
        "categories": raw["categories"],
    }
    notes = [f"{path}: left out {len(left_out)} boxes without area in their picture:"] if left_out else []
    notes += [f"  {line}" for line in left_out]
    if outside:
        notes.append(
            f"{path}: {len(outside)} of {len(annotations)} boxes reach out of their picture and are clipped "
            f"({some('', outside)}); COCO's boxes are [x, y, width, height], not two corners"
        )
    return CocoFile(coco, notes)


def _annotation_name(annotation: dict[str, Any], place: int) -> str:
    return f"annotation {annotation['id']}" if "id" in annotation else f"annotations[{place}]"
