"""Data sets by their names: the user's own, which are read and checked, and the parts of COCO that the paper uses.

The paper trains on COCO's 2014 release: its train set and the part of its val set that is not minival (section 5).
Needs no Detectron2.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..errors import InputError
from ..formats.coco import CocoFile, read_coco
from ..formats.exporters.annotated import AnnotatedSet, check_annotated
from ..formats.recognise import COCO, READERS, VOC, YOLO, Found, Part, has_part, image_folder, recognise
from ..formats.voc import VocSet, check_voc, read_voc
from .class_map import ALL_CLASSES, ClassMap, renumbered

Use = Literal["train", "val"]
USES: tuple[Use, ...] = ("train", "val")
# The parts of a data set, or splits of a VOC folder, to take where none is named.
_USUAL_PARTS: Mapping[Use, tuple[Part, ...]] = {"train": ("train",), "val": ("val", "test")}
FORMS = "'data:PATH', 'coco:FILE.json:IMAGES' or 'voc:DIR:SPLIT'"  # in DATASETS
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
    kind: "json", COCO's annotation file, "voc", or "data", whose format is recognised.
    path: the file, VOC's folder, or either.
    detail: the folder of images, or VOC's split; None for the usual one, or where the folder is to be found.
    """

    use: Use
    kind: Literal["json", "voc", "data"]
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


def data_source(use: Use, text: str) -> SetSource:
    """Parse PATH[:IMAGES]; what has the whole text as its name is taken first."""
    path, colon, image_dir = text.rpartition(":")
    if not colon or os.path.exists(text):
        return SetSource(use, "data", text, None)
    return SetSource(use, "data", path, image_dir)


def source_to_evaluate_on(source: SetSource) -> SetSource | None:
    """Return the part of a set to train on that is there to evaluate on; None if it has none, or cannot be read."""
    try:
        is_there = source.kind == "data" and has_part(Path(source.path), _USUAL_PARTS["val"])
    except InputError:  # which reading the set to train on will raise
        return None
    return source._replace(use="val") if is_there else None


def parse_source(use: Use, text: str) -> SetSource | None:
    """Parse an entry of DATASETS in one of FORMS; None for a registered set's name.

    Raises:
        InputError: "coco:" without one of its two parts.
    """
    kind, _, rest = text.partition(":")
    if kind == "voc":
        return voc_source(use, rest)
    if kind == "data":
        return data_source(use, rest)
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
    class_map: ClassMap = ALL_CLASSES,
    may_lack_annotations: bool = False,
    **image_checks: Any,
) -> tuple[dict[str, OwnSet], list[str]]:
    """Read and check sets. Most formats but COCO's do not number their classes, so all such sets get one order.

    Args:
        sources: by the sets' names.
        also: sets that are not needed themselves, but whose classes count.
        class_names: of the labels, for the sets that are not COCO's; by default those of the first COCO file if it has
            all of their classes, else the order of the first set that numbers them, then the other names, sorted.
        class_map: which classes of all sets are kept or merged, before they are numbered.
        may_lack_annotations: whether a COCO file to evaluate on may be without them.
        image_checks: keyword arguments of `check_coco`.

    Returns:
        The sound sets by name, and every problem of the others.
    """
    problems: list[str] = []
    found: dict[str, OwnSet] = {}
    named: dict[str, VocSet | AnnotatedSet] = {}
    others: list[VocSet | AnnotatedSet] = []
    for name, source in [*sources.items(), *((None, source) for source in also)]:
        try:
            taken, image_dir, notes = _locate(source)
            if taken.format == COCO:
                if name is not None:
                    may_lack = may_lack_annotations and source.use == "val"
                    file = read_coco(taken.path, image_dir, may_lack_annotations=may_lack, **image_checks)
                    found[name] = OwnSet(str(taken.path), image_dir, file._replace(notes=[*notes, *file.notes]))
                continue
            read = _read(source, taken, image_dir, bool(image_checks.get("allow_outside")))
            read = read._replace(notes=[*notes, *read.notes])
            if name is None:
                others.append(read)
            else:
                named[name] = read
        except InputError as error:
            problems += error.problems
    of_all = _class_order([*named.values(), *others])
    for name, read in named.items():
        try:
            check: Any = check_voc if isinstance(read, VocSet) else check_annotated
            found[name] = OwnSet(str(read.place), str(read.image_dir), check(read, of_all, **image_checks))
        except InputError as error:
            problems += error.problems
    if not problems:
        problems += class_map.problems({name for own in found.values() for name in own.file.class_names})
    class_map = ALL_CLASSES if problems else class_map
    found, of_classes = _with_classes(found, named.keys(), class_map, class_names)
    problems += of_classes
    return {name: found[name] for name in sources if name in found}, problems


def _with_classes(
    sets: Mapping[str, OwnSet], named: Set[str], class_map: ClassMap, class_names: Sequence[str] | None
) -> tuple[dict[str, OwnSet], list[str]]:
    """Merge and leave out classes, then number those of the `named` sets in the order of `read_sources`."""
    found, problems = {}, []
    mapped = {name: own._replace(file=class_map.apply(own.file, own.place)) for name, own in sets.items()}
    if class_names is None:
        of_coco = next((own.file.class_names for name, own in mapped.items() if name not in named), [])
        if all(set(mapped[name].file.class_names) <= set(of_coco) for name in mapped.keys() & named):
            class_names = of_coco
    for name, own in mapped.items():
        try:
            if name in named and class_names is not None:
                own = own._replace(file=renumbered(own.file, own.place, class_names))
            found[name] = own
        except InputError as error:
            problems += error.problems
    return found, problems


def _locate(source: SetSource) -> tuple[Found, str, list[str]]:
    """Return what a source names, the folder of its images or that they are below, and a note on what was recognised.

    Raises InputError where nothing is recognised, or several things may be meant.
    """
    if source.kind == "json":
        return Found(COCO, Path(source.path)), source.detail or "", []
    if source.kind == "voc":
        return Found(VOC, Path(source.path)), "", []
    path = Path(source.path)
    taken = recognise(path, _USUAL_PARTS[source.use])
    image_dir = source.detail or str(path if path.is_dir() else path.parent)
    note = f"{path}: took {taken}"
    if taken.format == COCO:
        image_dir = source.detail or str(image_folder(taken.path, path, taken.part))
        note += f" with the images of {image_dir}"
    elif taken.format in (VOC, YOLO) and source.detail:
        raise InputError(
            f"{path}:{source.detail}: {taken.format}'s annotations say where their images are; name {path}"
        )
    return taken, image_dir, [note]


def _read(source: SetSource, taken: Found, image_dir: str, allow_outside: bool) -> VocSet | AnnotatedSet:
    if taken.format == VOC:
        split = source.detail if source.kind == "voc" else None
        return read_voc(taken.path, split, _USUAL_PARTS[source.use])
    return READERS[taken.format](taken.path, Path(image_dir), taken.part, allow_outside)


def _class_order(sets: Iterable[VocSet | AnnotatedSet]) -> list[str]:
    """Return the classes of all sets: in the order of those that number theirs, then the other names, sorted."""
    declared = [name for one in sets if isinstance(one, AnnotatedSet) for name in one.declared]
    return list(dict.fromkeys([*declared, *sorted(set().union(*(one.class_names for one in sets)))]))


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
