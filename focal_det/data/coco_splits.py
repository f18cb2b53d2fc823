"""COCO as the paper splits it, on the sets that Detectron2 registers, and where their files come from.

The paper trains on the 2014 release's train set and the part of its val set that is not minival (section 5).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

# The paper's names, and the registered sets that make them up.
SPLITS: Mapping[str, tuple[str, ...]] = {
    "trainval35k": ("coco_2014_train", "coco_2014_valminusminival"),
    "minival": ("coco_2014_minival",),
    "test-dev": ("coco_2017_test-dev",),
}

_COCO = "http://images.cocodataset.org"  # its https certificate is of another name
_ARCHIVES = {
    "train2014": f"{_COCO}/zips/train2014.zip",
    "val2014": f"{_COCO}/zips/val2014.zip",
    "train2017": f"{_COCO}/zips/train2017.zip",
    "val2017": f"{_COCO}/zips/val2017.zip",
    "test2017": f"{_COCO}/zips/test2017.zip",
    "instances_train2014.json": f"{_COCO}/annotations/annotations_trainval2014.zip",
    "instances_val2014.json": f"{_COCO}/annotations/annotations_trainval2014.zip",
    "instances_minival2014.json": "https://dl.fbaipublicfiles.com/detectron/coco/coco_annotations_minival.tgz",
    "instances_valminusminival2014.json": "https://dl.fbaipublicfiles.com/detectron/coco/coco_annotations_minival.tgz",
    "instances_train2017.json": f"{_COCO}/annotations/annotations_trainval2017.zip",
    "instances_val2017.json": f"{_COCO}/annotations/annotations_trainval2017.zip",
    "image_info_test-dev2017.json": f"{_COCO}/annotations/image_info_test2017.zip",
}


def registered_sets(names: Iterable[str]) -> tuple[str, ...]:
    """Registered names, with each of the paper's replaced by the sets that make it up; others stay as they are."""
    return tuple(registered for name in names for registered in SPLITS.get(name, (name,)))


def missing_files(paths: Iterable[str]) -> list[str]:
    """Which of COCO's files and folders are not there: where each belongs and comes from, and what else could serve.

    Args:
        paths: of Detectron2's registered COCO sets.
    """
    missing = [path for path in dict.fromkeys(paths) if not os.path.exists(path)]
    problems = []
    for path in missing:
        archive = _ARCHIVES.get(Path(path).name)
        problems.append(f"{os.path.abspath(path)} is missing" + (f"; it comes from {archive}" if archive else ""))
    if missing:
        problems.append("put COCO's files there, or set DETECTRON2_DATASETS to the folder that holds coco/")
    if any("2014" in Path(path).name for path in missing):
        problems.append(
            "or use the 2017 release, whose coco_2017_train and coco_2017_val hold the same pictures as trainval35k "
            "and minival: DATASETS.TRAIN coco_2017_train DATASETS.TEST coco_2017_val (and for test-dev's submission "
            "DATASETS.TEST \"('coco_2017_val', 'test-dev')\")"
        )
    return problems
