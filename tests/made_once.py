"""Fixtures of the whole session are made in each test process; what takes long is made by the first and shared."""

import fcntl
import os
import shutil

import pytest


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Return a function: the folder of a name, which `make(folder)` has filled in this or another test process."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # whose own folder lies in that of all
        root = root.parent

    def folder_of(name, make):
        folder, partial = root / name, root / f"{name}.partial"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                shutil.rmtree(partial, ignore_errors=True)  # of one that failed, or was killed
                partial.mkdir()
                make(partial)
                partial.rename(folder)
        return folder

    return folder_of
