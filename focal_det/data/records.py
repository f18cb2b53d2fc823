"""The records of a registered function, Detectron2's own form of a data set, checked and converted to COCO's form.

Detectron2 reads such records as they are. What it or its evaluators would trip over, perhaps only after a training, is
found here: each problem names the image's file, the place in its record, and the fix.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask
from detectron2.data import DatasetCatalog
from detectron2.evaluation.pascal_voc_evaluation import parse_rec
from detectron2.structures import BoxMode, PolygonMasks
from torch.utils.data import Dataset

from ..distributed.signals import EndedBySignal
from ..errors import InputError, cut, first_line, some
from .dataset_spec import Use

Record = Mapping[str, Any]
_RELATIVE = (BoxMode.XYXY_REL, BoxMode.XYWH_REL)
_VOC_YEARS = (2007, 2012)
AS_COCO = "or register it without evaluator_type, and it is scored as COCO does"


class Records(NamedTuple):
    """A function's records as COCO's contents, for `check_coco`.

    coco: its images' ids are their positions, in the order in which they are trained on; an annotation's id names its
        place, for messages; file names are relative to `image_dir`.
    image_ids: the records' own, by position; of a set that is trained on alone the positions.
    is_annotated: whether any image has an annotation.
    """

    coco: dict[str, Any]
    image_dir: Path
    image_ids: list[int | str]
    is_annotated: bool


def records_of(name: str, use: Use) -> Sequence[Record] | None:
    """Call the function of a registered set; None if it returns a stream or a PyTorch data set to train on.

    Raises:
        InputError: it raises, returns no list or an empty one, or a stream to evaluate on.
    """
    try:
        found = DatasetCatalog.get(name)
    except EndedBySignal:
        raise
    except (Exception, SystemExit) as error:  # whatever somebody's function may raise
        problem = f"its function raised {type(error).__name__}: {first_line(error)}"
        raise InputError(f'data set "{name}": {problem}; correct it, or what it reads') from error
    if isinstance(found, Dataset) and use == "train":
        return None
    if not isinstance(found, (list, tuple)) or not found:
        what = "an empty list" if isinstance(found, (list, tuple)) else f"{type(found).__name__}, not a list"
        raise InputError(f'data set "{name}": its function returned {what}; return a list of one dict for each image')
    return found


def as_coco(
    name: str,
    records: Sequence[Record],
    class_names: Sequence[str],
    category_ids: Sequence[int],
    use: Use,
    difficult: Mapping[str, Sequence[bool]],
) -> Records:
    """Check a function's records, and convert them.

    Args:
        class_names, category_ids: by label; a record's "category_id" is a label.
        use: "val" also for a set that is both trained on and evaluated on.
        difficult: by image id, which annotations are ignored where they are evaluated on.

    Raises:
        InputError: with every problem found.
    """
    problems: dict[str, list[str]] = {}
    number_of = {"records": len(records), "annotations": 0}
    for place, record in enumerate(records):
        if wrong := _wrong_record(record, use):
            where = f"record {place}" if not isinstance(record, Mapping) else repr(record.get("file_name", place))
            problems.setdefault(f"records {wrong}", []).append(where)
            continue
        for number, annotation in enumerate(record.get("annotations", ())):
            number_of["annotations"] += 1
            if fault := _wrong_annotation(annotation, len(class_names)):
                where = f"annotation {number} of {str(record['file_name'])!r}"
                problems.setdefault(f"annotations {fault[0]}", []).append(f"{where}{fault[1]}")
    lines = [f"{len(w)} of {number_of[kind.split()[0]]} {kind}: {some('', w)}" for kind, w in problems.items()]
    if use == "val" and not lines:
        lines = _id_problems([record["image_id"] for record in records])
    if lines:
        raise InputError([f'data set "{name}": {line}' for line in lines])
    paths = [os.path.abspath(record["file_name"]) for record in records]
    image_dir = os.path.commonpath([os.path.dirname(path) for path in paths])
    images, annotations = [], []
    for place, (record, path) in enumerate(zip(records, paths, strict=True)):
        size = {"width": int(record["width"]), "height": int(record["height"])}
        file_name = os.path.relpath(path, image_dir)
        images.append({"id": place, "file_name": file_name, **size})
        rows = record.get("annotations", ())
        ignored = difficult.get(record.get("image_id", ""), ())
        for number, (annotation, box) in enumerate(zip(rows, _xywh_boxes(rows), strict=True)):
            annotations.append(
                {
                    "id": f"{number} of {file_name!r}",
                    "image_id": place,
                    "category_id": category_ids[int(annotation["category_id"])],
                    "bbox": box,
                    "area": _mask_area(annotation) if use == "val" else None,  # 0.2 ms each
                    "iscrowd": int(bool(annotation.get("iscrowd", 0)) or (number < len(ignored) and ignored[number])),
                }
            )
    categories = [{"id": i, "name": n} for i, n in zip(category_ids, class_names, strict=True)]
    ids = [record["image_id"] if use == "val" else place for place, record in enumerate(records)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    return Records(coco, Path(image_dir), ids, bool(annotations))


def with_image_ids(coco: Mapping[str, Any], image_ids: Sequence[int | str]) -> dict[str, Any]:
    """Replace the positions in a checked set by the records' own image ids, which the detections will have."""
    sections = {"images": "id", "annotations": "image_id"}
    rows = {name: [{**row, key: image_ids[row[key]]} for row in coco[name]] for name, key in sections.items()}
    return {**coco, **rows}


def _wrong_record(record: Any, use: str) -> str | None:
    if not isinstance(record, Mapping):
        return "are not dicts"
    if not isinstance(record.get("file_name"), (str, os.PathLike)):
        return 'are without "file_name", the path of the image'
    for side in ("height", "width"):
        if not _is_whole(record.get(side)) or record[side] <= 0:
            return f'are without "{side}", the image\'s number of pixels'
    image_id = record.get("image_id")
    if use == "val" and (isinstance(image_id, bool) or not isinstance(image_id, (int, str))):
        return 'are without "image_id", which evaluation needs: an int (not NumPy\'s) or a str of their own'
    if not isinstance(record.get("annotations", None if use == "train" else []), (list, tuple)):
        return 'are without "annotations", a list, empty where nothing is in the image'
    return None


def _wrong_annotation(annotation: Any, num_classes: int) -> tuple[str, str] | None:
    """Return a kind of fault, and the value at fault."""
    if not isinstance(annotation, Mapping):
        return "are not dicts", ""
    box, mode = annotation.get("bbox"), annotation.get("bbox_mode")
    if mode is None:
        return 'are without "bbox_mode", such as BoxMode.XYXY_ABS', ""
    if mode == BoxMode.XYWHA_ABS:
        fix = "this detector finds upright ones, which BoxMode.convert(bbox, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS) gives"
        return f"have rotated boxes; {fix}", ""
    if mode in _RELATIVE:
        return "have boxes relative to the image's size, which Detectron2 does not read; multiply them by it", ""
    if not isinstance(mode, BoxMode) and mode != BoxMode.XYXY_ABS:  # a bare 0 is XYXY_ABS for Detectron2, too
        return "have a bbox_mode that is not one of BoxMode's", f" bbox_mode={cut(repr(mode))}"
    try:
        found = np.asarray(box)
        is_box = found.shape == (4,) and found.dtype.kind in "iuf"  # not texts and objects, of which torch makes none
    except (TypeError, ValueError):
        is_box = False
    if not is_box:
        return 'have a "bbox" that is not four numbers', f" bbox={cut(repr(box))}"
    label: Any = annotation.get("category_id")
    if not _is_whole(label) or not 0 <= label < num_classes:
        classes = f"the labels of the {num_classes} in thing_classes are 0 to {num_classes - 1}"
        return f"have a category_id that is not a class; {classes}", f" category_id={cut(repr(label))}"
    crowd = annotation.get("iscrowd", 0)
    if not isinstance(crowd, (int, float, np.number, np.bool_)) or crowd not in (0, 1):
        return 'have an "iscrowd" that is neither 0 nor 1', f" iscrowd={cut(repr(crowd))}"
    return None


def _is_whole(value: Any) -> bool:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return bool(number and value == value // 1)


def _id_problems(ids: Sequence[int | str]) -> list[str]:
    if len({type(image_id) for image_id in ids}) > 1:
        return ['some values of "image_id" are an int, others a str; make all the same']
    repeated = [image_id for image_id, count in Counter(ids).items() if count > 1]
    return [f"{some('image_id', repeated)} is that of several records; give each its own"] if repeated else []


def _xywh_boxes(annotations: Sequence[Record]) -> list[list[float]]:
    boxes = []
    for annotation in annotations:
        box = np.asarray(annotation["bbox"], dtype=float)[None]
        boxes += BoxMode.convert(box, BoxMode(annotation["bbox_mode"]), BoxMode.XYWH_ABS).tolist()
    return boxes


def _mask_area(annotation: Record) -> float | None:
    """Return the area of an object's mask, by which COCO's sizes go; None where the box's is to be taken."""
    mask = annotation.get("segmentation")
    try:
        if isinstance(mask, Mapping):
            return float(pycocotools.mask.area(dict(mask)))
        return float(PolygonMasks([mask]).area()[0]) if mask else None
    except Exception:  # a damaged mask does no harm: neither training nor the scores of boxes read it
        return None


def read_difficult(name: str, metadata: Mapping[str, Any], records: Sequence[Record]) -> dict[str, list[bool]]:
    """Read by image which objects of a set with evaluator_type pascal_voc are difficult, as its evaluator will.

    Raises:
        InputError: what Detectron2's evaluator would trip over: metadata, split or annotations that are not as VOC's.
    """
    missing = [key for key in ("dirname", "split", "year") if metadata.get(key) is None]
    if missing:
        problem = f"evaluator_type is pascal_voc, whose evaluator needs {', '.join(missing)} in the metadata"
        raise InputError(f'data set "{name}": {problem}; register it by register_pascal_voc, {AS_COCO}')
    if metadata["year"] not in _VOC_YEARS:
        years = " or ".join(map(str, _VOC_YEARS))
        raise InputError(f'data set "{name}": year is {metadata["year"]!r}, and VOC\'s rules are those of {years}')
    folder = Path(metadata["dirname"])
    split = folder / "ImageSets" / "Main" / f"{metadata['split']}.txt"
    try:
        names = [line.strip() for line in split.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f'data set "{name}": {split} cannot be read ({first_line(error)}), {AS_COCO}') from error
    found: dict[str, list[bool]] = {}
    broken = []
    for image in names:
        try:
            # past its cache, which would not see a file that is corrected
            objects = parse_rec.__wrapped__(os.path.join(folder, "Annotations", f"{image}.xml"))
            found[image] = [bool(thing["difficult"]) for thing in objects]
        except Exception as error:  # whatever its parser raises on somebody's file
            broken.append(f"{image + '.xml'!r} ({first_line(error)})")
    strangers = [repr(i) for i in dict.fromkeys(record.get("image_id") for record in records) if i not in found]
    problems = []
    if broken:
        needed = "each object needs name, pose, truncated, difficult and corners that are whole numbers"
        problems.append(f"{len(broken)} of {len(names)} annotations of {split} cannot be scored: {some('', broken)}")
        problems[-1] += f"; {needed}, {AS_COCO}"
    elif strangers:
        problems.append(f"{split} lacks {some('image', strangers)}, which the function returns; add them, {AS_COCO}")
    if problems:
        raise InputError([f'data set "{name}": {problem}' for problem in problems])
    same = (r for r in records if len(r.get("annotations", ())) == len(found[r["image_id"]]))
    return {record["image_id"]: found[record["image_id"]] for record in same}
