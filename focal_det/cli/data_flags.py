"""The flags that name the user's own data sets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..data.class_map import split_names
from ..data.dataset_spec import USES, Use
from ..errors import Findings
from ..formats.image_files import FLAG as OUTSIDE_FLAG
from ..preflight.options import KeyFlag, SetFlags, keys_given_twice
from .common import add_outside_flag

_KEY_FLAGS = {
    "--classes": ("classes", "DATASETS.CLASSES"),
    "--merge-classes": ("merge_classes", "DATASETS.MERGE_CLASSES"),
    "--split-val": ("split_val", "DATASETS.SPLIT_VAL"),
    "--tile": ("tile", "MODEL.FOCAL_DET.TILES.SIZE"),
    "--overlap": ("overlap", "MODEL.FOCAL_DET.TILES.OVERLAP"),
    "--score-thresh": ("score_thresh", "MODEL.RETINANET.SCORE_THRESH_TEST"),
    "--weights": ("weights", "MODEL.WEIGHTS"),
    "--run": ("run_dir", "MODEL.WEIGHTS"),
}


def add_data_flags(parser: argparse.ArgumentParser, uses: Sequence[Use] = USES) -> None:
    """Add --train, --train-json, --train-images, --train-voc and the like for val; each may be given several times."""
    group = parser.add_argument_group("your own data sets", "each flag may be given several times, for several sets")
    for use in uses:
        purpose, usual = ("to train on", "train") if use == "train" else ("to evaluate on", "val, else test")
        voc = f"Pascal VOC's folder {purpose}, and the split of its ImageSets/Main (default: {usual})"
        text = f"data set {purpose}, a folder or a file of annotations in any format that is recognised"
        group.add_argument(
            f"--{use}", dest=f"{use}_data", action="append", default=[], metavar="PATH[:IMAGES]", help=text
        )
        for kind, metavar, text in (
            ("json", "FILE", f"COCO annotations {purpose}"),
            ("images", "DIR", f"folder of the images of --{use}-json; given as often, in the same order"),
            ("voc", "DIR[:SPLIT]", voc),
        ):
            group.add_argument(f"--{use}-{kind}", action="append", default=[], metavar=metavar, help=text)
    add_outside_flag(group)


def add_change_flags(parser: argparse.ArgumentParser) -> None:
    """Add --classes, --merge-classes and --split-val, each short for a key, see `key_flags`."""
    group = parser.add_argument_group("changes to your own data sets")
    group.add_argument(
        "--classes", type=split_names, metavar="A,B,...", help="keep these classes alone (DATASETS.CLASSES)"
    )
    group.add_argument(
        "--merge-classes",
        action="append",
        default=[],
        metavar="NEW=A,B,...",
        help="make one class of several; may be given several times (DATASETS.MERGE_CLASSES)",
    )
    group.add_argument(
        "--split-val",
        type=_share_and_seed,
        metavar="SHARE[:SEED]",
        help="evaluate on this share of the images to train on, such as 0.2, and do not train on it; images that look "
        "alike stay together (DATASETS.SPLIT_VAL)",
    )


def changes_of(args: argparse.Namespace) -> tuple[Sequence[str], Sequence[str], Sequence[float | int]]:
    """Return the flags of `add_change_flags` as the values of the three keys; those that are not given are empty."""
    return args.classes or (), args.merge_classes, args.split_val or ()


def _share_and_seed(text: str) -> list[float | int]:
    share, _, seed = text.partition(":")
    return [float(share), int(seed or 0)]


_share_and_seed.__name__ = "SHARE[:SEED]"  # argparse's name for it in an error


def key_flags(args: argparse.Namespace) -> list[KeyFlag]:
    """Return the flags that were given and stand for keys.

    They are, of those that the command has, the ones of `add_change_flags` and `add_tile_flags`, the least score and
    the weights, which a run names too.
    """
    given = {flag: (key, vars(args).get(name)) for flag, (name, key) in _KEY_FLAGS.items()}
    return [KeyFlag(flag, key, repr(value)) for flag, (key, value) in given.items() if value not in (None, [])]


def overrides_of(args: argparse.Namespace) -> list[str]:
    """Return what `key_flags` set as KEY VALUE ...; raise InputError where `args.overrides` sets it as well."""
    given = key_flags(args)
    Findings(keys_given_twice(args.overrides, given)).raise_if_errors()
    return [word for one in given for word in (one.key, one.value)]


def set_flags(args: argparse.Namespace, use: Use) -> SetFlags:
    """Return the values of the flags of `add_data_flags` for one use."""
    return SetFlags(*(getattr(args, f"{use}_{kind}") for kind in SetFlags._fields))


def own_sets(args: argparse.Namespace, uses: Sequence[Use] = USES) -> dict[str, Any]:
    """Return the values of the flags of `add_data_flags` as arguments of `TrainOptions`."""
    flags = {use: set_flags(args, use)._asdict() for use in uses}
    of_sets = {f"{use}_{kind}": tuple(values) for use, given in flags.items() for kind, values in given.items()}
    return of_sets | {"allow_outside": args.allow_outside}


def data_words(args: argparse.Namespace) -> list[str]:
    """Return the data flags as they were given, FLAG VALUE ..., to pass them on."""
    words = []
    for use in USES:
        for kind, values in set_flags(args, use)._asdict().items():
            flag = f"--{use}" if kind == "data" else f"--{use}-{kind}"
            words += [word for value in values for word in (flag, value)]
    return [*words, *([OUTSIDE_FLAG] if args.allow_outside else [])]
