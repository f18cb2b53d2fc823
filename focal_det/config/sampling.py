"""The keys of the training sampler, fitted to the data sets of the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode

from ..errors import Findings
from .read_when import unmet_condition

_SUBSET, _FACTORS = "DATALOADER.RANDOM_SUBSET_RATIO", "DATASETS.TRAIN_REPEAT_FACTOR"
_LARGEST = 1000  # times that an image comes in an epoch; the indices of an epoch are held in memory
_SMALLEST = 0.001  # far below, Detectron2's sampler draws one empty epoch after the other, for good


def fit_repeat_factors(cfg: CfgNode, written: Sequence[str], names: Sequence[str]) -> tuple[list[Any], Findings]:
    """Return TRAIN_REPEAT_FACTOR with the catalogue's names of the sets, as Detectron2's samplers look them up.

    Args:
        written: the training sets as the user gave them, in DATASETS.TRAIN or by flag: names and places.
        names: what these are called in the catalogue, in the same order.
    """
    factors, found = cfg.DATASETS.TRAIN_REPEAT_FACTOR, Findings()
    if unmet_condition(cfg, _FACTORS):
        return factors, found
    known = dict(zip(names, names, strict=True)) | dict(zip(written, names, strict=False))
    pairs: dict[str, float] = {}
    for pair in factors:
        fix = f"it must be pairs of a set and a factor in [{_SMALLEST}, {_LARGEST}], such as [[{written[0]!r}, 2.0]]"
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[0], str):
            found.errors.append(f"{_FACTORS} has {pair!r}; {fix}")
        elif not (
            isinstance(pair[1], (int, float)) and not isinstance(pair[1], bool) and _SMALLEST <= pair[1] <= _LARGEST
        ):
            found.errors.append(f"{_FACTORS} has the factor {pair[1]!r} for {pair[0]!r}; {fix}")
        elif pair[0] not in known:
            found.errors.append(f"{_FACTORS} names {pair[0]!r}, but the sets to train on are {', '.join(known)}")
        elif known[pair[0]] in pairs:
            found.errors.append(f"{_FACTORS} names {pair[0]!r} twice; leave one out")
        else:
            pairs[known[pair[0]]] = float(pair[1])
    return [list(pair) for pair in pairs.items()], found


def images_of_epoch(cfg: CfgNode, images: int) -> int:
    """Return how many different images are trained on, of those that could be."""
    if unmet_condition(cfg, _SUBSET):
        return images
    return int(images * cfg.DATALOADER.RANDOM_SUBSET_RATIO)  # as Detectron2's sampler rounds


def check_subset(cfg: CfgNode, images: int | None) -> Findings:
    """Refuse a subset without an image."""
    if images is None or images_of_epoch(cfg, images):
        return Findings()
    ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
    return Findings([f"{_SUBSET} is {ratio}: no image is left of {images}; it must be at least {1 / images:.2g}"])
