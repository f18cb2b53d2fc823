"""Write files completely or not at all, open regular files alone, test and lock folders."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from .errors import InputError
from .output_layout import LOCK

# For a folder on FUSE or CIFS, where the server decides when it is written.
_CANNOT_FLUSH_FOLDERS = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # a system says these of a write without the file's name
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # such as Lustre's without -o flock

_SCHEDULERS = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")  # what these set
_SECONDS_TO_WAIT = 180.0  # twice the lease of NFS 4, within which a client must have called
_POLL_SECONDS = 0.5


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is a system's or an editor's own: .DS_Store, ._a.jpg, .ipynb_checkpoints."""
    return name.startswith(".") or name == "__MACOSX"


@contextmanager
def written_whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a path beside `path` to write to; it replaces `path` when the block ends, and is removed if that fails.

    It keeps the suffix, by which writers of images know the format, and has the permissions of any new file. Missing
    folders are made. If `durable`, the file survives a crash of the machine, too, when this returns; until then the one
    before does. Its errors name `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, since machines and containers that share a file system may have equal process ids; and short.
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
    except BaseException as error:
        with suppress(OSError):  # a disk that cannot be written may fail a second time
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            is_writes = error.filename is None and error.errno in _NO_ROOM
            if is_writes or (error.filename is not None and str(error.filename) == str(partial)):
                error.filename = str(path)
        raise


def write_text_whole(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a text file in UTF-8; `durable` is that of `written_whole`."""
    with written_whole(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8")


def put_aside(path: Path) -> Path:
    """Rename a file to the first of NAME.before1, NAME.before2, ... that is free; return its new path."""
    number = next(n for n in range(1, 10**6) if not path.with_name(f"{path.name}.before{n}").exists())
    return path.replace(path.with_name(f"{path.name}.before{number}"))


def _flush(path: Path, flags: int) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class IrregularFileError(OSError):
    """A folder, pipe, socket or device was found where a file is needed."""


class TooLargeError(OSError):
    """A file is far beyond what one of its kind can be."""


def open_regular(path: str | os.PathLike[str], *, most: int | None = None) -> BinaryIO:
    """Open a file to read its bytes, but nothing that might never end, such as a pipe.

    Raises:
        IrregularFileError: it is not a file.
        TooLargeError: it has more than `most` bytes.
        OSError: it is missing or cannot be read.
    """
    found, name = os.stat(path), Path(path).name
    if not stat.S_ISREG(found.st_mode):
        raise IrregularFileError(f"{name} is not a regular file")
    if most is not None and found.st_size > most:
        size, limit = (f"{number / 1e6:.{0 if number >= 1e7 else 1}f} MB" for number in (found.st_size, most))
        raise TooLargeError(f"{name} has {size}, more than the {limit} that are read")
    return open(path, "rb")


def datasets_root() -> Path:
    """Return the folder of data sets: Detectron2's DETECTRON2_DATASETS, else ./datasets."""
    return Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))


def is_writable(folder: Path) -> bool:
    """Return whether the folder, or the nearest one that it would be made in, can be written."""
    folder = folder.absolute()
    try:
        while not folder.exists():
            if folder.is_symlink():  # to nowhere
                return False
            folder = folder.parent
        return folder.is_dir() and os.access(folder, os.W_OK)
    except (OSError, ValueError):  # a name too long, a NUL in it
        return False


class FolderLock:
    """Held by the process that trains or evaluates into a folder; the system releases it however that process ends.

    A missing folder is made; `name` is that of the file in it that is locked.
    """

    def __init__(self, folder: str, name: str = LOCK) -> None:
        self.path = Path(folder) / name
        self._file: IO[str] | None = None
        lock = weakref.ref(self)
        # or a loader's worker that outlives a killed process by some seconds would hold it
        os.register_at_fork(after_in_child=lambda: _close(lock()))

    def __enter__(self) -> FolderLock:
        """Raises InputError if another process holds the lock; warns where the file system has no locks.

        What a scheduler has started waits for some minutes before: NFS holds the lock of a machine that is gone, from
        which a job was requeued, until the server has noticed.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a")  # which changes nothing in it
        try:
            self._take(_SECONDS_TO_WAIT if any(name in os.environ for name in _SCHEDULERS) else 0)
        except BlockingIOError:
            self._file.close()
            raise InputError(
                f"OUTPUT_DIR {self.path.parent} is in use by another training or evaluation; wait for its end or name "
                "another"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                self._file.close()
                raise
            message = (
                f"OUTPUT_DIR {self.path.parent} is on a file system without locks ({error.strerror}), so that nothing "
                "keeps a second training out of it: start one at a time"
            )
            print(f"warning: {message}", file=sys.stderr, flush=True)
        return self

    def _take(self, seconds: float) -> None:
        assert self._file is not None
        end = time.monotonic() + seconds
        while True:
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise
            if seconds:
                message = f"OUTPUT_DIR {self.path.parent} is in use, perhaps by a machine that is gone: waiting for it"
                print(f"{message}, up to {seconds:g} s", flush=True)
                seconds = 0
            time.sleep(_POLL_SECONDS)

    def __exit__(self, *_: object) -> None:
        _close(self)


def _close(lock: FolderLock | None) -> None:
    if lock is not None and lock._file is not None:
        lock._file.close()
