"""Whether the pictures that an annotation file names are there, can be opened, and have the size it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..errors import some

_THREADS = 8  # they wait for the disk, mostly
_SHOW_PROGRESS_FROM = 2000  # pictures; fewer take a second or two
_ORIENTATION = 0x0112  # EXIF; from 5 on width and height are swapped, and Detectron2 swaps them back


def picture_problems(images: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """One line for each kind of problem. Reads the headers of the files, so not what is damaged behind them.

    Args:
        images: with "file_name", "width", "height".
        folder: that the names are relative to.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        checks = pool.map(partial(_problem, folder), images)
        bar = tqdm(checks, "opening pictures", len(images), disable=len(images) < _SHOW_PROGRESS_FROM)
        found = [problem for problem in bar if problem]
    kinds: dict[str, list[str]] = {}
    for kind, detail in found:
        kinds.setdefault(kind, []).append(detail)
    return [
        f"{len(details)} of {len(images)} pictures {kind.format(folder=folder)}: {some('', details)}"
        for kind, details in kinds.items()
    ]


def _problem(folder: Path, image: Mapping[str, Any]) -> tuple[str, str] | None:
    name, said = image["file_name"], (image["width"], image["height"])
    try:
        with Image.open(folder / name) as picture:
            turned = picture.getexif().get(_ORIENTATION, 1) >= 5
            size = picture.size[::-1] if turned else picture.size
    except FileNotFoundError:
        return "are not in {folder}; give their folder", repr(name)
    except Exception as error:  # whatever a decoder may raise on somebody's file
        return "cannot be opened; replace them or take them out", f"{name!r} ({type(error).__name__})"
    if size != said:
        return "have another size than annotated; correct width and height", f"{name!r} {size}, not {said}"
    return None
