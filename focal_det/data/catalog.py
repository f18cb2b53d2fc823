"""Make data sets known to Detectron2: generated shapes by their name, the user's own by a flag or by DATASETS.

Detectron2's catalogue is per process, so this is split: `prepare_shapes` and `write_checked_copy` write once, in the
process that launches; `register_datasets` runs in every process and only registers where the files are.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import load_coco_json, register_coco_instances

from ..errors import InputError, TrainingError
from ..files import datasets_root, is_writable, write_text_whole
from ..formats.coco import CocoFile
from .dataset_spec import FORMS, SPLITS, missing_files, parse_source
from .shapes import CLASSES, make_shapes, parse_name, shapes_files

IDS = "thing_dataset_id_to_contiguous_id"
_CHECKED = "{} (checked copy)"  # the name in the catalogue of metadata of a registered set's copy


class JsonDataset(NamedTuple):
    """A set with a checked copy: of the user's own, given by a flag or by its path in DATASETS; or a registered one.

    json_file, image_dir: as given; for Pascal VOC its folder with the split, and that of its images.
    checked_copy: the file of its checked and completed annotations. Detectron2 reads that of an own set; that of a
        registered one is only what its detections are scored against, or shown beside.
    evaluator: the evaluator_type by which it is scored.
    is_registered: by the user, whose registration stays as it is.
    """

    name: str
    json_file: str
    image_dir: str
    checked_copy: str
    evaluator: str = "coco"
    is_registered: bool = False


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
    write_text_whole(Path(dataset.checked_copy), json.dumps(coco_file.contents()))


def register_datasets(names: Iterable[str], json_datasets: Iterable[JsonDataset]) -> None:
    """Register the user's own sets anew, and generated shapes where they lie now; the files must have been prepared.

    Raises TrainingError for a set that is registered in the process that was started and not in this one.
    """
    for dataset in json_datasets:
        MetadataCatalog.pop(_CHECKED.format(dataset.name), None)
        if dataset.is_registered:
            _register_copy(dataset)
            continue
        _forget(dataset.name)
        DatasetCatalog.register(
            dataset.name, partial(load_coco_json, dataset.checked_copy, dataset.image_dir, dataset.name)
        )
        files = {"json_file": dataset.checked_copy, "image_root": dataset.image_dir}
        MetadataCatalog.get(dataset.name).set(evaluator_type=dataset.evaluator, given_as=dataset.json_file, **files)
    for name in names:
        if parse_name(name) is None:
            if name in DatasetCatalog.list():
                continue
            raise TrainingError(
                f'data set "{name}" is registered in the process that was started, but not in this one, which imports '
                "the script anew: register it where every import does, at the script's top level and not below "
                '`if __name__ == "__main__":`, or in a module that --plugin names'
            )
        annotations, images = map(str, shapes_files(name, datasets_root()))
        if name in DatasetCatalog.list() and MetadataCatalog.get(name).json_file == annotations:
            continue
        _forget(name)
        register_coco_instances(name, {"thing_classes": list(CLASSES)}, annotations, images)


def _forget(name: str) -> None:
    """Remove a set from Detectron2's catalogues, if it is there."""
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _register_copy(dataset: JsonDataset) -> None:
    """Put what a registered set's copy is scored by into metadata of its own, since the user's are the user's."""
    of_user = MetadataCatalog.get(dataset.name).as_dict()
    kept = {key: of_user[key] for key in ("thing_classes", IDS) if key in of_user}
    files = {"json_file": dataset.checked_copy, "image_root": dataset.image_dir}
    MetadataCatalog.get(_CHECKED.format(dataset.name)).set(evaluator_type=dataset.evaluator, **files, **kept)


def scoring_metadata(name: str) -> Metadata:
    """Return the metadata that a set is scored by: its checked copy's where it has one of its own, else the set's."""
    copy = _CHECKED.format(name)
    return MetadataCatalog.get(copy if copy in MetadataCatalog else name)


def has_checked_copy(name: str) -> bool:
    """Tell whether a set is scored against a file in OUTPUT_DIR, as the user's own and registered functions are."""
    return MetadataCatalog.get(name).get("given_as") is not None or _CHECKED.format(name) in MetadataCatalog


def evaluator_type(name: str) -> str:
    """Return how Detectron2 would score a registered set; "coco" where it does not say."""
    return str(look_up(name).get("evaluator_type") or "coco")


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
        found = look_up(name)
        paths = [found[kind] for kind in ("json_file", "image_root", "dirname") if found.get(kind) is not None]
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
                "that holds it; your own images come by --train and --val"
                for path in paths
                if not os.path.exists(path)
            ]
    return problems + missing_files(coco)


def _not_registered(name: str) -> str:
    flag = re.fullmatch(r"(train|val)_(data|json|voc)(_\d+)?", name)
    if flag:
        return (
            f'data set "{name}" is the name that an earlier run gave to a set of your own; name its files again, by '
            f"--{flag[1]}{'' if flag[2] == 'data' else '-' + flag[2]} or in DATASETS as {FORMS}"
        )
    close = difflib.get_close_matches(name, [*DatasetCatalog.list(), *SPLITS], n=1)
    hint = f'; did you mean "{close[0]}"?' if close else "."
    return (
        f'data set "{name}" is not registered{hint} If a module of yours registers it, add --plugin FILE.py. For '
        f"images in files use --train PATH --val PATH, or in DATASETS {FORMS}"
    )


def look_up(name: str) -> dict[str, Any]:
    """Return what the catalogue says of a set; generated shapes need not be registered."""
    if parse_name(name) is not None:
        annotations, images = shapes_files(name, datasets_root())
        files = {"json_file": str(annotations), "image_root": str(images)}
        return {**files, "thing_classes": list(CLASSES), IDS: {label + 1: label for label in range(len(CLASSES))}}
    found: dict[str, Any] = MetadataCatalog.get(name).as_dict() if name in DatasetCatalog.list() else {}
    return found


def registered_files(name: str) -> tuple[str, str] | None:
    """Return the COCO file and the image folder of a registered set or of generated shapes; None if it has none."""
    found = look_up(name)
    files = found.get("json_file"), found.get("image_root")
    return None if None in files else (str(files[0]), str(files[1]))


def class_names(name: str) -> list[str] | None:
    """Return the class names of a registered set or of generated shapes, by label; None if it does not give them."""
    if look_up(name).get("thing_classes") is None:
        DatasetCatalog.get(name)  # Detectron2 learns the classes of a COCO file by loading it
    known = known_classes(name)
    return None if known is None else known[0]


def known_classes(name: str) -> tuple[list[str], list[int]] | None:
    """Return class names and category ids by label; None if a file would have to be read for them."""
    found = look_up(name)
    names = found.get("thing_classes")
    return None if names is None else (list(names), category_ids(found))


def category_ids(metadata: Mapping[str, Any]) -> list[int]:
    """Return the category ids by label in a set's detections; where its metadata has none, those that Detectron2 gives.

    Those are the labels themselves, and for LVIS the labels plus 1.
    """
    if (labels := metadata.get(IDS)) is not None:
        return sorted(labels, key=labels.get)
    first = int(metadata.get("evaluator_type") == "lvis")
    return list(range(first, first + len(metadata["thing_classes"])))
