"""The steps at which a run has diverged before, as the files of OUTPUT_DIR/diverged name them."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from detectron2.utils import comm

_NAME = re.compile(r"iteration_(\d+)_(seen|rank\d+(_\d+)?\.pth)")


def folder_of(output_dir: str) -> Path:
    """Where a run keeps what it diverged at."""
    return Path(output_dir) / "diverged"


def note_suspect(output_dir: str, iteration: int) -> None:
    """Leave an empty file that says where a run has diverged, of whose step nothing could be kept any more."""
    path = folder_of(output_dir) / f"iteration_{iteration:07d}_seen"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        logging.getLogger(__name__).error(f"{path} could not be written ({error})")


def suspects(output_dir: str, period: int) -> frozenset[int]:
    """Iterations up to which a run has diverged before, each with those since the look before: to look at each of them.

    To be called by all ranks at once: all get what rank 0 sees, for a folder may look different from each machine.

    Args:
        period: iterations between two looks.
    """
    found = (_NAME.fullmatch(path.name) for path in folder_of(output_dir).glob("iteration_*"))
    last = {int(match[1]) for match in found if match} if comm.is_main_process() else set()
    shared: set[int] = comm.all_gather(last)[0]
    return frozenset(i for iteration in shared for i in range(max(0, iteration - period), iteration + 1))
