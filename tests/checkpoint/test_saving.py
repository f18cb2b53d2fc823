"""Kills and failing disks at every point of a save: --resume finds the checkpoint of before, or the new one."""

import builtins
import errno
import io
import os
import shutil
import signal

import pytest
from saved_runs import save, save_best

from focal_det.checkpoint.integrity import contents, damage
from focal_det.checkpoint.resume import find_checkpoint, folder_taken
from focal_det.errors import TrainingError

pytestmark = pytest.mark.detectron2

OF_THE_USER = {"notes.txt": b"mine", "backbone.pth": b"mine, too"}

# The checkpoints before, the save that is disturbed, the iterations that --resume finds done before it, and after it.
SAVES = {
    "first": ([], lambda folder: save(folder, 9), 0, 10),
    "later": ([9], lambda folder: save(folder, 19), 10, 20),
    "removing": ([9, 19], lambda folder: save(folder, 29), 20, 30),
    "final": ([9, 19], lambda folder: save(folder, 19, "model_final"), 20, 20),
    "best": ([9], lambda folder: save_best(folder, 9), 10, 10),
}


@pytest.fixture(params=SAVES)
def case(request, tmp_path):
    """A folder as it is before a save, the save, and what is done before and after it."""
    before, action, done, new = SAVES[request.param]
    folder = tmp_path / "before"
    folder.mkdir()
    for name, content in OF_THE_USER.items():
        (folder / name).write_bytes(content)
    for iteration in before:
        save(folder, iteration)
    if request.param == "best":
        save_best(folder, 4)
    return folder, action, done, new


class Disturbed:
    """Counts the calls that change the disk, and does something before those that `is_due` selects.

    Args:
        act: what to do.
        is_due: of the number of a call, from 1, and its kind.
    """

    def __init__(self, act, is_due):
        self.act, self.is_due = act, is_due
        self.is_acting = False
        self.kinds = []
        self.synced = set()  # inodes of files whose content is on the disk

    def before(self, kind):
        if self.is_acting:  # the calls of `act` itself
            return
        self.kinds.append(kind)
        if self.is_due(len(self.kinds), kind):
            self.is_acting = True
            try:
                self.act()
            finally:
                self.is_acting = False

    def patch(self, context):
        def counted(kind, call):
            def run(*args, **options):
                self.before(kind)
                return call(*args, **options)

            return run

        def opened(file, mode="r", *args, **options):
            if "w" not in mode:
                return real_open(file, mode, *args, **options)
            self.before("open")
            return Written(real_open(file, mode, *args, **options), self)

        def synced(descriptor):
            self.before("fsync")
            self.synced.add(os.fstat(descriptor).st_ino)

        real_open = io.open
        context.setattr(io, "open", opened)
        context.setattr(builtins, "open", opened)
        context.setattr(os, "fsync", synced)
        for name in ("replace", "rename", "unlink"):
            context.setattr(os, name, counted(name, getattr(os, name)))


class Written:
    """An open file, half of whose disturbed write reaches it."""

    def __init__(self, file, disturbed):
        self.file, self.disturbed = file, disturbed

    def write(self, data):
        try:
            self.disturbed.before("write")
        except OSError:
            self.file.write(data[: len(data) // 2])
            raise
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def copied(before, folder):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(before, folder)
    return folder


def resumes_after(folder):
    """Return the iterations done in what --resume finds, 0 for a fresh start; check that it holds what it should."""
    found = find_checkpoint(folder, "auto")
    assert found.findings.errors == []
    if found.checkpoint is None:
        return 0
    held = contents(found.checkpoint.path)
    assert held["model"]["weight"].eq(found.checkpoint.done).all()
    assert held["trainer"]["_trainer"]["optimizer"]["state"][0]["momentum_buffer"].eq(0.5).all()
    return found.checkpoint.done


def check_nothing_is_lost(states, case):
    """Check the folder as it is after kills at later and later points."""
    before, action, done, new = case
    outcomes = []
    for number, folder in enumerate(states):
        outcomes.append(resumes_after(folder))
        assert all((folder / name).read_bytes() == content for name, content in OF_THE_USER.items())
        if (before / "model_best.pth").is_file():
            assert damage(folder / "model_best.pth") is None
        with folder_taken(folder, find_checkpoint(folder, "auto")):
            pass
        assert not [path for path in folder.iterdir() if ".part" in path.name]
        if number % 5 == 0:  # and a resumed run gets as far as one that was not killed
            action(folder)
            assert resumes_after(folder) == new
            assert len(list(folder.glob("model_0*.pth"))) <= 2
    assert outcomes
    assert set(outcomes) <= {done, new}
    assert outcomes == sorted(outcomes)


@pytest.mark.parametrize("way", ["kill", "crash"])
def test_what_is_on_the_disk_at_any_point_of_a_save_can_be_resumed(case, tmp_path, monkeypatch, way):
    """A kill leaves what the disk holds at that moment, a copy of which is taken here; a crash loses what is no more
    than written, too."""
    folder, states = copied(case[0], tmp_path / "run"), []
    there = {path.stat().st_ino for path in folder.iterdir()}

    def keep():
        states.append(shutil.copytree(folder, tmp_path / f"at{len(states)}"))
        for path in folder.iterdir() if way == "crash" else ():
            if path.stat().st_ino not in there | disturbed.synced:
                os.truncate(states[-1] / path.name, 0)

    disturbed = Disturbed(keep, lambda number, kind: True)
    with monkeypatch.context() as context:
        disturbed.patch(context)
        case[1](folder)
    assert len(states) > 25
    assert resumes_after(folder) == case[3]
    check_nothing_is_lost(states, case)


def test_a_kill_at_points_of_a_save_loses_nothing(case, tmp_path):
    """Real ones, before each call of a kind that is not repeated, and in the midst of some of the many writes."""
    folder = copied(case[0], tmp_path / "run")
    counted = Disturbed(None, lambda number, kind: False)
    with pytest.MonkeyPatch.context() as context:
        counted.patch(context)
        case[1](folder)
    points = [n for n, kind in enumerate(counted.kinds, 1) if kind != "write" or n % 12 == 0]

    def killed(at):
        copied(case[0], folder)
        child = os.fork()  # it runs nothing of PyTorch that needs the threads which it has not
        if child == 0:
            try:
                kill = Disturbed(lambda: os.kill(os.getpid(), signal.SIGKILL), lambda number, kind: number == at)
                kill.patch(pytest.MonkeyPatch())
                case[1](folder)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        return folder

    check_nothing_is_lost(map(killed, points), case)


@pytest.mark.parametrize(
    ("number", "fix"),
    [(errno.ENOSPC, "MB on its disk"), (errno.EROFS, "can be written"), (errno.EIO, "can be written")],
)
def test_a_disk_that_fails_at_any_point_of_a_save_keeps_what_is_there(case, tmp_path, monkeypatch, number, fix):
    before, action, done, new = case

    def fail():
        raise OSError(number, os.strerror(number))

    def is_due(call, kind):  # a disk stays full, but what is on it can be renamed and removed
        return call >= at and kind not in ("replace", "unlink") if number == errno.ENOSPC else call == at

    messages = 0
    for at in range(1, 200):
        folder, told, disturbed = copied(before, tmp_path / "run"), "", Disturbed(fail, is_due)
        with monkeypatch.context() as context:
            disturbed.patch(context)
            try:
                action(folder)
            except TrainingError as error:
                told = str(error)
        if len(disturbed.kinds) < at:
            break
        old, now = content_of(before), content_of(folder)
        assert not [name for name in now if ".part" in name]
        assert resumes_after(folder) in (done, new)
        changed = {name for name in old if now.get(name) != old[name]}
        assert changed <= {"last_checkpoint", "model_best.pth", "model_0000009.pth"}
        if "model_0000009.pth" in changed:  # the new one was there before the oldest was to be removed
            assert (told, resumes_after(folder)) == ("", new)
        if told:
            messages += 1
            assert f"could not be written ({os.strerror(number)})" in told
            assert told.startswith(f"{folder}{os.sep}")
            assert fix in told
            assert ("There is no checkpoint yet" in told) == ("last_checkpoint" not in now)
    assert messages > 25
