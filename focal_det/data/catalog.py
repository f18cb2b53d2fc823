"""Make data sets known to Detectron2: generated shapes by their name, the user's own by a flag or by DATASETS.

Detectron2's catalogue is per process, so this is split: `prepare_shapes` and `write_checked_copy` write once, in the
process that launches; `register_datasets` runs in every process and only registers where the files are.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..errors import InputError
from ..files import datasets_root, is_writable, open_regular, write_text_whole
from ..plain_data import parse_json
from .coco import LARGEST_JSON, CocoFile, check_coco
from .coco_splits import SPLITS, missing_files
from .dataset_spec import FORMS, parse_source
from .shapes import CLASSES, make_shapes, parse_name, shapes_files


class JsonDataset(NamedTuple):
    """A set of the user's own, given by a flag or by its path in DATASETS.

    json_file, image_dir: as given; for Pascal VOC its folder with the split, and that of its images.
    checked_copy: the file of its checked and completed annotations, which Detectron2 reads.
    """

    name: str
    json_file: str
    image_dir: str
    checked_copy: str


def prepare_shapes(names: Iterable[str]) -> None:
    """Draw missing ones of the named sets that are generated shapes; raise InputError if they cannot be written."""
    for name in names:
        if parse_name(name) is not None:
            try:
                make_shapes(name, datasets_root())
            except OSError as error:
                raise InputError(
                    f'data set "{name}" cannot be written under {datasets_root()} ({error}); '
                    "set DETECTRON2_DATASETS to a folder that can"
                ) from error


def write_checked_copy(dataset: JsonDataset, coco_file: CocoFile) -> None:
    """Replace the checked copy, whole or not at all, so that no evaluation reads a stale one."""
    write_text_whole(Path(dataset.checked_copy), json.dumps(coco_file.coco))


def register_datasets(names: Iterable[str], json_datasets: Iterable[JsonDataset]) -> None:
    """Register the user's own sets anew, and generated shapes once; the files must have been prepared."""
    for dataset in json_datasets:
        if dataset.name in DatasetCatalog.list():
            DatasetCatalog.remove(dataset.name)
            MetadataCatalog.remove(dataset.name)
        metadata = {"given_as": dataset.json_file}
        register_coco_instances(dataset.name, metadata, dataset.checked_copy, dataset.image_dir)
    for name in names:
        if parse_name(name) is not None and name not in DatasetCatalog.list():
            annotations, images = shapes_files(name, datasets_root())
            register_coco_instances(name, {"thing_classes": list(CLASSES)}, str(annotations), str(images))


def dataset_problems(names: Iterable[str]) -> list[str]:
    """Return what is wrong with the named sets: unknown names, malformed names of shapes, missing files."""
    problems = []
    coco: list[str] = []
    for name in names:
        try:
            by_path, are_shapes = parse_source("train", name) is not None, parse_name(name) is not None
        except ValueError as error:
            problems.append(str(error))
            continue
        found = _look_up(name)
        paths = [found[kind] for kind in ("json_file", "image_root") if found.get(kind) is not None]
        if by_path:
            pass  # checked when it is read
        elif are_shapes:
            if not os.path.isfile(paths[0]) and not is_writable(datasets_root()):
                problems.append(
                    f'data set "{name}" is to be drawn under {datasets_root().absolute()}, which cannot be '
                    "written; set DETECTRON2_DATASETS to a folder that can"
                )
        elif name not in DatasetCatalog.list():
            problems.append(_not_registered(name))
        elif name.startswith(("coco_2014", "coco_2017")):
            coco += paths
        else:
            problems += [
                f'data set "{name}": {path} is missing; put it there, or set DETECTRON2_DATASETS to the folder '
                "that holds it; your own images come by --train-json, --train-images, --val-json, --val-images"
                for path in paths
                if not os.path.exists(path)
            ]
    return problems + missing_files(coco)


def _not_registered(name: str) -> str:
    flag = re.fullmatch(r"(train|val)_(json|voc)(_\d+)?", name)
    if flag:
        return (
            f'data set "{name}" is the name that an earlier run gave to a set of your own; name its files again, by '
            f"--{flag[1]}-{flag[2]} or in DATASETS as {FORMS}"
        )
    close = difflib.get_close_matches(name, [*DatasetCatalog.list(), *SPLITS], n=1)
    hint = f' did you mean "{close[0]}"?' if close else ""
    return (
        f'data set "{name}" is not registered;{hint} For your own images use --train-json FILE --train-images DIR '
        f"--val-json FILE --val-images DIR, or --train-voc DIR:SPLIT --val-voc DIR:SPLIT, or in DATASETS {FORMS}"
    )


def _look_up(name: str) -> dict[str, Any]:
    """Return what the catalogue says of a set; generated shapes need not be registered."""
    if parse_name(name) is not None:
        annotations, images = shapes_files(name, datasets_root())
        return {"json_file": str(annotations), "image_root": str(images), "thing_classes": list(CLASSES)}
    found: dict[str, Any] = MetadataCatalog.get(name).as_dict() if name in DatasetCatalog.list() else {}
    return found


def registered_files(name: str) -> tuple[str, str] | None:
    """Return the COCO file and the image folder of a registered set or of generated shapes; None if it has none."""
    found = _look_up(name)
    files = found.get("json_file"), found.get("image_root")
    return None if None in files else (str(files[0]), str(files[1]))


def class_names(name: str) -> list[str] | None:
    """Return the class names of a registered set or of generated shapes, by label; None if it does not give them."""
    if _look_up(name).get("thing_classes") is None:
        DatasetCatalog.get(name)  # Detectron2 learns the classes of a COCO file by loading it
    known = known_classes(name)
    return None if known is None else known[0]


def known_classes(name: str) -> tuple[list[str], list[int]] | None:
    """Return class names and category ids by label; None if a file would have to be read for them."""
    found = _look_up(name)
    names, labels = found.get("thing_classes"), found.get("thing_dataset_id_to_contiguous_id")
    if names is None:
        return None
    return list(names), list(range(1, len(names) + 1)) if labels is None else sorted(labels, key=labels.get)


def read_named_set(
    name: str, use: Literal["train", "val"], *, images: bool, allow_outside: bool = False
) -> CocoFile | str:
    """Return a registered set's annotations, checked; or a text that says why there are none to check.

    Detectron2 reads the file itself, so it must be complete. Boxes without area, which are left out of the returned
    copy, are left out of training by its loader too, but not of its evaluation.

    Args:
        name: of a set without `dataset_problems`.
        use: "val" also for a set that is both trained on and evaluated on.
        images: also decode its images.
        allow_outside: see `read_coco`.

    Raises:
        InputError: with every problem found.
    """
    files = registered_files(name)
    if files is None:
        return "not a COCO file, so not described"
    annotations, folder = Path(files[0]), Path(files[1])
    if parse_name(name) is not None and not annotations.is_file():
        return "generated shapes, drawn first"
    try:
        with open_regular(annotations, most=LARGEST_JSON) as file:
            raw = parse_json(file.read())
    except (OSError, ValueError, MemoryError) as error:
        raise InputError(f'data set "{name}": {annotations} cannot be read ({error})') from error
    if isinstance(raw, dict) and "annotations" not in raw:
        return f"{len(raw.get('images', []))} images without annotations"  # such as COCO's test-dev
    return check_coco(raw, annotations, folder, images=images, decode=images, allow_outside=allow_outside, as_is=use)
