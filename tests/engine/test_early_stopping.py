"""When a training is over early; `test_resume.py` has whole trainings."""

import json
from types import SimpleNamespace

import pytest

from focal_det.engine.early_stopping import EarlyStopping, StoppedEarly
from focal_det.errors import TrainingError

pytestmark = pytest.mark.detectron2


def evaluated(tiny_cfg, folder, metric, values, *, max_iter=100):
    """The hook after an evaluation every 5 iterations, and what it saved."""
    cfg = tiny_cfg("MODEL.FOCAL_DET.PATIENCE", "2", "TEST.EVAL_PERIOD", "5", "OUTPUT_DIR", str(folder))
    lines = [{"iteration": 5 * n + 4, "bbox/AP": value, "lr": 0.1} for n, value in enumerate(values)]
    lines.append({"iteration": 5 * len(values) + 4, "bbox/AP": 99.0})  # of a later start, not of this one
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    saved = []
    checkpointer = SimpleNamespace(save=lambda name, iteration: saved.append((name, iteration)), resumed=None)
    hook = EarlyStopping(cfg, checkpointer, metric)
    hook.trainer = SimpleNamespace(iter=5 * len(values) - 1, start_iter=0, max_iter=max_iter, cfg=cfg)
    return hook, saved


def test_the_training_is_over_as_after_its_last_iteration(tiny_cfg, tmp_path, lines):
    hook, saved = evaluated(tiny_cfg, tmp_path, "bbox/AP", [10.0, 12.0, 11.0])
    hook.after_step()
    hook, saved = evaluated(tiny_cfg, tmp_path, "bbox/AP", [10.0, 12.0, 11.0, 9.0])
    with pytest.raises(StoppedEarly):
        hook.after_step()
    assert saved == [("model_final", 19)]
    assert (hook.trainer.iter, hook.trainer.max_iter) == (20, 20)
    assert lines[0].startswith(
        "The training is stopped early, after 20 iterations: bbox/AP was best after 10 iterations, 12, and not better "
        "in 2 evaluations since (MODEL.FOCAL_DET.PATIENCE). To train on: "
    )
    assert hook.has_stopped


def test_a_resumed_run_knows_that_it_was_over_where_it_stands(tiny_cfg, tmp_path):
    over, _ = evaluated(tiny_cfg, tmp_path, "bbox/AP", [10.0, 12.0, 11.0, 9.0])
    assert over.is_over()
    for changed in ({"iter": 17}, {"iter": 14}, {"max_iter": 20}):  # no evaluation; before it was over; at its end
        hook, _ = evaluated(tiny_cfg, tmp_path, "bbox/AP", [10.0, 12.0, 11.0, 9.0])
        vars(hook.trainer).update(changed)
        assert not hook.is_over()


def test_where_nothing_was_evaluated_nothing_stops(tiny_cfg, tmp_path):
    for iteration, max_iter in ((17, 100), (19, 20)):  # between two evaluations; before the last, which is to come
        hook, saved = evaluated(tiny_cfg, tmp_path, "bbox/AP", [12.0, 10.0, 11.0, 9.0], max_iter=max_iter)
        hook.trainer.iter = iteration
        hook.after_step()
        assert saved == []


def test_a_metric_that_was_not_measured_is_named_beside_those_that_were(tiny_cfg, tmp_path):
    hook, _ = evaluated(tiny_cfg, tmp_path, "bbox/APx", [10.0])
    with pytest.raises(TrainingError, match=r"'bbox/APx', which the evaluation after 5 iterations did not .* bbox/AP$"):
        hook.after_step()
