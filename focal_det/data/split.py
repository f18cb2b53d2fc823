"""A part of the images to evaluate on, where there is no set for it: DATASETS.SPLIT_VAL.

Images that look alike stay together, or the test would reward memorising them. Each image is reduced to 9 x 8
grey values, and described by 64 bits, whether each value is brighter than its right neighbour; images of which at most
`_ALIKE` bits differ are alike, and so is whatever is like one of them. So frames of a video, and resized or compressed
anew, images stay together; not mirrored or turned ones, but for those that Roboflow made of one image (x.rf.*.jpg). The
groups are in the order of a hash of the seed and their first image's name: the same at every start, and nearly the same
after images were added.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
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
        fix = "it must be [SHARE, SEED] with a share of the images in (0, 1), as in [0.2, 0] for a fifth"
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
    parts, of_split = split_sets(whole, *split)
    problems += of_split
    found = {name: (names[source._replace(use="train")], source.use) for name, source in sources.items()}
    return {name: parts[of][use] for name, (of, use) in found.items() if of in parts}, problems


def split_sets(sets: Mapping[str, OwnSet], share: float, seed: int) -> tuple[dict[str, dict[Use, OwnSet]], list[str]]:
    """Split checked sets by their images; the notes are those of the part to evaluate on.

    Of each set the share is taken, and images of several sets that look alike stay together too.

    Returns:
        The parts by the sets' names, and a problem for each set of which one part would be empty, since it has one
        image or so many look alike.
    """
    of_set = [(name, image["file_name"]) for name, own in sets.items() for image in own.file.coco["images"]]
    bits = [bit for name, own in sets.items() for bit in descriptions(Path(own.image_dir), _names(own))]
    groups = groups_alike([file_name for _, file_name in of_set], bits)
    left = {name: min(max(1, round(share * n)), n - 1) for name, own in sets.items() for n in [len(_names(own))]}
    chosen: dict[str, set[str]] = {name: set() for name in sets}

    def order(group: list[int]) -> tuple[int, bytes]:
        # Groups of several sets first, since they have to fit into the share of each.
        sets_of_group = {of_set[place][0] for place in group}
        return -len(sets_of_group), hashlib.sha256(f"{seed} {of_set[group[0]][1]}".encode()).digest()

    for group in sorted(groups, key=order):
        needed = Counter(of_set[place][0] for place in group)
        if all(number <= left[name] for name, number in needed.items()):
            for name, number in needed.items():
                left[name] -= number
            for name, file_name in (of_set[place] for place in group):
                chosen[name].add(file_name)
    parts: dict[str, dict[Use, OwnSet]] = {}
    problems = []
    for name, own in sets.items():
        own_groups = [size for group in groups if (size := sum(of_set[place][0] == name for place in group))]
        of_images = counted(sum(own_groups), "image")
        if not chosen[name]:
            if sum(own_groups) < 2:
                why = f"has {of_images} to split, and --split-val {share:g} needs two"
            else:
                why = f"{max(own_groups)} of {of_images} look alike, as frames of one video do, "
                why += f"and --split-val {share:g} keeps such images together"
            problems.append(f"{own.place}: {why}: name a set to evaluate on by --val")
            continue
        note = f"{own.place}: {len(chosen[name])} of {of_images} were set aside by --split-val {share:g}:{seed}"
        if alike := [size for size in own_groups if size > 1]:
            together = f"{sum(alike)} images that look alike are {counted(len(alike), 'group')}"
            note += f"; {together}, none in both parts"
        if bad := own.file.images_left_out:
            note += f"; {counted(len(bad), 'bad image')} left out before that, without which the parts may differ"
        parts[name] = {
            "train": _part(own, chosen[name], False, []),
            "val": _part(own, chosen[name], True, [*own.file.notes, note]),
        }
    return parts, problems


def _names(own: OwnSet) -> list[str]:
    return [image["file_name"] for image in own.file.coco["images"]]


def _part(own: OwnSet, chosen: set[str], is_chosen: bool, notes: list[str]) -> OwnSet:
    coco = own.file.coco
    images = [image for image in coco["images"] if (image["file_name"] in chosen) is is_chosen]
    ids = {image["id"] for image in images}
    annotations = [annotation for annotation in coco["annotations"] if annotation["image_id"] in ids]
    left_out = tuple(image_id for image_id in own.file.of_boxes_left_out if image_id in ids)
    coco = {**coco, "images": images, "annotations": annotations}
    file = own.file._replace(coco=coco, notes=notes, of_boxes_left_out=left_out)
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
