"""The end of a training: its closing message and its report, whose faults are not the training's."""

import logging
from types import SimpleNamespace

import pytest

from focal_det.engine import run
from focal_det.engine.run import loss_warning, scores_line

pytestmark = pytest.mark.detectron2


def test_a_fault_is_logged_with_what_to_run(monkeypatch, caplog):
    def fail(output_dir):
        raise RuntimeError("no room")

    monkeypatch.setattr(run, "write_report", fail)
    monkeypatch.setattr(logging.getLogger("focal_det"), "propagate", True)
    assert run.write_last_page("output/own") is None
    assert "RuntimeError: no room" in caplog.text
    assert "focal-det report output/own" in caplog.text


def test_other_processes_write_none(tmp_path, monkeypatch):
    monkeypatch.setattr(run.comm, "is_main_process", lambda: False)
    (tmp_path / "metrics.json").touch()
    assert run.write_last_page(str(tmp_path)) is None
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def cfg(*sets):
    return SimpleNamespace(DATASETS=SimpleNamespace(TEST=sets))


def test_the_scores_of_one_set_and_of_several():
    latest = {"bbox/AP": 71.83, "bbox/AP50": 96.2, "bbox/AP75": 88.4, "lr": 0.1}
    assert scores_line(cfg("val"), latest) == "AP 71.8, AP50 96.2, AP75 88.4 on val"
    assert scores_line(cfg("val"), {"bbox/AP": 2.0, "ema/bbox/AP": 3.0}) == "AP 2.0 on val; AP 3.0 on val of the EMA"
    latest = {"a/bbox/AP": 1.0, "b/bbox/AP": float("nan")}
    assert scores_line(cfg("a", "b"), latest) == "AP 1.0 on a; AP nan on b"
    assert scores_line(cfg("test-dev"), {}) == "not scored"


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([1.5] * 20 + [0.5] * 20, False),
        ([1.0] * 20 + [1.9] * 20, False),
        ([1.0] * 20 + [9.0] * 20, True),
        ([1.0] * 39 + [99.0], False),  # one bad step is no divergence
        ([1.0, 99.0], False),  # too few to tell
    ],
)
def test_a_loss_that_ends_far_above_its_start_is_reported(losses, diverged):
    warning = loss_warning(losses)
    assert (warning is not None) is diverged
    if diverged:
        assert warning.startswith("The loss ended at 9, where it began at 1: the training diverged.")
