"""One training at a time in one folder."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import weakref
from pathlib import Path
from typing import IO

from ..errors import InputError

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # such as Lustre's without -o flock


class FolderLock:
    """Held by the process that trains into a folder; the system takes it back however that process ends.

    Args:
        folder: of the training; made if it is not there.
        name: of the file in it that is locked.
    """

    def __init__(self, folder: str, name: str = ".lock") -> None:
        self.path = Path(folder) / name
        self._file: IO[str] | None = None
        lock = weakref.ref(self)
        # else a loader's worker that outlives a killed process by some seconds would hold it
        os.register_at_fork(after_in_child=lambda: _close(lock()))

    def __enter__(self) -> FolderLock:
        """Raises InputError if another process holds the lock; warns where the file system has no locks."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a")  # nothing of it is written, nor cut
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(
                f"OUTPUT_DIR {self.path.parent} is in use by another training; wait for its end or name another"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                self._file.close()
                raise
            print(
                f"warning: OUTPUT_DIR {self.path.parent} is on a file system without locks ({error.strerror}), so that "
                "nothing keeps a second training out of it: start one at a time",
                file=sys.stderr,
                flush=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        _close(self)


def _close(lock: FolderLock | None) -> None:
    if lock is not None and lock._file is not None:
        lock._file.close()
