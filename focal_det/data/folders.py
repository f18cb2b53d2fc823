"""Where data sets live, whether a folder can be written, and files that are none."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


class IrregularFileError(OSError):
    """A folder, pipe, socket or device stands where a file is wanted."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(f"{Path(path).name} is no regular file")


class TooLargeError(OSError):
    """A file is far beyond what one of its kind can be."""

    def __init__(self, path: str | os.PathLike[str], size: int, most: int) -> None:
        super().__init__(f"{Path(path).name} has {size / 1e6:.0f} MB, more than the {most / 1e6:.0f} MB that are read")


def open_regular(path: str | os.PathLike[str], *, most: int | None = None) -> BinaryIO:
    """Open a file to read its bytes, but nothing that would be waited for without end, such as a pipe.

    Args:
        most: bytes that it may have.

    Raises:
        IrregularFileError: it is no file.
        TooLargeError: it has more bytes.
        OSError: it is not there or cannot be read.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise IrregularFileError(path)
    if most is not None and found.st_size > most:
        raise TooLargeError(path, found.st_size, most)
    return open(path, "rb")


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
