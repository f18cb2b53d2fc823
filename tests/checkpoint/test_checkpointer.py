"""Which checkpoints stay, and what of somebody else's goes into the model."""

import logging
import pickle

import pytest
import torch
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from torch import nn

from focal_det.checkpoint.checkpointer import RunCheckpointer, retention_message
from focal_det.checkpoint.compatibility import build_cpu_model, check_weights
from focal_det.engine.trainer import Trainer
from focal_det.errors import Findings, TrainingError

pytestmark = pytest.mark.detectron2


def names(folder):
    return sorted(path.name for path in folder.glob("*.pth"))


def saver(folder, kept=2):
    return RunCheckpointer(nn.Linear(2, 1), str(folder), kept=kept)


def save(checkpointer, *iterations):
    for iteration in iterations:
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)


def test_the_newest_stay_and_the_final_one(tmp_path):
    checkpointer = saver(tmp_path)
    save(checkpointer, 9, 19, 29)
    checkpointer.save("model_final", iteration=29)
    assert names(tmp_path) == ["model_0000019.pth", "model_0000029.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_0_keeps_all(tmp_path):
    save(saver(tmp_path, kept=0), 9, 19, 29)
    assert len(names(tmp_path)) == 3


def test_a_resumed_run_remembers_what_it_wrote_and_removes_nothing_else(tmp_path):
    (tmp_path / "model_0000001.pth").write_bytes(b"somebody's own")
    save(saver(tmp_path), 9, 19)
    resumed = saver(tmp_path)
    resumed.resume_or_load("", resume=True)
    save(resumed, 29)
    assert names(tmp_path) == ["model_0000001.pth", "model_0000019.pth", "model_0000029.pth"]


def test_a_run_resumed_from_an_older_one_keeps_the_newer_files_that_it_does_not_know(tmp_path):
    save(saver(tmp_path, kept=0), 9, 19, 29)
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    resumed = saver(tmp_path, kept=1)
    resumed.resume_or_load("", resume=True)
    save(resumed, 14)
    assert names(tmp_path) == ["model_0000014.pth", "model_0000019.pth", "model_0000029.pth"]


@pytest.mark.parametrize("name", ["../precious.txt", "a.pth", "x/model_0000001.pth", "../model_0000001.pth"])
def test_a_checkpoint_of_somebody_else_cannot_have_other_files_removed(tmp_path, name):
    folder = tmp_path / "run"
    (folder / "x").mkdir(parents=True)
    (folder / name).write_text("precious")
    strange = saver(folder)
    strange.written.names = {name}
    save(strange, 9)
    resumed = saver(folder, kept=1)
    resumed.resume_or_load("", resume=True)
    save(resumed, 19, 29)
    assert (folder / name).read_text() == "precious"
    assert names(folder)[-1] == "model_0000029.pth"
    assert not (folder / "model_0000009.pth").exists()


def test_a_save_that_fails_leaves_the_one_before_and_nothing_else(tmp_path, monkeypatch):
    checkpointer = saver(tmp_path)
    checkpointer.save("model_final")
    before = (tmp_path / "model_final.pth").read_bytes()

    def fails(data, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(TrainingError, match=r"model_final\.pth could not be written \(No space left on device\)"):
        checkpointer.save("model_final")
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]


def test_a_file_of_the_users_is_put_aside_and_not_written_over(tmp_path):
    (tmp_path / "model_0000003.pth").write_text("mine")
    checkpointer = saver(tmp_path)
    checkpointer.save("model_0000003")
    assert (tmp_path / "model_0000003.pth.before1").read_text() == "mine"
    checkpointer.save("model_0000003")  # its own it may write again
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last_checkpoint",
        "model_0000003.pth",
        "model_0000003.pth.before1",
    ]


def test_what_last_checkpoint_names_stays(tmp_path):
    checkpointer = saver(tmp_path, kept=2)
    save(checkpointer, 9, 19)
    checkpointer.kept = 1
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")  # by the user, who wants to go back to it
    checkpointer.save_best(iteration=19)
    assert names(tmp_path) == ["model_0000009.pth", "model_0000019.pth", "model_best.pth"]


def test_what_was_just_written_stays_whatever_else_a_checkpoint_says_is_the_runs(tmp_path):
    (tmp_path / "model_0000099.pth").write_text("newer, or somebody's")
    checkpointer = saver(tmp_path, kept=1)
    checkpointer.written.names = {"model_0000099.pth"}
    save(checkpointer, 9)
    assert names(tmp_path) == ["model_0000009.pth", "model_0000099.pth"]


def test_another_rank_writes_and_removes_nothing(tmp_path):
    save(saver(tmp_path), 9, 19)
    other = saver(tmp_path, kept=1)
    other.resume_or_load("", resume=True)
    other.save_to_disk = False
    save(other, 29)
    assert names(tmp_path) == ["model_0000009.pth", "model_0000019.pth"]


def test_removing_is_announced_where_it_will_happen():
    assert "the newest 5 stay (MODEL.FOCAL_DET.CHECKPOINTS_KEPT; 0 keeps all)" in retention_message(5, 600, 100)
    assert retention_message(5, 500, 100) is None
    assert retention_message(0, 90000, 100) is None


# --- weights of the model zoo ----------------------------------------------------------------------------------------


@pytest.fixture
def zoo(tiny_cfg, tmp_path):
    """A file as Detectron2's model zoo has them, of its own RetinaNet, and the weights in it."""

    def write(*, heuristics):
        torch.manual_seed(5)
        weights = build_model(tiny_cfg("MODEL.META_ARCHITECTURE", "RetinaNet")).state_dict()
        named = {name: value.numpy() for name, value in weights.items()}
        if heuristics:  # names are matched by their ends: the backbone's stand in the file without the wrapper's
            named = {name.removeprefix("backbone."): value for name, value in named.items()}
        named["pixel_mean"] = torch.zeros(3, 1, 1).numpy()
        named["anchor_generator.cell_anchors.0"] = torch.zeros(9, 4).numpy()
        content = {"model": named, "__author__": "Detectron2 Model Zoo"}
        path = tmp_path / "model_final.pkl"
        path.write_bytes(pickle.dumps(content | ({"matching_heuristics": True} if heuristics else {})))
        return path, weights

    return write


def loaded(model, path):
    """The one message that the loading logs, and its level."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    roots = [logging.getLogger(name) for name in ("focal_det", "detectron2", "fvcore")]
    levels = [root.level for root in roots]
    for root in roots:
        root.addHandler(handler)
        root.setLevel(logging.INFO)
    try:
        RunCheckpointer(model).load(str(path), checkpointables=[])
    finally:
        for root, level in zip(roots, levels, strict=True):
            root.removeHandler(handler)
            root.setLevel(level)
    told = [record for record in records if "oading from" not in record.getMessage()]
    return [record for record in told if "Reading a file from" not in record.getMessage()]


@pytest.mark.parametrize("heuristics", [True, False])
def test_weights_of_the_zoo_load_whole(tiny_cfg, zoo, heuristics):
    path, weights = zoo(heuristics=heuristics)
    model = build_model(tiny_cfg())
    (message,) = loaded(model, path)
    assert message.getMessage().startswith(f"Weights: {len(model.state_dict())} of the model's ")
    assert message.levelno == logging.INFO
    state = model.state_dict()
    assert all(state[name].equal(value) for name, value in weights.items() if name in state)
    assert check_weights(build_cpu_model(tiny_cfg()), str(path), needs_all=True) == Findings()


@pytest.mark.parametrize("heuristics", [True, False])
def test_a_head_of_other_classes_is_a_warning_in_training_and_fatal_in_evaluation(tiny_cfg, zoo, heuristics):
    path, _ = zoo(heuristics=heuristics)
    cfg = tiny_cfg("MODEL.RETINANET.NUM_CLASSES", "5")
    (message,) = loaded(build_model(cfg), path)
    assert message.levelno == logging.WARNING
    assert "head.cls_score.weight (for 3 classes, the model has 5)" in message.getMessage()
    assert "head.cls_score.bias (for 3 classes, the model has 5)" in message.getMessage()
    assert check_weights(build_cpu_model(cfg), str(path), needs_all=False) == Findings()
    (problem,) = check_weights(build_cpu_model(cfg), str(path), needs_all=True).errors
    assert "does not fit the configuration's model" in problem


def test_the_trainer_keeps_what_the_key_says(tiny_cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(lambda cls, cfg: []))
    assert issubclass(Trainer, DefaultTrainer)
    cfg = tiny_cfg("MODEL.FOCAL_DET.CHECKPOINTS_KEPT", "3", "OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", "('a',)")
    assert Trainer(cfg).checkpointer.kept == 3
