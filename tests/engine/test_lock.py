"""The lock goes with the process that took it."""

import os
import signal
import time

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


def _is_free(folder):
    try:
        with FolderLock(str(folder)):
            return True
    except ValueError:
        return False
