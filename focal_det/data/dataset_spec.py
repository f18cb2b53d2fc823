"""Data sets by their names: the user's own, which are read and checked, and the parts of COCO that the paper uses.

The paper trains on COCO's 2014 release: its train set and the part of its val set that is not minival (section 5).
Needs no Detectron2.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..errors import InputError
from ..formats.coco import CocoFile, read_coco
from ..formats.voc import VocSet, check_voc, read_voc

Use = Literal["train", "val"]
USES: tuple[Use, ...] = ("train", "val")
# The splits of a VOC folder to take where none is named.
_USUAL_SPLITS: Mapping[Use, tuple[str, ...]] = {"train": ("train",), "val": ("val", "test")}
FORMS = "'coco:FILE.json:IMAGES' or 'voc:DIR:SPLIT'"  # in DATASETS
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


class SetSource(NamedTuple):
    """Where a set's files are.

    use: what it is for.
    kind: "json", COCO's annotation file, or "voc".
    path: the file, or VOC's folder.
    detail: the folder of images, or VOC's split; None for the usual one.
    """

    use: Use
    kind: Literal["json", "voc"]
    path: str
    detail: str | None

    def __str__(self) -> str:
        return f"{self.path}:{self.detail}" if self.kind == "voc" and self.detail else self.path


class OwnSet(NamedTuple):
    """A set that was read and checked; its place is the annotation file, or VOC's folder with the split taken."""

    place: str
    image_dir: str
    file: CocoFile


def voc_source(use: Use, text: str) -> SetSource:
    """Parse DIR[:SPLIT]; a folder that has the whole text as its name is taken first."""
    folder, colon, split = text.rpartition(":")
    if not colon or os.path.isdir(text):
        return SetSource(use, "voc", text, None)
    return SetSource(use, "voc", folder, split)


def parse_source(use: Use, text: str) -> SetSource | None:
    """Parse an entry of DATASETS in one of FORMS; None for a registered set's name.

    Raises:
        InputError: "coco:" without one of its two parts.
    """
    kind, _, rest = text.partition(":")
    if kind == "voc":
        return voc_source(use, rest)
    if kind != "coco":
        return None
    json_file, _, image_dir = rest.rpartition(":")
    if not json_file or not image_dir:
        raise InputError(f"data set {text!r}: the folder of its images is missing; write 'coco:FILE.json:IMAGES'")
    return SetSource(use, "json", json_file, image_dir)


def name_sources(entries: Iterable[SetSource | str]) -> tuple[tuple[str, ...], dict[str, SetSource]]:
    """Return all entries' names, train_json, train_json_2, ... or a registered set's own, and the sources by name."""
    names: list[str] = []
    sources: dict[str, SetSource] = {}
    for entry in entries:
        if isinstance(entry, str):
            names.append(entry)
            continue
        before = sum((other.use, other.kind) == (entry.use, entry.kind) for other in sources.values())
        names.append(f"{entry.use}_{entry.kind}" + (f"_{before + 1}" if before else ""))
        sources[names[-1]] = entry
    return tuple(names), sources


def read_sources(
    sources: Mapping[str, SetSource],
    *,
    also: Sequence[SetSource] = (),
    class_names: Sequence[str] | None = None,
    may_lack_annotations: bool = False,
    **image_checks: Any,
) -> tuple[dict[str, OwnSet], list[str]]:
    """Read and check sets. VOC's files do not number their classes, so all VOC sets of a run get one order.

    Args:
        sources: by the sets' names.
        also: VOC sets that are not needed themselves, but whose classes count.
        class_names: of the labels, for the VOC sets; by default those of the first COCO file if it has all of VOC's
            classes, else the sorted names over all VOC sets.
        may_lack_annotations: whether a COCO file to evaluate on may be without them.
        image_checks: keyword arguments of `check_coco`.

    Returns:
        The sound sets by name, and every problem of the others.
    """
    problems: list[str] = []
    found: dict[str, OwnSet] = {}
    voc_sets: dict[str, VocSet] = {}
    others: list[VocSet] = []
    for name, source in [*sources.items(), *((None, source) for source in also)]:
        try:
            if source.kind == "json":
                assert name is not None
                image_dir, may_lack = source.detail or "", may_lack_annotations and source.use == "val"
                file = read_coco(source.path, image_dir, may_lack_annotations=may_lack, **image_checks)
                found[name] = OwnSet(source.path, image_dir, file)
                continue
            voc = read_voc(source.path, source.detail, _USUAL_SPLITS[source.use])
            if name is None:
                others.append(voc)
            else:
                voc_sets[name] = voc
        except InputError as error:
            problems += error.problems
    if class_names is None:
        names = sorted(set().union(*(voc.class_names for voc in (*voc_sets.values(), *others))))
        of_coco = next((own.file.class_names for own in found.values()), [])
        class_names = of_coco if set(names) <= set(of_coco) else names
    for name, voc in voc_sets.items():
        try:
            found[name] = OwnSet(str(voc.place), str(voc.image_dir), check_voc(voc, class_names, **image_checks))
        except InputError as error:
            problems += error.problems
    return {name: found[name] for name in sources if name in found}, problems


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
