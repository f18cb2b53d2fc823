"""Files are written completely or not at all, with the usual permissions; a folder's lock goes with its process."""

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from focal_det import files
from focal_det.errors import InputError
from focal_det.files import FolderLock, write_text_whole, written_whole


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail():
        with written_whole(path) as partial:
            partial.write_text("half")
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        fail()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "before")]


def test_a_full_disks_error_names_the_file(tmp_path):
    """The system's own error of a write does not."""
    with (
        pytest.raises(OSError, match="No space left") as raised,
        written_whole(tmp_path / "a.txt"),
        open("/dev/full", "w") as full,
    ):
        full.write("text")
    assert str(raised.value) == f"[Errno {errno.ENOSPC}] No space left on device: '{tmp_path}/a.txt'"


def test_folders_are_made_and_text_is_utf_8(tmp_path):
    write_text_whole(tmp_path / "new" / "a.json", json.dumps("Zähler", ensure_ascii=False))
    assert (tmp_path / "new" / "a.json").read_bytes() == '"Zähler"'.encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_a_colleague_may_read_it(tmp_path):
    before = os.umask(0o022)
    try:
        write_text_whole(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


def test_a_name_as_long_as_names_may_be(tmp_path):
    path = tmp_path / f"{'n' * 251}.png"  # 255 bytes
    write_text_whole(path, "whole")
    assert path.read_text() == "whole"


def test_two_processes_of_equal_number_write_beside_each_other(tmp_path):
    path = tmp_path / "a.txt"
    with written_whole(path) as one, written_whole(path) as other:  # as in two containers
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def refuse(monkeypatch, code, *, of_folders):
    """Have fsync answer an error for folders, or for files."""
    fsync = os.fsync

    def refusing(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == of_folders:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_folder_that_cannot_be_flushed_does_not_fail_a_durable_write(tmp_path, monkeypatch, code):
    refuse(monkeypatch, code, of_folders=True)
    write_text_whole(tmp_path / "a.txt", "text", durable=True)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "text")]


@pytest.mark.parametrize(("code", "of_folders"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_other_refusals_to_flush_fail(tmp_path, monkeypatch, code, of_folders):
    refuse(monkeypatch, code, of_folders=of_folders)
    with pytest.raises(OSError, match=os.strerror(code)):
        write_text_whole(tmp_path / "a.txt", "text", durable=True)


# --- the lock of a folder --------------------------------------------------------------------------------------------


def test_a_forked_worker_that_outlives_its_trainer_does_not_hold_the_folder(tmp_path):
    lock = FolderLock(str(tmp_path))
    lock.__enter__()
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    lock.__exit__()  # as the system does for a trainer that is killed
    try:
        deadline = time.monotonic() + 60
        while not _is_free(tmp_path) and time.monotonic() < deadline:  # the worker may not have run yet
            time.sleep(0.01)
        assert _is_free(tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


@pytest.fixture
def held_by_another(tmp_path):
    """Another process, which holds the folder until it is killed."""
    code = "import fcntl, time; f = open('.lock', 'a'); fcntl.flock(f, 2); print(flush=True); time.sleep(600)"
    code = code.replace(".lock", FolderLock(str(tmp_path)).path.name)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"])
def test_under_a_scheduler_it_waits_for_a_lock_that_is_let_go_and_says_so_once(
    tmp_path, monkeypatch, capsys, held_by_another, variable
):
    monkeypatch.setenv(variable, "7")
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            held_by_another.kill()
            held_by_another.wait()

    monkeypatch.setattr(files.time, "sleep", wait)
    with FolderLock(str(tmp_path)):
        assert capsys.readouterr().out == (
            f"OUTPUT_DIR {tmp_path} is in use, perhaps by a machine that is gone: waiting for it, up to 180 s\n"
        )
    assert len(waits) == 3


def test_a_lock_that_is_not_let_go_is_an_error_at_once_or_after_the_wait(tmp_path, monkeypatch, held_by_another):
    for variable in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(files.time, "sleep", lambda _: pytest.fail("it waited"))
        with pytest.raises(InputError, match="is in use by another training"), FolderLock(str(tmp_path)):
            pass
    started = time.monotonic()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(files, "_SECONDS_TO_WAIT", 1)
    with pytest.raises(InputError, match="is in use by another training"), FolderLock(str(tmp_path)):
        pass
    assert time.monotonic() - started > 1


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys, code):
    _answer(monkeypatch, code)
    with FolderLock(str(tmp_path)):
        assert f"OUTPUT_DIR {tmp_path} is on a file system without locks" in capsys.readouterr().err


def test_another_error_of_the_lock_is_raised(tmp_path, monkeypatch):
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
