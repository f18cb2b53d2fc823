"""A part of the images to evaluate on, where there is no set for it: DATASETS.SPLIT_VAL.

Images that look alike stay together, or the test would reward what was learnt by heart. Each image is reduced to 9 x 8
grey values, and described by 64 bits, whether each value is brighter than its right neighbour; images of which at most
`_ALIKE` bits differ are alike, and so is whatever is like one of them. So frames of a video, and resized or compressed
anew, images stay together; not mirrored or turned ones, but for those that Roboflow made of one image (x.rf.*.jpg). The
groups are in the order of a hash of the seed and their first image's name: the same at every start, and nearly the same
after images were added.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError, counted
from ..files import open_regular
from ..formats.image_files import open_image
from .dataset_spec import OwnSet, SetSource, Use, read_sources

_ALIKE = 3  # bits of 64; of two images that have nothing to do with each other, about 32 differ
_BANDS = 4  # one more than the bits: of images that are alike, the bits of one band are equal
_THREADS = 8


def check_split(value: Sequence[Any]) -> tuple[float, int] | None:
    """Return the share of the images and the seed of DATASETS.SPLIT_VAL; None where it is empty.

    Raises:
        InputError: it is not [] or [SHARE, SEED] with a share in (0, 1).
    """
    if not value:
        return None
    share, seed = value if len(value) == 2 else (None, None)
    if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 < share < 1 or type(seed) is not int:
        fix = "it must be [SHARE, SEED] with a share of the images in (0, 1), as in [0.2, 0]"
        raise InputError(f"DATASETS.SPLIT_VAL is {value!r}; {fix}")
    return float(share), seed


def read_sets(
    sources: Mapping[str, SetSource],
    *,
    split: tuple[float, int] | None,
    also: Sequence[SetSource] = (),
    **how: Any,
) -> tuple[dict[str, OwnSet], list[str]]:
    """Read sets by `read_sources`; or read those to train on, and give their parts to the sources of both uses.

    Args:
        sources: by the sets' names; those of both uses differ in nothing else where they are split.
        split: the share to evaluate on, and the seed; None to split nothing.
        also, how: further arguments of `read_sources`.

    Returns:
        The sound sets by name, and every problem of the others.
    """
    if split is None:
        return read_sources(sources, also=also, **how)
    names: dict[SetSource, str] = {}
    for name, source in sources.items():
        names.setdefault(source._replace(use="train"), name)
    whole, problems = read_sources({name: source for source, name in names.items()}, **how)
    parts: dict[str, dict[Use, OwnSet]] = {}
    for name, own in whole.items():
        try:
            parts[name] = split_set(own, *split)
        except InputError as error:
            problems += error.problems
    found = {name: (names[source._replace(use="train")], source.use) for name, source in sources.items()}
    return {name: parts[of][use] for name, (of, use) in found.items() if of in parts}, problems


def split_set(own: OwnSet, share: float, seed: int) -> dict[Use, OwnSet]:
    """Split a checked set by its images; the notes are those of the part to evaluate on.

    Raises:
        InputError: so many images look alike that one part would be empty.
    """
    images = own.file.coco["images"]
    names = [image["file_name"] for image in images]
    groups = groups_alike(names, descriptions(Path(own.image_dir), names))
    wanted, chosen = max(1, round(share * len(names))), set[str]()
    for group in sorted(groups, key=lambda group: hashlib.sha256(f"{seed} {names[group[0]]}".encode()).digest()):
        if len(chosen) + len(group) <= wanted:
            chosen.update(names[place] for place in group)
    largest = max(map(len, groups), default=0)
    if not chosen or len(groups) < 2:
        raise InputError(
            f"{own.place}: {largest} of {counted(len(names), 'image')} look alike, as frames of one video do, and "
            f"--split-val {share:g} keeps such images together: name a set to evaluate on by --val"
        )
    alike = [group for group in groups if len(group) > 1]
    note = f"{own.place}: {len(chosen)} of {len(names)} images were set aside by --split-val {share:g}:{seed}"
    if alike:
        together = f"{sum(map(len, alike))} images that look alike are {counted(len(alike), 'group')}"
        note += f"; {together}, none in both parts"
    return {
        "train": _part(own, names, chosen, False, []),
        "val": _part(own, names, chosen, True, [*own.file.notes, note]),
    }


def _part(own: OwnSet, names: Sequence[str], chosen: set[str], is_chosen: bool, notes: list[str]) -> OwnSet:
    coco = own.file.coco
    images = [image for image in coco["images"] if (image["file_name"] in chosen) is is_chosen]
    ids = {image["id"] for image in images}
    annotations = [annotation for annotation in coco["annotations"] if annotation["image_id"] in ids]
    file = own.file._replace(coco={**coco, "images": images, "annotations": annotations}, notes=notes)
    return own._replace(file=file)


def descriptions(folder: Path, names: Sequence[str]) -> list[int | None]:
    """Return the 64 bits that describe each image; None for one that cannot be read."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(partial(_description, folder), names))


def _description(folder: Path, name: str) -> int | None:
    try:
        with open_regular(folder / name) as file, open_image(file) as opened:
            opened.draft("L", (72, 64))  # of a JPEG an eighth of the pixels is enough
            grey = np.asarray(opened.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    except Exception:  # whatever a decoder may raise on somebody's file, which the check of the images names
        return None
    return int.from_bytes(np.packbits(grey[:, :-1] > grey[:, 1:]).tobytes(), "big")


def groups_alike(names: Sequence[str], bits: Sequence[int | None]) -> list[list[int]]:
    """Return the positions of images that belong together, each in one group, in the order of the first of each."""
    first = list(range(len(names)))  # of the group of each image, by steps

    def root(place: int) -> int:
        while first[place] != place:
            first[place] = place = first[first[place]]
        return place

    for one, other in _pairs_alike(names, bits):
        low, high = sorted((root(one), root(other)))
        first[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for place in range(len(names)):
        groups[root(place)].append(place)
    return list(groups.values())


def _pairs_alike(names: Sequence[str], bits: Sequence[int | None]) -> Iterator[tuple[int, int]]:
    """Yield enough pairs of images that are alike to connect each group."""
    of_key: dict[Any, int] = {}  # the first image of a source, or with these very bits
    for place, (name, described) in enumerate(zip(names, bits, strict=True)):
        source, is_derived, _ = name.partition(".rf.")
        for key in (source if is_derived else None, described):
            if key is not None:
                yield of_key.setdefault(key, place), place
    distinct = [(key, place) for key, place in of_key.items() if isinstance(key, int)]
    for band in range(_BANDS):
        near: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for key, place in distinct:
            near[key >> 16 * band & 0xFFFF].append((key, place))
        for members in near.values():
            for (key, place), (other_key, other) in combinations(members, 2):
                if (key ^ other_key).bit_count() <= _ALIKE:
                    yield place, other
