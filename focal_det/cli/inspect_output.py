"""What `focal-det data inspect` would write, and what speaks against it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..data.folders import is_writable
from ..data.sources import OwnSet, SetSource
from ..errors import cut, some

SHEET = "pictures.png"
STATISTICS = ("statistics.txt", "statistics.json", "statistics.png")


def output_problems(
    out: Path, names: Iterable[str], sources: Mapping[str, SetSource], sets: Mapping[str, OwnSet], *, overwrite: bool
) -> list[str]:
    """Why these files cannot be written: the sets' own pictures or annotations, or somebody's files, are there.

    Args:
        names: of all sets; each gets a folder of drawings.
        sources: of all sets; those that are not in `sets` are generated shapes that are still to be drawn.
        sets: those that were read.
    """
    if not is_writable(out):
        return [f"--out {cut(out, 250)}: no folder that can be made and written; name another"]
    files, folders = [out / name for name in (*STATISTICS, SHEET)], [out / name for name in names]
    image_dirs = [own.image_dir for own in sets.values()]
    image_dirs += [str(source.detail) for name, source in sources.items() if name not in sets]
    own = [path for path in folders if any(_is_in(image_dir, path) for image_dir in image_dirs)]
    there = [path for path in (*files, *folders) if os.path.lexists(path)]
    if there and not own:  # nothing can be lost where nothing is
        inputs = [source.path for source in sources.values() if source.kind == "json"]
        inputs += [
            os.path.join(s.image_dir, image["file_name"]) for s in sets.values() for image in s.file.coco["images"]
        ]
        real = {os.path.realpath(path) for path in inputs}
        holders = {os.path.dirname(path) for path in real}
        own = [path for path in files if os.path.realpath(path) in real]
        own += [path for path in folders if any(_is_in(holder, path) for holder in holders)]
    if own:
        return [f"--out {out}: {some('', own)} holds or is what the data sets consist of; name another folder"]
    if there and not overwrite:
        return [f"--out {out} already has {some('', there)}; name another, or add --overwrite"]
    wrong = [f"{path} is a folder" for path in files if os.path.isdir(path)]
    wrong += [f"{path} is no folder" for path in folders if os.path.lexists(path) and not os.path.isdir(path)]
    return [f"--out {out}: {some('', wrong)}; name another"] if wrong else []


def _is_in(folder: str, other: Path) -> bool:
    """Whether a folder is the other or lies inside it."""
    real = os.path.realpath(other)
    return os.path.commonpath([os.path.realpath(folder), real]) == real
