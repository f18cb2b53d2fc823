"""Where data sets live, and whether a folder can be written."""

from __future__ import annotations

import os
from pathlib import Path


def datasets_root() -> Path:
    """Where data sets live: Detectron2's DETECTRON2_DATASETS, else ./datasets."""
    return Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))


def is_writable(folder: Path) -> bool:
    """Whether the folder, or the nearest that it would be made in, can be written."""
    folder = folder.absolute()
    try:
        while not folder.exists():
            if folder.is_symlink():  # to nowhere
                return False
            folder = folder.parent
        return folder.is_dir() and os.access(folder, os.W_OK)
    except (OSError, ValueError):  # a name too long, a NUL in it
        return False
