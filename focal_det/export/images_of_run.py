"""Images that an export is compared on, calibrated on and scored on: those of a run, of a folder, or generated."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.catalog import registered_files
from ..data.shapes import draw_image
from ..data.statistics import evenly_spread
from ..errors import InputError, counted
from ..inference.images import ImageError, read_image
from ..inference.inputs import find_inputs
from ..output_layout import ANNOTATIONS, INFERENCE
from ..report.run_files import read_run

_SIDES = ((96, 128), (128, 128), (150, 101), (333, 200), (64, 300), (480, 640), (31, 47), (257, 129))


@dataclass(frozen=True)
class AnnotatedImages:
    """Images of a set and their annotations: COCO's dictionary, and the folder that its file names are relative to."""

    name: str
    coco: Mapping[str, Any]
    folder: Path

    @property
    def files(self) -> list[Path]:
        """The images that still exist."""
        return [path for image in self.coco["images"] if (path := self.folder / image["file_name"]).is_file()]

    def some(self, most: int) -> AnnotatedImages:
        """Return at most so many of them, spread evenly."""
        images = evenly_spread(self.coco["images"], most)
        ids = {image["id"] for image in images}
        kept = [annotation for annotation in self.coco["annotations"] if annotation["image_id"] in ids]
        return AnnotatedImages(self.name, {**self.coco, "images": images, "annotations": kept}, self.folder)


def annotated_sets(run_dir: Path) -> list[AnnotatedImages]:
    """Return the sets that a run was evaluated on and whose annotations are there, those of its configuration first."""
    if not (run_dir / INFERENCE).is_dir():
        return []
    sets = read_run(run_dir).sets
    return [
        AnnotatedImages(found.name, found.annotations, found.image_dir)
        for found in sets
        if found.annotations is not None and found.image_dir is not None
    ]


def choose_images(
    run_dir: Path, calibrate: str | None, training_sets: Sequence[str]
) -> tuple[AnnotatedImages, list[Path]]:
    """Return what a file that computes in 8 bits is scored on, and what it is calibrated on, none of the former.

    Args:
        calibrate: a file, folder or pattern; None for images of the training sets.

    Raises:
        InputError: the run has no annotated test set, nothing to calibrate on is found, or some of it is in a test set.
    """
    tested = annotated_sets(run_dir)
    if not tested:
        fix = "evaluate it first (train_net.py --eval-only), or leave the activations in float32"
        raise InputError(f"--run {run_dir}: has no evaluation with annotations, so AP cannot be measured; {fix}")
    of_tests = {path.resolve() for each in tested for path in each.files}
    if calibrate is None:
        files = [path for path in _trained_on(run_dir, training_sets, tested) if path.resolve() not in of_tests]
        if not files:
            raise InputError(f"--run {run_dir}: its training images are not found; name images by --calibrate INPUT")
        return tested[0], files
    files = find_images("--calibrate", calibrate)
    if among := [path for path in files if path.resolve() in of_tests]:
        raise InputError(
            f"--calibrate {calibrate}: {len(among)} of {counted(len(files), 'image')} are in the test set, such as "
            f"{among[0]}; its AP would no longer tell how other images are detected in: name others"
        )
    return tested[0], files


def _trained_on(run_dir: Path, names: Sequence[str], tested: Sequence[AnnotatedImages]) -> list[Path]:
    """Return the images of training sets, as far as they are found.

    Where a set of the user's own has its images was not recorded: they are looked for beside those evaluated on, under
    names that no test set has, since these would be other images.
    """
    of_tests = {str(image["file_name"]) for each in tested for image in each.coco["images"]}
    found: list[Path] = []
    for name in names:
        copy, known = run_dir / ANNOTATIONS / f"{name}.json", registered_files(name)
        places = [(copy, each.folder) for each in tested] if known is None else [(Path(known[0]), Path(known[1]))]
        for file, folder in places:
            listed = json.loads(file.read_text(encoding="utf-8"))["images"] if file.is_file() else []
            own = [image["file_name"] for image in listed if known or image["file_name"] not in of_tests]
            found += [path for file_name in own if (path := folder / file_name).is_file()]
    return list(dict.fromkeys(found))


def find_images(flag: str, place: str) -> list[Path]:
    """Return the images that a flag names: a file, folder or pattern."""
    try:
        return [file.path for file in find_inputs([place], (), Path(os.devnull)).found]
    except InputError as error:
        raise InputError([f"{flag}: {problem}" for problem in error.problems]) from error


def read_images(flag: str, files: Iterable[Path]) -> Iterator[np.ndarray]:
    """Read images one by one, (H, W, 3) uint8 BGR; InputError for one that fails."""
    for path in files:
        try:
            yield read_image(path)
        except ImageError as error:
            raise InputError(f"{flag}: {error}") from error


def generated_images() -> list[np.ndarray]:
    """Draw shapes in images of eight sizes, (H, W, 3) uint8 BGR."""
    drawn = [(draw_image("val", i, max(sides))[0], *sides) for i, sides in enumerate(_SIDES)]
    return [np.ascontiguousarray(image[:height, :width]) for image, height, width in drawn]
