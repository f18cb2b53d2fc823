"""COCO as the paper splits it, on the sets that Detectron2 registers, and the addresses of their files.

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
_MINIVAL = "https://dl.fbaipublicfiles.com/detectron/coco/coco_annotations_minival.tgz"
_ARCHIVES = {
    **{name: f"{_COCO}/zips/{name}.zip" for name in ("train2014", "val2014", "train2017", "val2017", "test2017")},
    **{
        f"instances_{part}{year}.json": f"{_COCO}/annotations/annotations_trainval{year}.zip"
        for part in ("train", "val")
        for year in (2014, 2017)
    },
    "instances_minival2014.json": _MINIVAL,
    "instances_valminusminival2014.json": _MINIVAL,
    "image_info_test-dev2017.json": f"{_COCO}/annotations/image_info_test2017.zip",
}


def registered_sets(names: Iterable[str]) -> tuple[str, ...]:
    """Replace each of the paper's names by the registered sets that make it up; other names stay."""
    return tuple(registered for name in names for registered in SPLITS.get(name, (name,)))


def missing_files(paths: Iterable[str]) -> list[str]:
    """Return which paths of COCO's registered sets are missing, their source, and what could be used instead."""
    missing = [path for path in dict.fromkeys(paths) if not os.path.exists(path)]
    problems = []
    for path in missing:
        archive = _ARCHIVES.get(Path(path).name)
        problems.append(f"{os.path.abspath(path)} is missing" + (f"; it comes from {archive}" if archive else ""))
    if missing:
        problems.append("put COCO's files there, or set DETECTRON2_DATASETS to the folder that holds coco/")
    if any("2014" in Path(path).name for path in missing):
        problems.append(
            "or use the 2017 release, whose coco_2017_train and coco_2017_val hold the same images as trainval35k "
            "and minival: DATASETS.TRAIN coco_2017_train DATASETS.TEST coco_2017_val (and for test-dev's submission "
            "DATASETS.TEST \"('coco_2017_val', 'test-dev')\")"
        )
    return problems
