"""Checks that make a JSON file a COCO detection file: its lists and fields, its ids, and the format of its boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from ..errors import cut, some
from .class_names import CLASS_NAME_RULE, is_class_name
from .coco_amend import MAX_ID

_MAX_COORDINATE = 1e7  # pixels; beyond it, and for inf and NaN, a box or a size is a mistake
_MAX_CATEGORIES = 100_000  # far beyond any data set; reached where each object was made a class
_KIND_NAMES = {int: "an integer", str: "a text", list: "a list"}
_ROUNDING = 1.0  # pixels that a box may extend beyond its image without a note
_FAR = 0.1  # of the image's side: more than rounding, or an object cut off by the border, explains
# A file is taken for one of corners when nearly all its boxes would be corners inside their image, and a fifth of
# them reach far out if they are not. Of boxes in their image that are [x, y, width, height], none reaches out. Of
# corners [x1, y1, x2, y2], with x1 + x2 = 2 * (the centre's x), those do whose centre is beyond .55 of the width or of
# the height: 1 - .55^2 = 70 % where centres lie anywhere. Few boxes prove nothing.
_CORNERS, _REACH_FAR, _ENOUGH = 0.95, 0.2, 5
# A part of a file is taken for corners from this share of suspected boxes on, which 7 % of corners give. A correct box
# is suspected only if it was drawn far beyond the right or the lower border although width > x and height > y, so that
# it covers more than .55 of that side of the image. Whoever draws beyond borders does so as often beyond the left and
# the upper one, where no corner lies: as many as reach far out there are not counted.
_PART = 0.05
_REVERSED = 0.5  # above this share, boxes of a negative side are how a file is written, not single mistakes
T = TypeVar("T")


def shape_problems(raw: Any) -> list[str]:
    """Return the lists and fields that a detection file needs and this one lacks or has as another kind of value."""
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
        if section == "categories" and len(rows) > _MAX_CATEGORIES:
            problems.append(
                f"categories: {len(rows)} of them, more than {_MAX_CATEGORIES}; name each class once, not each object"
            )
            continue
        for place, row in enumerate(rows):
            if wrong := _wrong_field(row, fields):
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
            return f'"{field}" is {cut(repr(value))}, not {_KIND_NAMES[kind]}'
        if field in ("width", "height") and not 0 < row[field] <= _MAX_COORDINATE:
            return f'"{field}" is {cut(value)}, not a size in pixels'
        if kind is int and not -MAX_ID <= row[field] < MAX_ID:
            return f'"{field}" is {cut(value)}, beyond an integer of 64 bits; number anew'
        if field == "name" and not is_class_name(row[field]):
            return f'"name" of category id={row["id"]} is {cut(repr(value))}; {CLASS_NAME_RULE}'
    for field in ("iscrowd", "ignore"):
        if row.get(field) not in (None, 0, 1):
            return f'"{field}" is {cut(repr(row[field]))}, not 0 or 1'
    return None


def is_number(value: Any) -> bool:
    """Tell whether JSON gave a number; its true and false are Python's 1 and 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_coordinate(value: Any) -> bool:
    """Tell whether a value can be a coordinate in pixels, or a percentage or an angle: finite, and not beyond all."""
    return is_number(value) and abs(value) < _MAX_COORDINATE


def is_area(value: Any) -> bool:
    """Tell whether a value can be an object's area in pixels."""
    return is_number(value) and 0 < value <= _MAX_COORDINATE**2


def _in_json(value: Any) -> str:
    """Name a value's kind as JSON does."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def id_problems(raw: dict[str, Any]) -> list[str]:
    """Return ids and names that are repeated, and ids that refer to nothing."""
    problems = []
    image_ids, category_ids = ([row["id"] for row in raw[section]] for section in ("images", "categories"))
    names = [cut(name) for name in _repeated(row["name"] for row in raw["categories"])]
    for section, what, repeated in (
        ("images", "id", sorted(_repeated(image_ids))),
        ("categories", "id", sorted(_repeated(category_ids))),
        ("categories", "name", names),
    ):
        if repeated:
            problems.append(f"{section}: repeated {some(what, repeated)}; each needs its own")
    known_images, known_categories = set(image_ids), set(category_ids)
    strangers: dict[int, list[str]] = {}
    orphans = []
    for place, annotation in enumerate(raw["annotations"]):
        if annotation["category_id"] not in known_categories:
            strangers.setdefault(annotation["category_id"], []).append(annotation_name(annotation, place))
        if annotation["image_id"] not in known_images:
            orphans.append(f"image_id={annotation['image_id']} ({annotation_name(annotation, place)})")
    if strangers:
        found = [f"category_id={category_id} ({some('', names)})" for category_id, names in strangers.items()]
        problems.append(
            f"{some('', found)} {'is' if len(found) == 1 else 'are'} not in categories "
            f"[{some('', sorted(known_categories))}]; add the category or correct the id"
        )
    if orphans:
        problems.append(f"{some('', orphans)} not in images; add the image or remove the annotation")
    return problems


def _repeated(values: Iterable[T]) -> list[T]:
    return [value for value, count in Counter(values).items() if count > 1]


def repeated_files(raw: dict[str, Any]) -> list[str]:
    """Return a note on images that are listed under several ids."""
    repeated = [cut(repr(name)) for name in _repeated(image["file_name"] for image in raw["images"])]
    note = (
        f"{len(repeated)} images have several ids, each with only some of their boxes, so that an object under one id "
        f"is background under another ({some('', repeated)}); give each image one id"
    )
    return [note] if repeated else []


def number_problems(raw: dict[str, Any]) -> list[str]:
    """Return the boxes that are not four numbers."""
    wrong = [
        f"bbox={cut(annotation['bbox'])} ({annotation_name(annotation, place)})"
        for place, annotation in enumerate(raw["annotations"])
        if len(annotation["bbox"]) != 4 or not all(map(is_coordinate, annotation["bbox"]))
    ]
    return [f"{some('', wrong)}: a box is four numbers [x, y, width, height] in pixels"] if wrong else []


def unread_problems(raw: dict[str, Any], use: Literal["train", "val"]) -> list[str]:
    """Return what Detectron2 or pycocotools fail on in a file that they read as it is, perhaps only after a training.

    A set that is both trained on and evaluated on has the use "val".
    """
    rows = raw["annotations"]
    ids = [row.get("id") for row in rows]
    found = [
        ("an id of their own", len(ids) - len({i for i in ids if isinstance(i, int)})),
        ('"ignore" 0', sum(bool(row.get("ignore")) for row in rows)),
    ]
    if use == "val":
        found += [
            ("an id above 0", sum(isinstance(i, int) and i <= 0 for i in ids)),  # 0 means "unmatched" to pycocotools
            ('"area"', sum(not is_number(a := row.get("area")) or not 0 <= a <= _MAX_COORDINATE**2 for row in rows)),
            ('"iscrowd"', sum(row.get("iscrowd") is None for row in rows)),
        ]
    wrong = [f"{number} of {len(rows)} annotations are without {what}" for what, number in found if number]
    if not wrong:
        return []
    return [
        f"{', '.join(wrong)}, and a registered set is read as it is: give its files as 'coco:FILE:IMAGES' in DATASETS "
        "or by --train-json or --val-json, which completes it"
    ]


def is_federated(raw: Any) -> bool:
    """Tell whether a file is LVIS's: each image says which absent classes, and which only in part, were looked for."""
    images = raw.get("images") if isinstance(raw, dict) else None
    fields = ("neg_category_ids", "not_exhaustive_category_ids")
    return (
        isinstance(images, list)
        and bool(images)
        and all(isinstance(image, dict) and isinstance(image.get(f), list) for image in images for f in fields)
    )


def name_by_url(images: list[dict[str, Any]]) -> None:
    """Give images without file_name the last two parts of their coco_url, such as val2017/1.jpg, as Detectron2 does."""
    for image in images:
        if "file_name" not in image and isinstance(image.get("coco_url"), str):
            image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])


def unread_lvis_problems(raw: dict[str, Any]) -> list[str]:
    """Return what Detectron2's reader of LVIS files fails on, in a file whose lists and fields are sound."""
    rows = raw["annotations"]
    found = [
        ("an id of their own", len(rows) - len({i for row in rows if isinstance(i := row.get("id"), int)})),
        ('polygons in "segmentation"', sum(not _has_polygons(row) for row in rows)),
    ]
    wrong = [f"{number} of {len(rows)} annotations are without {what}" for what, number in found if number]
    fix = "correct the file, or give it by --train-json or --val-json, which needs neither"
    return [f"{', '.join(wrong)}, which Detectron2's reader of LVIS files needs: {fix}"] if wrong else []


def _has_polygons(row: dict[str, Any]) -> bool:
    polygons = row.get("segmentation")
    return isinstance(polygons, list) and bool(polygons) and all(len(p) >= 6 and len(p) % 2 == 0 for p in polygons)


def annotation_name(annotation: dict[str, Any], place: int) -> str:
    """Name an annotation by its id, or by its position where it has none."""
    return f"annotation {cut(annotation['id'])}" if "id" in annotation else f"annotations[{place}]"


def without_area(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Tell of each box whether it has no area inside its image, (N,)."""
    inside = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes) - np.maximum(boxes[:, :2], 0)
    return np.asarray(np.minimum(boxes[:, 2:], inside).min(axis=1) <= 0)


def reaching_out(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Tell of each box whether it extends beyond its image by more than rounding, (N,)."""
    return _beyond(boxes, sizes, np.full_like(sizes, _ROUNDING))


def like_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Tell of each box whether it extends far beyond its image, but would not as [x1, y1, x2, y2], (N,)."""
    return _are_corners(boxes, sizes) & _beyond(boxes, sizes, _FAR * sizes)


def reversed_problem(annotations: Sequence[dict[str, Any]], boxes: np.ndarray) -> str | None:
    """Return a problem if most boxes have a side below 0, as one tool writes them; single ones have no area."""
    negative = (boxes[:, 2:] < 0).any(axis=1)
    if not len(boxes) or negative.mean() <= _REVERSED:
        return None
    first = [annotation_name(annotations[place], place) for place in np.flatnonzero(negative).tolist()]
    what = "have xmax < xmin or ymax < ymin, that is a width or height below 0"
    return f"{len(first)} of {len(boxes)} boxes {what} ({some('', first)}); exchange the two corners"


def format_problem(boxes: np.ndarray, sizes: np.ndarray) -> str | None:
    """Return a problem if the file, or a part of it, has its boxes in another format than COCO's."""
    suspected = like_corners(boxes, sizes)
    if suspected.sum() >= max(_ENOUGH, _REACH_FAR * len(boxes)) and _are_corners(boxes, sizes).mean() >= _CORNERS:
        return (
            f"the boxes are two corners [x1, y1, x2, y2] (XYXY stored as XYWH): as [x, y, width, height], "
            f"{percent(suspected.mean())} of the {len(boxes)} would reach far out of their image, as corners "
            "nearly none; store x2 - x1 and y2 - y1 as width and height"
        )
    number = int(suspected.sum()) - int((boxes[:, :2] < -_FAR * sizes).any(axis=1).sum())
    if number >= max(_ENOUGH, _PART * len(boxes)):
        return (
            f"a part of the boxes are two corners [x1, y1, x2, y2] (XYXY stored as XYWH): {suspected.sum()} of "
            f"{len(boxes)} ({percent(suspected.mean())}) reach far out of their image as [x, y, width, height], and "
            "would lie inside it as corners; store x2 - x1 and y2 - y1 as width and height"
        )
    fractions = (boxes <= 1).all(axis=1) & (boxes >= 0).all(axis=1) & (boxes % 1 > 0).any(axis=1)
    if len(boxes) >= _ENOUGH and fractions.all():
        return (
            f"all {len(boxes)} boxes lie in 0..1, as fractions of the image, where pixels are needed: "
            "multiply by width and height, and mind that YOLO's first two are the centre"
        )
    return None


def percent(share: float) -> str:
    """Format a share; never as 0% if it is more than 0."""
    return f"{100 * share:.0f}%" if share == 0 or share >= 0.005 else "under 1%"


def _are_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    ordered, inside = boxes[:, 2:] > boxes[:, :2], (boxes[:, :2] >= -_ROUNDING) & (boxes[:, 2:] <= sizes + _ROUNDING)
    return np.asarray(np.all(ordered & inside, axis=1))


def _beyond(boxes: np.ndarray, sizes: np.ndarray, margin: np.ndarray) -> np.ndarray:
    out = np.maximum(-boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - sizes)
    return np.asarray((out > margin).any(axis=1))
