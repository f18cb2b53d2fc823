"""Read registered data sets: Detectron2's own, and those that a function of the user's returns."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..data.catalog import category_ids, evaluator_type, look_up, registered_files
from ..data.dataset_spec import Use
from ..data.records import as_coco, read_difficult, records_of, with_image_ids
from ..data.shapes import parse_name
from ..errors import InputError, cut
from ..extras import install_command
from ..files import open_regular
from ..formats.coco import LARGEST_JSON, CocoFile, check_coco
from ..formats.coco_checks import name_by_url, shape_problems, unread_lvis_problems
from ..plain_data import parse_json

STREAM = "a stream, so not described"


class NamedSet(NamedTuple):
    """A registered set, read and checked.

    file: None where `remark` says why there are no annotations to check.
    image_dir: the folder of its images.
    image_ids: the records' own, by the position that `file` has instead.
    needs_copy: whether it has to be written anew to be scored.
    is_scored: whether a set without `file` may have objects to score against.
    """

    file: CocoFile | None = None
    remark: str = ""
    image_dir: str = ""
    image_ids: list[int | str] | None = None
    needs_copy: bool = False
    is_scored: bool = True

    def contents(self) -> CocoFile:
        """Return the file as it is to be written, with the records' own image ids."""
        assert self.file is not None
        if self.image_ids is None:
            return self.file
        return self.file._replace(coco=with_image_ids(self.file.coco, self.image_ids))


def read_named_set(name: str, use: Use, *, images: bool, allow_outside: bool = False) -> NamedSet:
    """Return a registered set's annotations, checked; or a remark that says why there are none to check.

    What is trained on, Detectron2 reads itself, so it must be complete. Boxes without area, which are left out of the
    returned copy, are left out of training by its loader too, but not of its evaluation of a COCO file.

    Args:
        name: of a set without `dataset_problems`.
        use: "val" also for a set that is both trained on and evaluated on.
        images: also decode its images.
        allow_outside: see `read_coco`.

    Raises:
        InputError: with every problem found.
    """
    files, kind = registered_files(name), evaluator_type(name)
    if files is None or kind == "pascal_voc":
        return _read_function(name, use, decode=images)
    annotations, folder = Path(files[0]), Path(files[1])
    if parse_name(name) is not None and not annotations.is_file():
        return NamedSet(remark="generated shapes, drawn first")
    try:
        with open_regular(annotations, most=LARGEST_JSON) as file:
            raw = parse_json(file.read(), change=None if kind == "lvis" else _without_mask)
    except (OSError, ValueError, MemoryError) as error:
        raise InputError(f'data set "{name}": {annotations} cannot be read ({error})') from error
    how: dict[str, Any] = {"images": images, "decode": images, "allow_outside": allow_outside}
    if kind == "lvis":
        return _check_lvis(name, raw, annotations, files[1], how)
    if isinstance(raw, dict) and "annotations" not in raw:
        remark = f"{len(raw.get('images', []))} images without annotations"  # such as COCO's test-dev
        return NamedSet(remark=remark, is_scored=False)
    return NamedSet(check_coco(raw, annotations, folder, as_is=use, **how), image_dir=files[1])


def _without_mask(row: dict[str, Any]) -> None:
    row.pop("segmentation", None)


def _read_function(name: str, use: Use, *, decode: bool) -> NamedSet:
    """Read a set that a function of the user's returns, or Detectron2's reader of Pascal VOC."""
    records, metadata = records_of(name, use), look_up(name)
    class_names = metadata.get("thing_classes")
    if records is None:
        return NamedSet(remark=STREAM)
    if not class_names:
        if use == "val":
            raise InputError(
                f'data set "{name}": its metadata does not name its classes; add '
                f'MetadataCatalog.get("{name}").set(thing_classes=[...])'
            )
        return NamedSet(remark=f"{len(records)} images, whose classes have no names, so not described")
    if not isinstance(class_names, (list, tuple)):
        raise InputError(f'data set "{name}": its thing_classes are {cut(repr(class_names))}, not a list of names')
    by_id = metadata.get("thing_dataset_id_to_contiguous_id")
    labels = range(len(class_names))
    if by_id is not None and not (isinstance(by_id, Mapping) and Counter(by_id.values()) == Counter(labels)):
        problem = f"{len(class_names)} thing_classes and the thing_dataset_id_to_contiguous_id {cut(repr(by_id))}"
        fix = f"it must give each of the labels from 0 to {len(class_names) - 1} one id"
        raise InputError(f'data set "{name}": its metadata has {problem}; {fix}')
    ids = category_ids(metadata)
    is_voc = use == "val" and evaluator_type(name) == "pascal_voc"
    difficult = read_difficult(name, metadata, records) if is_voc else {}
    found = as_coco(name, records, class_names, ids, use, difficult)
    how: Any = {"decode": decode, "allow_outside": True, "skip_bad_images": None}
    if use == "val" and not found.is_annotated:
        del found.coco["annotations"]
    place = f'data set "{name}"'
    checked = check_coco(found.coco, place, found.image_dir, may_lack_annotations=use == "val", **how)
    return NamedSet(checked, "", str(found.image_dir), found.image_ids, needs_copy=True)


def _check_lvis(name: str, raw: Any, path: Path, image_dir: str, how: Mapping[str, Any]) -> NamedSet:
    """Check a file of LVIS, which Detectron2 reads itself to train; its images' names are the ends of their URLs."""
    if importlib.util.find_spec("lvis") is None:
        needed = "Detectron2's reader of LVIS files needs the package lvis"
        raise InputError(f'data set "{name}": {needed}; install it with: {install_command("lvis")}')
    if not image_dir.endswith(os.sep):
        fix = f'register it with image_root="{image_dir}{os.sep}"'
        raise InputError(f'data set "{name}": Detectron2 appends train2017/... to image_root as it is; {fix}')
    if isinstance(raw, dict) and isinstance(raw.get("images"), list):
        for image in raw["images"]:
            if isinstance(image, dict):
                image.pop("file_name", None)
        name_by_url([image for image in raw["images"] if isinstance(image, dict)])
    unread = unread_lvis_problems(raw) if isinstance(raw, dict) and not shape_problems(raw) else []
    if unread:
        raise InputError([f"{path}: {problem}" for problem in unread])
    return NamedSet(check_coco(raw, path, image_dir, skip_bad_images=None, **how), image_dir=image_dir, needs_copy=True)
