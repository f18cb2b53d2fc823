"""The user's own data sets: the flags that name them, and what they and DATASETS name, read into a configuration."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..data.coco_json import CocoFile
from ..data.picture_names import FLAG as OUTSIDE_FLAG
from ..data.sources import (
    OwnSet,
    SetSource,
    Use,
    name_sources,
    parse_source,
    read_sources,
    voc_source,
)
from ..errors import InputError
from ..inference.classes import read_classes
from .common import add_outside_flag

USES: tuple[Use, ...] = ("train", "val")
_KEYS: dict[Use, str] = {"train": "TRAIN", "val": "TEST"}
_PURPOSES: dict[Use, str] = {"train": "to train on", "val": "to evaluate on"}


def add_data_flags(parser: argparse.ArgumentParser, uses: Sequence[Use] = USES) -> None:
    """Add --train-json, --train-images, --train-voc and the like for val; each may be given several times."""
    group = parser.add_argument_group("your own data sets", "each flag may be given several times, for several sets")
    for use in uses:
        group.add_argument(
            f"--{use}-json", action="append", default=[], metavar="FILE", help=f"COCO annotations {_PURPOSES[use]}"
        )
        group.add_argument(
            f"--{use}-images",
            action="append",
            default=[],
            metavar="DIR",
            help=f"folder of the pictures of --{use}-json; given as often, in the same order",
        )
        usual = "train" if use == "train" else "val, else test"
        group.add_argument(
            f"--{use}-voc",
            action="append",
            default=[],
            metavar="DIR[:SPLIT]",
            help=f"Pascal VOC's folder {_PURPOSES[use]}, and the split of its ImageSets/Main (default: {usual})",
        )
    add_outside_flag(group)


def data_words(args: argparse.Namespace, uses: Sequence[Use] = USES) -> list[str]:
    """The data flags as they were given, FLAG VALUE ..., to pass them on."""
    words = []
    for flag in (f"--{use}-{kind}" for use in uses for kind in ("json", "images", "voc")):
        for value in getattr(args, flag[2:].replace("-", "_")):
            words += [flag, value]
    return [*words, *([OUTSIDE_FLAG] if args.allow_outside else [])]


def entries_of(args: argparse.Namespace, use: Use, datasets: Iterable[str]) -> tuple[list[SetSource | str], list[str]]:
    """The sets for one use: those that the flags name, COCO's first; without any, the entries of DATASETS.

    Returns:
        Sources, and names of registered sets; and what is wrong with the flags or entries.
    """
    files, folders = getattr(args, f"{use}_json"), getattr(args, f"{use}_images")
    problems = _unpaired(use, len(files), len(folders))
    entries: list[SetSource | str] = [SetSource(use, "json", *pair) for pair in zip(files, folders, strict=False)]
    entries += [voc_source(use, text) for text in getattr(args, f"{use}_voc")]
    if entries:
        return entries, problems
    for text in datasets:
        try:
            entries.append(parse_source(use, text) or text)
        except InputError as error:
            problems += error.problems
    return entries, problems


def read_own_sets(args: argparse.Namespace, cfg: Any) -> tuple[dict[Any, CocoFile], set[str], list[str]]:
    """Read the sets that the flags name, or else DATASETS by place, and put their names into DATASETS.

    Args:
        cfg: not frozen; of --eval-only only the sets to evaluate on are read.

    Returns:
        The checked files by `JsonDataset`; the names of all such sets, also of those with problems; every problem.
    """
    from ..data.catalog import JsonDataset  # needs Detectron2, which the flags themselves do not

    problems: list[str] = []
    sources: dict[str, SetSource] = {}
    for use in USES:
        entries, found = entries_of(args, use, cfg.DATASETS[_KEYS[use]])
        cfg.DATASETS[_KEYS[use]], by_name = name_sources(entries)
        sources |= by_name
        problems += found
    also: list[SetSource] = []
    classes = None
    if args.eval_only:
        of_model = read_classes(weights_folder(cfg))
        classes = None if of_model is None else of_model.names
        also = [s for s in sources.values() if s.use == "train" and s.kind == "voc" and classes is None]
        sources = {name: source for name, source in sources.items() if source.use == "val"}
    sets, found = read_sources(
        sources,
        also=also,
        class_names=classes,
        decode=args.preflight_only,
        skip_bad_images=max(0, args.skip_bad_images),
        allow_outside=args.allow_outside,
    )
    problems += found
    trained = {name: own for name, own in sets.items() if sources[name].use == "train"}
    if trained.keys() == set(cfg.DATASETS.TRAIN):
        problems += _nothing_to_train_on(trained.values())
    folder = Path(cfg.OUTPUT_DIR) / ("inference/annotations" if args.eval_only else "annotations")
    files = {
        JsonDataset(name, own.place, own.image_dir, str(folder / f"{name}.json")): own.file
        for name, own in sets.items()
    }
    return files, set(sources), list(dict.fromkeys(problems))  # one file may be there for both uses


def weights_folder(cfg: Any) -> Path:
    """Where MODEL.WEIGHTS stands; of an address a folder that is none."""
    return Path(cfg.MODEL.WEIGHTS).parent


def _unpaired(use: Use, files: int, folders: int) -> list[str]:
    if files == folders:
        return []
    if not files or not folders:
        given, lacking = ("json", "images") if files else ("images", "json")
        return [f"--{use}-{given} is given without --{use}-{lacking}; both are needed"]
    return [
        f"--{use}-json is given {files} times and --{use}-images {folders} times; each file needs the folder of its "
        "pictures, in the same order"
    ]


def _nothing_to_train_on(sets: Collection[OwnSet]) -> list[str]:
    places = [own.place for own in sets if all(a["iscrowd"] for a in own.file.coco["annotations"])]
    if not sets or len(places) < len(sets):
        return []
    return [f"{', '.join(places)}: no box to train on; annotate at least one object that is no crowd and not difficult"]
