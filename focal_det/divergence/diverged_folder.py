"""OUTPUT_DIR/diverged: which files it gets, how many, and what they say about where a run has diverged."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from detectron2.utils import comm

from ..output_layout import DIVERGED

logger = logging.getLogger(__name__)
KEPT = 4  # files in all, each with the whole model: a job that is started again and again must not fill the disk
RESUME_HINT = "--resume looks at each step there and keeps the one that diverged"
_NAME = re.compile(r"iteration_(\d+)_(seen|rank\d+(_\d+)?\.pth)")


def room(output_dir: str) -> int:
    """Return how many more steps may be kept."""
    return max(0, KEPT - len(list((Path(output_dir) / DIVERGED).glob("*.pth"))))


def new_file(output_dir: str, iteration: int) -> Path:
    """Return a free name for this rank's step at an iteration."""
    stem = f"iteration_{iteration:07d}_rank{comm.get_rank()}"
    paths = (Path(output_dir) / DIVERGED / f"{stem}{suffix}.pth" for suffix in ("", *(f"_{n}" for n in range(2, 1000))))
    return next(path for path in paths if not path.exists())


def note_divergence(output_dir: str, iteration: int) -> None:
    """Leave an empty file that says where a run diverged, where the step itself can no longer be kept."""
    path = Path(output_dir) / DIVERGED / f"iteration_{iteration:07d}_seen"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        logger.error(f"{path} could not be written ({error})")


def diverged_iterations(output_dir: str, period: int) -> frozenset[int]:
    """Return the iterations at which a run was seen to diverge, each with those since the look before.

    To be called by all ranks at once: all get what rank 0 sees, since a folder may look different from each machine.
    `period` is the iterations between two looks.
    """
    matches = (_NAME.fullmatch(path.name) for path in (Path(output_dir) / DIVERGED).glob("iteration_*"))
    seen = {int(match[1]) for match in matches if match} if comm.is_main_process() else set()
    shared: set[int] = comm.all_gather(seen)[0]
    return frozenset(i for iteration in shared for i in range(max(0, iteration - period), iteration + 1))
