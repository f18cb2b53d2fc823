"""Kills and failing disks at every point of a save: what --resume goes on from is the checkpoint before, or the new."""

import builtins
import errno
import io
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from focal_det.cli.resuming import find_checkpoint, folder_taken
from focal_det.engine.checkpoint_file import contents, damage
from focal_det.engine.checkpoints import RunCheckpointer
from focal_det.errors import InputError, TrainingError

OPTIMIZER = {"state": {0: {"momentum_buffer": torch.full((3,), 0.5)}}, "param_groups": [{"params": [0]}]}
OF_THE_USER = {"notes.txt": b"mine", "backbone.pth": b"mine, too"}


class Steps:
    """Stands for the trainer: what a checkpoint holds of it."""

    def __init__(self, iteration):
        self.iteration = iteration

    def state_dict(self):
        return {"iteration": self.iteration, "_trainer": {"optimizer": OPTIMIZER}}

    def load_state_dict(self, state):
        self.iteration = state["iteration"]


def saver(folder, iteration, kept=2):
    """Of a run after an iteration, from 0, all of whose weights are the number of iterations done."""
    model = nn.Linear(2, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(iteration + 1.0)
    checkpointer = RunCheckpointer(model, str(folder), kept=kept, trainer=Steps(iteration))
    checkpointer.written.names = {path.name for path in Path(folder).glob("model_0*.pth")}
    return checkpointer


def save(folder, iteration, name=None):
    saver(folder, iteration).save(name or f"model_{iteration:07d}", iteration=iteration)


def save_best(folder, iteration):
    saver(folder, iteration).save_best(iteration=iteration, best={"AP": 1.0, "iteration": iteration})


# What is there before, the save that is disturbed, iterations that --resume finds done before it, and after it.
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
    """Counts the calls that change what is on the disk, and does something before those that `is_due` names.

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


def goes_on_from(folder):
    """Iterations done in what --resume goes on from, 0 for a fresh start; that it holds what it should."""
    found = find_checkpoint(folder, "auto")
    assert found.problems == []
    if found.checkpoint is None:
        return 0
    held = contents(found.checkpoint.path)
    assert held["model"]["weight"].eq(found.checkpoint.done).all()
    assert held["trainer"]["_trainer"]["optimizer"]["state"][0]["momentum_buffer"].eq(0.5).all()
    return found.checkpoint.done


def check_nothing_is_lost(states, case):
    """Of the folder as it is after a kill at later and later points."""
    before, action, done, new = case
    outcomes = []
    for number, folder in enumerate(states):
        outcomes.append(goes_on_from(folder))
        assert all((folder / name).read_bytes() == content for name, content in OF_THE_USER.items())
        if (before / "model_best.pth").is_file():
            assert damage(folder / "model_best.pth") is None
        with folder_taken(folder, find_checkpoint(folder, "auto")):
            pass
        assert not [path for path in folder.iterdir() if ".part" in path.name]
        if number % 5 == 0:  # and a run that goes on gets as far as one that was not killed
            action(folder)
            assert goes_on_from(folder) == new
            assert len(list(folder.glob("model_0*.pth"))) <= 2
    assert outcomes
    assert set(outcomes) <= {done, new}
    assert outcomes == sorted(outcomes)


@pytest.mark.parametrize("way", ["kill", "crash"])
def test_what_is_on_the_disk_at_any_point_of_a_save_can_be_gone_on_from(case, tmp_path, monkeypatch, way):
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
    assert goes_on_from(folder) == case[3]
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
    ("number", "mend"),
    [(errno.ENOSPC, "MB on its disk"), (errno.EROFS, "can be written"), (errno.EIO, "can be written")],
)
def test_a_disk_that_fails_at_any_point_of_a_save_keeps_what_is_there(case, tmp_path, monkeypatch, number, mend):
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
        assert goes_on_from(folder) in (done, new)
        changed = {name for name in old if now.get(name) != old[name]}
        assert changed <= {"last_checkpoint", "model_best.pth", "model_0000009.pth"}
        if "model_0000009.pth" in changed:  # the new one was there before the oldest was to be removed
            assert (told, goes_on_from(folder)) == ("", new)
        if told:
            messages += 1
            assert f"could not be written ({os.strerror(number)})" in told
            assert told.startswith(f"{folder}{os.sep}")
            assert mend in told
            assert ("There is no checkpoint yet" in told) == ("last_checkpoint" not in now)
    assert messages > 25


# --- which one --resume goes on from ---------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def test_a_damaged_newest_one_is_told_and_the_one_before_is_taken(tmp_path):
    for iteration in (9, 19, 29):
        saver(tmp_path, iteration, kept=0).save(f"model_{iteration:07d}")
    cut(tmp_path / "model_0000029.pth")
    found = find_checkpoint(tmp_path, "required")
    (warning,) = found.warnings
    assert warning == (
        "--resume: model_0000029.pth is damaged (it is cut off, or never was a checkpoint); going on from the newest "
        "whole one, model_0000019.pth, after 20 iterations"
    )
    assert (found.checkpoint.path.name, found.checkpoint.done) == ("model_0000019.pth", 20)


def test_a_newest_one_with_another_number_in_it_is_not_taken(tmp_path):
    save(tmp_path, 9)
    save(tmp_path, 19)
    newest = tmp_path / "model_0000019.pth"
    data = bytearray(newest.read_bytes())
    place = data.index(torch.full((2,), 20.0).numpy().tobytes())
    data[place] ^= 1
    newest.write_bytes(data)
    for pointed in (True, False):
        found = find_checkpoint(tmp_path, "required")
        assert found.checkpoint.done == 10
        if pointed:
            assert "is not as it was written); going on from" in found.warnings[0]
            (tmp_path / "last_checkpoint").unlink()


def test_what_the_user_points_to_is_taken_and_a_longer_run_is_newer_than_its_first_end(tmp_path):
    save(tmp_path, 9)
    save(tmp_path, 9, "model_final")
    save(tmp_path, 19)
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    found = find_checkpoint(tmp_path, "required")
    assert (found.checkpoint.done, found.warnings) == (10, [])
    (tmp_path / "last_checkpoint").unlink()
    found = find_checkpoint(tmp_path, "auto")
    assert found.checkpoint.done == 20
    assert f"no last_checkpoint in {tmp_path}; going on from the newest whole one" in found.warnings[0]


def test_the_best_is_taken_where_nothing_else_is_whole(tmp_path):
    save(tmp_path, 9)
    save_best(tmp_path, 4)
    (tmp_path / "last_checkpoint").write_text("gone.pth")
    assert find_checkpoint(tmp_path, "required").checkpoint.done == 10
    cut(tmp_path / "model_0000009.pth")
    found = find_checkpoint(tmp_path, "required")
    assert found.checkpoint.done == 5
    assert (
        "names 'gone.pth', which is no checkpoint in that folder; going on from the only whole one, model_best"
        in (found.warnings[0])
    )


def test_where_none_is_whole_each_is_listed_and_weights_alone_are_none(tmp_path):
    save(tmp_path, 9)
    cut(tmp_path / "model_0000009.pth")
    torch.save({"model": nn.Linear(2, 1).state_dict()}, tmp_path / "model_final.pth")
    for wish in ("required", "auto"):
        found = find_checkpoint(tmp_path, wish)
        assert found.checkpoint is None
        assert found.problems[0].splitlines()[1:] == [
            "  model_0000009.pth: it is cut off, or never was a checkpoint",
            "  model_final.pth: it holds weights alone, no optimiser and iteration to go on from",
        ]


@pytest.mark.parametrize(
    ("trainer", "reason"),
    [
        ({"iteration": math.inf, "_trainer": {"optimizer": OPTIMIZER}}, "its iteration is inf"),
        ({"iteration": -1, "_trainer": {"optimizer": OPTIMIZER}}, "its iteration is -1"),
        ({"iteration": 19, "_trainer": {"optimizer": {}}}, "its optimiser is not as PyTorch's are"),
        ({"iteration": 19, "_trainer": {"optimizer": [1.0]}}, "its optimiser is not as PyTorch's are"),
        (torch.ones(3), "it holds weights alone, no optimiser and iteration to go on from"),
    ],
)
def test_one_that_can_be_read_and_not_gone_on_from_is_passed_over(tmp_path, trainer, reason):
    save(tmp_path, 9)
    save(tmp_path, 19)
    newest = tmp_path / "model_0000019.pth"
    torch.save(torch.load(newest, weights_only=True) | {"trainer": trainer}, newest)
    found = find_checkpoint(tmp_path, "required")
    assert found.checkpoint.done == 10
    assert f"model_0000019.pth is damaged ({reason}); going on from" in found.warnings[0]


def test_a_link_to_nothing_is_passed_over(tmp_path):
    save(tmp_path, 9)
    (tmp_path / "model_0000019.pth").symlink_to(tmp_path / "gone.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000019.pth")
    assert find_checkpoint(tmp_path, "required").checkpoint.done == 10


def test_a_folder_that_changed_since_it_was_looked_at_is_left_alone(tmp_path):
    save(tmp_path, 9)
    found = find_checkpoint(tmp_path, "required")
    save(tmp_path, 19)
    partial = tmp_path / ".77-0a1b2c3d.part.pth"
    partial.touch()
    with pytest.raises(InputError, match="another training has written here"), folder_taken(tmp_path, found):
        pass
    assert partial.exists()
    with folder_taken(tmp_path, find_checkpoint(tmp_path, "required")):
        pass
    assert not partial.exists()


def test_metrics_of_a_run_without_checkpoint_are_put_aside(tmp_path):
    for number in (1, 2):
        (tmp_path / "metrics.json").write_text(f'{{"iteration": {number}}}\n')
        with folder_taken(tmp_path, find_checkpoint(tmp_path, "auto")):
            pass
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["metrics.json.before1", "metrics.json.before2"]
    assert (tmp_path / "metrics.json.before2").read_text() == '{"iteration": 2}\n'
