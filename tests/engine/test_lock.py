"""The lock goes with the process that took it."""

import errno
import fcntl
import os
import signal
import time

import pytest

from focal_det.engine.lock import FolderLock


def test_a_forked_worker_that_outlives_its_trainer_does_not_hold_the_folder(tmp_path):
    lock = FolderLock(str(tmp_path))
    lock.__enter__()
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    lock.__exit__()  # as the system does for a trainer that is killed
    try:
        deadline = time.monotonic() + 5
        while not _is_free(tmp_path) and time.monotonic() < deadline:  # the worker may not have run yet
            time.sleep(0.01)
        assert _is_free(tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys, code):
    _answer(monkeypatch, code)
    with FolderLock(str(tmp_path)):
        assert f"OUTPUT_DIR {tmp_path} is on a file system without locks" in capsys.readouterr().err


def test_another_error_of_the_lock_is_no_lock(tmp_path, monkeypatch):
    _answer(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), FolderLock(str(tmp_path)):
        pass


def _answer(monkeypatch, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)


def _is_free(folder):
    try:
        with FolderLock(str(folder)):
            return True
    except ValueError:
        return False
