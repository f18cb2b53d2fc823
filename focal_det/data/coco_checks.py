"""What makes a JSON file a COCO detection file: its lists, their fields, and ids that find one another."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from ..errors import cut, some

_MAX_COORDINATE = 1e7  # pixels; beyond it, and for inf and NaN, a box or a size is a mistake
_MAX_ID = 2**63  # what NumPy's integers hold, in which pycocotools keeps ids
_MAX_CATEGORIES = 100_000  # far beyond any data set; the classes of a file that numbers its objects as such


def shape_problems(raw: Any) -> list[str]:
    """Lists and fields that a detection file needs and this one lacks, or has as another kind of value."""
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
            return f'"{field}" is {cut(repr(value))}, not {_KIND_NAMES[kind]}'
        if field in ("width", "height") and not 0 < row[field] <= _MAX_COORDINATE:
            return f'"{field}" is {cut(value)}, not a size in pixels'
        if kind is int and not -_MAX_ID <= row[field] < _MAX_ID:
            return f'"{field}" is {cut(value)}, beyond an integer of 64 bits; number anew'
        if field == "name" and not is_class_name(row[field]):
            return f'"name" of category id={row["id"]} is {cut(repr(value))}; {CLASS_NAME_RULE}'
    for field in ("iscrowd", "ignore"):
        if row.get(field) not in (None, 0, 1):
            return f'"{field}" is {cut(repr(row[field]))}, not 0 or 1'
    return None


CLASS_NAME_RULE = "a class needs a name of printable characters on one line"


def is_class_name(text: str) -> bool:
    """Whether it can be shown: not empty, on one line, without control characters and halves of characters."""
    return bool(text.strip()) and text.isprintable()


def is_number(value: Any) -> bool:
    """Whether JSON gave a number; its true and false are Python's 1 and 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_area(value: Any) -> bool:
    """Whether it can be an object's area in pixels."""
    return is_number(value) and 0 < value <= _MAX_COORDINATE**2


def _in_json(value: Any) -> str:
    """A value's kind in JSON's own words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


_KIND_NAMES = {int: "an integer", str: "a text", list: "a list"}


def id_problems(raw: dict[str, Any]) -> list[str]:
    """Ids and names that are repeated, or that nothing has."""
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
        problems.append(
            f"categories: repeated {some('name', [cut(name) for name in repeated_names])}; each needs its own"
        )
    strangers: dict[int, list[str]] = {}
    orphans = []
    for place, annotation in enumerate(raw["annotations"]):
        if annotation["category_id"] not in category_ids:
            strangers.setdefault(annotation["category_id"], []).append(annotation_name(annotation, place))
        if annotation["image_id"] not in image_ids:
            orphans.append(f"image_id={annotation['image_id']} ({annotation_name(annotation, place)})")
    if strangers:
        found = [f"category_id={category_id} ({some('', names)})" for category_id, names in strangers.items()]
        problems.append(
            f"{some('', found)} {'is' if len(found) == 1 else 'are'} not in categories "
            f"[{some('', sorted(category_ids))}]; add the category or correct the id"
        )
    if orphans:
        problems.append(f"{some('', orphans)} not in images; add the image or remove the annotation")
    return problems


def repeated_files(raw: dict[str, Any]) -> list[str]:
    """A note on pictures that stand there under several ids."""
    counts = Counter(image["file_name"] for image in raw["images"])
    repeated = [cut(repr(name)) for name, count in counts.items() if count > 1]
    if not repeated:
        return []
    return [
        f"{len(repeated)} pictures have several ids, each with only a part of their boxes, so that objects of one are "
        f"background under another ({some('', repeated)}); give each picture one id"
    ]


def number_problems(raw: dict[str, Any]) -> list[str]:
    """Boxes that are not four numbers."""
    wrong = [
        f"bbox={cut(annotation['bbox'])} ({annotation_name(annotation, place)})"
        for place, annotation in enumerate(raw["annotations"])
        if len(annotation["bbox"]) != 4
        or not all(is_number(v) and abs(v) < _MAX_COORDINATE for v in annotation["bbox"])
    ]
    return [f"{some('', wrong)}: a box is four numbers [x, y, width, height] in pixels"] if wrong else []


def unread_problems(raw: dict[str, Any], use: Literal["train", "val"]) -> list[str]:
    """What Detectron2 or pycocotools fail on in a file that they read as it is, perhaps only after a whole training.

    Args:
        raw: without `shape_problems`.
        use: "val" also for a set that is trained on and evaluated on.
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
    if use == "val" and "info" not in raw:
        wrong.append('"info" is missing')
    if not wrong:
        return []
    return [
        f"{', '.join(wrong)}, and a set by name is read as it is: give it by place as 'coco:FILE:IMAGES' in DATASETS "
        "or by --train-json or --val-json, which completes it"
    ]


def annotation_name(annotation: dict[str, Any], place: int) -> str:
    """By its id, or by its place where it has none."""
    return f"annotation {cut(annotation['id'])}" if "id" in annotation else f"annotations[{place}]"
