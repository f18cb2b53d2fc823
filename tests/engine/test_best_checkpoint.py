"""Which model is the best, and that a resume does not forget it."""

import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from focal_det.checkpoint.checkpointer import RunCheckpointer
from focal_det.checkpoint.run_record import RunRecord, UsedSet
from focal_det.config.load import load_config
from focal_det.engine.best_checkpoint import BestCheckpointer, ap_name
from focal_det.engine.best_checkpoint import best_of as best_of_both
from focal_det.engine.weight_average import WeightAverage

pytestmark = pytest.mark.detectron2


def names(folder):
    return sorted(path.name for path in folder.glob("*.pth"))


def saver(folder):
    return RunCheckpointer(nn.Linear(2, 1), str(folder), kept=2)


def evaluated(hook, iteration, ap, max_iter=100):
    """What the hook does after an iteration whose evaluation, if any, has given an AP."""
    with EventStorage(iteration) as storage:
        if ap is not None:
            storage.put_scalar("bbox/AP", ap, smoothing_hint=False)
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=max_iter, storage=storage)
        (hook.after_train if iteration >= max_iter else hook.after_step)()


def best_of(folder):
    return torch.load(folder / "model_best.pth", weights_only=True)


def test_the_best_is_written_when_the_ap_rises_and_is_not_what_is_resumed(tmp_path):
    checkpointer = saver(tmp_path)
    hook = BestCheckpointer(checkpointer, "bbox/AP")
    checkpointer.save("model_0000009", iteration=9)
    for iteration, ap in ((9, 10.0), (14, None), (19, 9.0), (29, math.nan)):
        evaluated(hook, iteration, ap)
    assert hook.best == (10.0, 10)  # after ten iterations, the last of which is the ninth from 0
    assert best_of(tmp_path)["best"] == {"AP": 10.0, "iteration": 9}
    with torch.no_grad():
        checkpointer.model.weight.fill_(5.0)
    evaluated(hook, 100, 12.0)  # the one at the end counts too
    assert best_of(tmp_path)["best"] == {"AP": 12.0, "iteration": 99}
    assert best_of(tmp_path)["model"]["weight"].eq(5.0).all()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000009.pth"
    assert names(tmp_path) == ["model_0000009.pth", "model_best.pth"]  # nothing half written


def test_an_ap_of_before_is_not_counted_again(tmp_path):
    hook = BestCheckpointer(saver(tmp_path), "bbox/AP")
    with EventStorage(9) as storage:
        storage.put_scalar("bbox/AP", 10.0, smoothing_hint=False)
        storage.iter = 14
        hook.trainer = SimpleNamespace(iter=14, max_iter=100, storage=storage)
        hook.after_step()
    assert hook.best is None


def test_a_resumed_run_knows_the_best_of_before(tmp_path):
    # the checkpoint that is resumed was written before that evaluation, and cannot know it
    checkpointer = saver(tmp_path)
    checkpointer.save("model_0000009", iteration=9)
    evaluated(BestCheckpointer(checkpointer, "bbox/AP"), 9, 10.0)
    resumed = saver(tmp_path)
    resumed.resume_or_load("", resume=True)
    hook = BestCheckpointer(resumed, "bbox/AP")
    hook.before_train()
    evaluated(hook, 19, 9.0)
    assert hook.best == (10.0, 10)
    assert best_of(tmp_path)["iteration"] == 9


@pytest.mark.parametrize(("content", "is_kept"), [("aa", True), ("bb", False)])
def test_a_best_on_another_test_set_is_put_aside(tmp_path, content, is_kept):
    def record(fingerprint):
        tested_on = UsedSet("val_json", 8, fingerprint)
        return RunRecord({"SOLVER.MAX_ITER": 20}, (), tested_on, ("a",), world_size=1, focal_det="0", torch="0")

    checkpointer = RunCheckpointer(nn.Linear(1, 1), str(tmp_path), record=record("aa"))
    evaluated(BestCheckpointer(checkpointer, "bbox/AP"), 9, 10.0)
    checkpointer.record = record(content)
    hook = BestCheckpointer(checkpointer, "bbox/AP")
    hook.before_train()
    assert hook.best == ((10.0, 10) if is_kept else None)
    assert (tmp_path / "model_best.pth.before1").is_file() != is_kept


def test_a_best_that_cannot_be_read_is_put_aside_and_not_lost(tmp_path):
    (tmp_path / "model_best.pth").write_bytes(b"torn")
    hook = BestCheckpointer(saver(tmp_path), "bbox/AP")
    hook.before_train()
    evaluated(hook, 9, 1.0)
    assert (tmp_path / "model_best.pth.before1").read_bytes() == b"torn"
    assert best_of(tmp_path)["best"]["AP"] == 1.0


@pytest.mark.parametrize(
    "best", [None, torch.ones(3), {"AP": torch.ones(3), "iteration": 1}, {"AP": 1.0, "iteration": math.inf}]
)
def test_a_best_that_does_not_say_its_ap_is_put_aside(tmp_path, best):
    torch.save({"model": {}, "best": best}, tmp_path / "model_best.pth")
    hook = BestCheckpointer(saver(tmp_path), "bbox/AP")
    hook.before_train()
    assert hook.best is None
    assert (tmp_path / "model_best.pth.before1").is_file()


def test_the_best_average_has_a_file_of_its_own_and_the_log_the_better_of_both(tmp_path, lines):
    checkpointer = saver(tmp_path)
    average = WeightAverage(nn.Linear(2, 1), 0.9)
    hooks = [BestCheckpointer(checkpointer, "bbox/AP"), BestCheckpointer(checkpointer, "ema/bbox/AP", average)]
    for hook in hooks:
        hook.trainer = SimpleNamespace(iter=9, max_iter=100, storage=EventStorage(9))
        hook.trainer.storage.put_scalars(**{"bbox/AP": 10.0, "ema/bbox/AP": 12.0}, smoothing_hint=False)
        hook.after_step()
    assert best_of_both(hooks) == (12.0, 10)
    assert lines[-1].startswith("Best AP so far of the EMA 12.00 after 10 iterations: ")
    ema = torch.load(tmp_path / "model_best_ema.pth", weights_only=True)
    assert ema["best"] == {"AP": 12.0, "iteration": 9}
    assert ema["model"]["weight"].equal(average.model.weight)
    assert best_of(tmp_path)["best"]["AP"] == 10.0
    again = BestCheckpointer(checkpointer, "ema/bbox/AP", average)
    again.before_train()
    assert again.best == (12.0, 10)


@pytest.mark.parametrize(("sets", "name"), [(("a",), "bbox/AP"), (("a", "b"), "a/bbox/AP")])
def test_the_ap_of_several_sets_is_that_of_the_first(sets, name):
    cfg = load_config("")
    cfg.DATASETS.TEST = sets
    assert ap_name(cfg) == name


def test_the_ap_is_that_of_the_set_that_the_run_is_recorded_with():
    cfg = load_config("")
    cfg.DATASETS.TEST = ("a", "b")
    tested_on = UsedSet("b", 8, None)
    record = RunRecord({"SOLVER.MAX_ITER": 20}, (), tested_on, ("a",), world_size=1, focal_det="0", torch="0")
    assert ap_name(cfg, record) == "b/bbox/AP"
