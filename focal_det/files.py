"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which takes its place when the block ends, and goes when it fails.

    The name keeps the suffix, by which writers of pictures know the format. Who may read the file is as of any that is
    newly made. Folders that are not there are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.part{path.suffix}")  # no longer than names may be
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
