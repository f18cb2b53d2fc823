"""What the evaluator of each test set needs, and the set by which the best checkpoint is chosen."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..data.catalog import JsonDataset, evaluator_type, registered_files
from ..errors import Findings, cut, some
from ..extras import install_command
from ..formats.coco import CocoFile
from ..formats.coco_index import CocoIndex

_LONGEST_NAME = 200  # bytes, with which file systems still take an ending
_BY_BOXES = ("coco", "coco_panoptic_seg")  # of the latter the boxes
_FREQUENCIES = ("r", "c", "f")
_LVIS_DETECTIONS = 300  # an image; LVIS's own limit


def refusal(name: str) -> str | None:
    """Return why detections on a registered set cannot be scored; None where they can."""
    if name not in DatasetCatalog.list():
        return None
    if problem := _name_problem(name):
        return f"data set {cut(repr(name))} cannot be evaluated on: {problem}; register it under another name"
    kind = evaluator_type(name)
    if kind not in (*_BY_BOXES, "pascal_voc", "lvis"):
        return (
            f'data set "{name}" cannot be evaluated on: its evaluator_type is "{kind}", and this detector gives boxes '
            "alone, which COCO, Pascal VOC and LVIS score; take it out of DATASETS.TEST, or register its boxes under "
            'another name with evaluator_type="coco"'
        )
    if kind in ("lvis", "coco_panoptic_seg") and registered_files(name) is None:
        return f'data set "{name}": evaluator_type "{kind}" needs json_file and image_root in its metadata'
    return None


def _name_problem(name: str) -> str:
    """Return why its annotations and detections cannot be written into a file and a folder of its name, or ""."""
    if name in (".", "..") or "/" in name or os.sep in name:
        return "in OUTPUT_DIR its name is that of a file and of a folder, and this one leads elsewhere"
    if not name.isprintable():
        return "in OUTPUT_DIR its name is that of a file and of a folder, and this one has characters that do not print"
    if len(name.encode()) > _LONGEST_NAME:
        return f"in OUTPUT_DIR its name is that of a file and of a folder, and this one is above {_LONGEST_NAME} bytes"
    return ""


def check_scoring(names: Iterable[str], files: Mapping[JsonDataset, CocoFile], most_detections: int) -> Findings:
    """Check what LVIS's and Pascal VOC's evaluation need for those of the named sets that they score.

    Args:
        names: of the sets to evaluate on.
        files: the checked files of all sets that have one.
        most_detections: in an image.
    """
    found, tested = Findings(), {dataset: file for dataset, file in files.items() if dataset.name in names}
    for dataset, file in tested.items():
        if dataset.evaluator == "pascal_voc" and (absent := _absent_classes(file)):
            found.warnings.append(
                f'data set "{dataset.name}" has no objects of {some("class", absent)}: Pascal VOC\'s mean AP counts '
                "that as 0 by the rule of 2007, and by that of 2012 is nan once such a class is detected"
            )
    of_lvis = {dataset.name: file for dataset, file in tested.items() if dataset.evaluator == "lvis"}
    if not of_lvis:
        return found
    for name, file in of_lvis.items():
        found.errors += [f'data set "{name}": {problem}' for problem in _lvis_problems(file)]
    if importlib.util.find_spec("lvis") is None:
        sets = ", ".join(f'"{name}"' for name in of_lvis)
        fix = install_command("lvis")
        found.errors.append(f"data set {sets}: LVIS's evaluation needs the package lvis; install it with: {fix}")
    if most_detections < _LVIS_DETECTIONS:
        found.warnings.append(
            f"TEST.DETECTIONS_PER_IMAGE is {most_detections}; LVIS's results are of {_LVIS_DETECTIONS}, which leaves "
            "room for rare classes"
        )
    return found


def _absent_classes(file: CocoFile) -> list[str]:
    index = CocoIndex(file.coco)
    there = {annotation["category_id"] for annotation in index.objects}
    return [name for i, name in zip(index.category_ids, index.names, strict=True) if i not in there]


def _lvis_problems(file: CocoFile) -> list[str]:
    if not file.is_federated:
        return ['its images lack "neg_category_ids" and "not_exhaustive_category_ids", which LVIS\'s evaluation needs']
    without = [c["name"] for c in file.coco["categories"] if c.get("frequency") not in _FREQUENCIES]
    kinds = '"r", "c" or "f" (rare, common, frequent)'
    problem = f'categories: {len(without)} are without "frequency", {kinds}, which LVIS\'s evaluation needs'
    return [problem] if without else []


def ap_set(cfg: CfgNode, unscored: Iterable[str]) -> tuple[str, list[str]]:
    """Return the first test set that can be scored, whose AP says which model is the best, and what to say of it."""
    first, unscored = cfg.DATASETS.TEST[0], set(unscored)
    chosen = next((name for name in cfg.DATASETS.TEST if name not in unscored), None)
    if chosen is None:
        return first, ["best model: none is kept, since no test set has annotated objects"]
    if chosen != first:
        return chosen, [f"best model: by the AP on {chosen}, since {first} has no annotated objects"]
    return first, []
