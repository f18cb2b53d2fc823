"""The flags that name the user's own data sets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..data.dataset_spec import USES, Use
from ..formats.image_files import FLAG as OUTSIDE_FLAG
from ..preflight.options import SetFlags
from .common import add_outside_flag


def add_data_flags(parser: argparse.ArgumentParser, uses: Sequence[Use] = USES) -> None:
    """Add --train-json, --train-images, --train-voc and the like for val; each may be given several times."""
    group = parser.add_argument_group("your own data sets", "each flag may be given several times, for several sets")
    for use in uses:
        purpose, usual = ("to train on", "train") if use == "train" else ("to evaluate on", "val, else test")
        voc = f"Pascal VOC's folder {purpose}, and the split of its ImageSets/Main (default: {usual})"
        for kind, metavar, text in (
            ("json", "FILE", f"COCO annotations {purpose}"),
            ("images", "DIR", f"folder of the images of --{use}-json; given as often, in the same order"),
            ("voc", "DIR[:SPLIT]", voc),
        ):
            group.add_argument(f"--{use}-{kind}", action="append", default=[], metavar=metavar, help=text)
    add_outside_flag(group)


def set_flags(args: argparse.Namespace, use: Use) -> SetFlags:
    """Return the values of the flags of `add_data_flags` for one use."""
    return SetFlags(*(getattr(args, f"{use}_{kind}") for kind in SetFlags._fields))


def data_words(args: argparse.Namespace, uses: Sequence[Use] = USES) -> list[str]:
    """Return the data flags as they were given, FLAG VALUE ..., to pass them on."""
    words = []
    for use in uses:
        for kind, values in set_flags(args, use)._asdict().items():
            words += [word for value in values for word in (f"--{use}-{kind}", value)]
    return [*words, *([OUTSIDE_FLAG] if args.allow_outside else [])]
