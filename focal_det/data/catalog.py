"""Making data sets known to Detectron2: generated shapes by their name, COCO files by a flag.

Registration is per process, so it is split: `prepare_*` checks and writes once, in the process that launches;
`register_datasets` runs in every process and only tells Detectron2 where things are.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..errors import InputError
from ..files import write_text_whole
from .coco_json import CocoFile
from .coco_splits import SPLITS, missing_files
from .folders import datasets_root, is_writable
from .shapes import CLASSES, make_shapes, parse_name, shapes_files
from .sources import FORMS, parse_source


class JsonDataset(NamedTuple):
    """A set of the user's own, given by a flag or by place in DATASETS.

    name: in the catalogue.
    json_file, image_dir: as given; for Pascal VOC its folder with the split, and that of its pictures.
    checked_copy: where its checked and completed annotations stand for Detectron2 to read.
    """

    name: str
    json_file: str
    image_dir: str
    checked_copy: str


def prepare_shapes(names: Iterable[str]) -> None:
    """Draw those of the named sets that are generated shapes and not there yet.

    Raises:
        InputError: the folder cannot be written.
    """
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
    """Write the annotations anew, whole or not at all, so that no evaluation meets stale ones."""
    write_text_whole(Path(dataset.checked_copy), json.dumps(coco_file.coco))


def register_datasets(names: Iterable[str], json_datasets: Iterable[JsonDataset]) -> None:
    """Register what is not registered yet; the files must have been prepared."""
    for dataset in json_datasets:
        if dataset.name in DatasetCatalog.list():
            DatasetCatalog.remove(dataset.name)
            MetadataCatalog.remove(dataset.name)
        given_as = {"given_as": dataset.json_file}
        register_coco_instances(dataset.name, given_as, dataset.checked_copy, dataset.image_dir)
    for name in names:
        if parse_name(name) is not None and name not in DatasetCatalog.list():
            annotations, images = shapes_files(name, datasets_root())
            register_coco_instances(name, {"thing_classes": list(CLASSES)}, str(annotations), str(images))


def dataset_problems(names: Iterable[str]) -> list[str]:
    """What is wrong with the named sets: unknown names, malformed names of shapes, files that are not there."""
    problems = []
    coco: list[str] = []
    for name in names:
        try:
            if parse_source("train", name) is not None:  # by place: whoever reads it checks it
                continue
            if parse_name(name) is not None:
                if not shapes_files(name, datasets_root())[0].is_file() and not is_writable(datasets_root()):
                    problems.append(
                        f'data set "{name}" is to be drawn under {datasets_root().absolute()}, which cannot be '
                        "written; set DETECTRON2_DATASETS to a folder that can"
                    )
                continue
        except ValueError as error:
            problems.append(str(error))
            continue
        if name not in DatasetCatalog.list():
            problems.append(_not_registered(name))
            continue
        metadata = MetadataCatalog.get(name)
        paths = [metadata.get(kind) for kind in ("json_file", "image_root") if metadata.get(kind) is not None]
        if name.startswith(("coco_2014", "coco_2017")):
            coco += paths
            continue
        problems += [
            f'data set "{name}": {path} is missing; put it there, or set DETECTRON2_DATASETS to the folder '
            "that holds it; your own pictures come by --train-json, --train-images, --val-json, --val-images"
            for path in paths
            if not os.path.exists(path)
        ]
    return problems + missing_files(coco)


def _not_registered(name: str) -> str:
    flag = re.fullmatch(r"(train|val)_(json|voc)(_\d+)?", name)
    if flag:
        return (
            f'data set "{name}" is what a flag or DATASETS gave an earlier run by its place; give the place again, by '
            f"--{flag[1]}-{flag[2]} or in DATASETS as {FORMS}"
        )
    close = difflib.get_close_matches(name, [*DatasetCatalog.list(), *SPLITS], n=1)
    hint = f' did you mean "{close[0]}"?' if close else ""
    return (
        f'data set "{name}" is not registered;{hint} For your own pictures use --train-json FILE --train-images DIR '
        "--val-json FILE --val-images DIR, or --train-voc DIR:SPLIT --val-voc DIR:SPLIT, or in DATASETS "
        f"{FORMS}"
    )


def registered_files(name: str) -> tuple[str, str] | None:
    """COCO annotation file and folder of pictures of a registered set or of generated shapes; None if it has none."""
    if parse_name(name) is not None:
        annotations, images = shapes_files(name, datasets_root())
        return str(annotations), str(images)
    metadata = MetadataCatalog.get(name)
    files = metadata.get("json_file"), metadata.get("image_root")
    return None if None in files else (str(files[0]), str(files[1]))


def class_names(name: str) -> list[str] | None:
    """The classes of a registered set or of generated shapes, in the labels' order; None if it does not say."""
    if parse_name(name) is not None:
        return list(CLASSES)
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        DatasetCatalog.get(name)  # Detectron2 learns the classes of a COCO file by loading it
    names = metadata.get("thing_classes")
    return None if names is None else list(names)


def known_classes(name: str) -> tuple[list[str], list[int]] | None:
    """Class names and category ids, in the labels' order, as far as no file has to be read for them."""
    if parse_name(name) is not None:
        return list(CLASSES), list(range(1, len(CLASSES) + 1))
    if name not in DatasetCatalog.list():
        return None
    metadata = MetadataCatalog.get(name)
    names, labels = metadata.get("thing_classes"), metadata.get("thing_dataset_id_to_contiguous_id")
    if names is None:
        return None
    ids = list(range(1, len(names) + 1)) if labels is None else sorted(labels, key=labels.get)
    return list(names), ids
