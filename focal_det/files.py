"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Of a folder on FUSE or CIFS, whose server has its own way.
_CANNOT_FLUSH_FOLDERS = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def written_whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A name beside `path` to write to, which takes its place when the block ends, and goes when it fails.

    The name keeps the suffix, by which writers of pictures know the format. Who may read the file is as of any that is
    newly made. Folders that are not there are made.

    Args:
        durable: when this returns, the file outlasts a crash of the machine, too; until then the one before does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Machines and containers that share a file system have equal process ids. No longer than names may be.
    partial = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield partial
        if durable:  # its content before its name: a file system may write them in any order
            _flush(partial, os.O_RDWR)
        partial.replace(path)
        if durable:
            try:
                _flush(path.parent, os.O_RDONLY)
            except OSError as error:
                if error.errno not in _CANNOT_FLUSH_FOLDERS:
                    raise
    except BaseException:
        with suppress(OSError):  # a disk that cannot be written says so a second time
            partial.unlink(missing_ok=True)
        raise


def write_text_whole(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a text file in UTF-8; `durable` as of `written_whole`."""
    with written_whole(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8")


def put_aside(path: Path) -> Path:
    """Rename a file to the first of NAME.before1, NAME.before2, ... that is free; returns its new place."""
    number = next(n for n in range(1, 10**6) if not path.with_name(f"{path.name}.before{n}").exists())
    return path.replace(path.with_name(f"{path.name}.before{number}"))


def _flush(path: Path, flags: int) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
