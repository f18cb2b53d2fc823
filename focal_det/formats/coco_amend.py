"""Rewrite what exporters write in another way than COCO, where it can mean one thing alone; each change is noted.

Numbers that are texts, an object's outline without its box, and a category above all others that no object has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import counted, cut, some

MAX_ID = 2**63  # what NumPy's integers hold, in which pycocotools keeps ids
_FROM_OUTLINE = "bbox_of_outline"
_UNNAMED = (None, "", "none")  # the supercategory of a category that has none


def without_outline(row: dict[str, Any]) -> None:
    """Drop an object's outline, which takes most of a file's memory; where it has no box, its outline's is the box."""
    outline = row.pop("segmentation", None)
    if outline and not row.get("bbox") and "category_id" in row and (box := _box_around(outline)):
        row["bbox"], row[_FROM_OUTLINE] = box, True


def amend(raw: Any) -> list[str]:
    """Change a file's contents into what they mean, and return a note on each kind of change.

    What is not as it has to be stays as it is, for the checks to name.
    """
    if not isinstance(raw, dict) or not all(_are_rows(raw.get(s)) for s in ("images", "annotations", "categories")):
        return []
    notes = _whole_sizes(raw["images"]) + _without_root(raw)
    notes += _renumber(raw["images"], "images", "file_name", raw["annotations"], "image_id")
    notes += _renumber(raw["categories"], "categories", "name", raw["annotations"], "category_id")
    outlined = [a for a in raw["annotations"] if a.pop(_FROM_OUTLINE, False)]
    if outlined:
        ids = some("", [f"annotation {cut(a.get('id'))}" for a in outlined])
        notes.append(f"{counted(len(outlined), 'annotation')} without bbox got that of their segmentation: {ids}")
    return notes


def _are_rows(rows: Any) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _box_around(outline: Any) -> list[float] | None:
    """Return x, y, width, height of polygons [x1, y1, x2, y2, ...]; None of anything else."""
    try:
        points = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in outline])
        (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    except (TypeError, ValueError):  # a mask of runs, or what is none: its box is missing, and said to be
        return None
    return [x0, y0, x1 - x0, y1 - y0]


def _whole_sizes(images: Sequence[dict[str, Any]]) -> list[str]:
    """Read widths and heights such as 640.0 and "640" as integers."""
    changed = []
    for image in images:
        sides: dict[str, Any] = {side: image.get(side) for side in ("width", "height")}
        whole = {side: int(value) for side, value in sides.items() if _is_whole(value)}
        if whole:
            image.update(whole)
            changed.append(cut(repr(image.get("file_name"))))
    what = "widths or heights that are not written as integers, and were read as such"
    return [f"{len(changed)} of {len(images)} images have {what}: {some('', changed)}"] if changed else []


def _is_whole(value: Any) -> bool:
    if isinstance(value, str):
        return value.isascii() and value.isdecimal() and len(value) < 10
    return isinstance(value, float) and value.is_integer()


def _without_root(raw: dict[str, Any]) -> list[str]:
    """Leave out the category that is the supercategory of all others and that no object has, as Roboflow writes one."""
    categories = raw["categories"]
    if len(categories) < 2:
        return []
    used = {str(a.get("category_id")) for a in raw["annotations"]}
    above = Counter(str(category.get("supercategory")) for category in categories)
    for root in categories:
        name = root.get("name")
        is_root = isinstance(name, str) and name not in _UNNAMED and root.get("supercategory") in _UNNAMED
        if is_root and above[name] == len(categories) - 1 and str(root.get("id")) not in used:
            raw["categories"] = [category for category in categories if category is not root]
            what = "left out, since it is the supercategory of all others and has no box"
            return [f"category {cut(repr(root.get('name')))} (id {cut(root.get('id'))}) was {what}"]
    return []


def _renumber(
    rows: Sequence[dict[str, Any]], section: str, name: str, annotations: Sequence[dict[str, Any]], key: str
) -> list[str]:
    """Number images or categories whose ids are no integers of 64 bits, and follow the annotations' references."""
    ids = [row.get("id") for row in rows]
    known = set(map(str, ids))
    if not all(map(_can_be_id, ids)) or len(known) < len(ids):
        return []  # missing or repeated
    notes: list[str] = []
    numbers: dict[Any, Any] = dict(zip(ids, ids, strict=True))
    if wrong := [cut(repr(i)) for i in ids if not _is_id(i)]:
        numbers, how = _numbers(ids)
        for row in rows:
            row["id"] = numbers[row["id"]]
        notes.append(f"{section}: {len(wrong)} of {len(ids)} ids are no integers and {how} ({some('', wrong)})")
    if wrong or not all(_is_id(a.get(key)) for a in annotations):
        named = Counter(row.get(name) for row in rows if isinstance(row.get(name), str))
        meant = {row[name]: row["id"] for row in rows if named.get(row.get(name)) == 1}
        meant |= {str(i): number for i, number in numbers.items()}
        by_text = 0
        for annotation in annotations:
            value = annotation.get(key)
            if _can_be_id(value) and (not _is_id(value) or wrong) and str(value) in meant:
                annotation[key] = meant[str(value)]
                by_text += not _is_id(value) and not wrong
        if by_text:
            notes.append(
                f"{by_text} of {len(annotations)} annotations name their {key} as text; taken as the {section}' ids"
            )
    return notes


def _numbers(ids: Sequence[Any]) -> tuple[dict[Any, Any], str]:
    """Return integers for ids: those that they write if all do, else 1 to N in the order of the texts."""
    try:
        written = [int(i) if isinstance(i, str) or i == int(i) else None for i in ids]
    except (ValueError, OverflowError):
        written = []
    if len(set(written)) == len(ids) and all(map(_is_id, written)):
        return dict(zip(ids, written, strict=True)), "were read as such"
    ordered = sorted(ids, key=str)
    return {
        i: number for number, i in enumerate(ordered, start=1)
    }, f"were numbered from 1 to {len(ids)} in their order"


def _is_id(value: Any) -> bool:
    return type(value) is int and -MAX_ID <= value < MAX_ID


def _can_be_id(value: Any) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool) and value == value
