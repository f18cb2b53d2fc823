"""Trackers have every line of metrics.json once, whatever fails meanwhile, and hold up nothing."""

import json
import os
import threading
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventWriter

from focal_det.config.validate import check_config
from focal_det.distributed.graceful_stop import TrainingStopped
from focal_det.errors import InputError
from focal_det.preflight.options import TrainOptions
from focal_det.preflight.plan import check
from focal_det.registries import EVENT_WRITER_REGISTRY
from focal_det.tracking import trackers
from focal_det.tracking.trackers import Tracker, Trackers, check_trackers

pytestmark = pytest.mark.detectron2


def line(iteration, **metrics):
    return json.dumps({**metrics, "iteration": iteration}) + "\n"


@pytest.fixture
def calls(monkeypatch):
    """Register Kept, a tracker that notes what it is called with, and raises as often as `failures` says."""
    noted = SimpleNamespace(calls=[], failures=0, last_failed=threading.Event(), gate=threading.Event())
    noted.gate.set()
    monkeypatch.setattr(trackers, "_PAUSES", (0.01, 0.01))
    monkeypatch.setattr(trackers, "_LAST_SECONDS", 100)  # on a busy machine, too

    class Kept(Tracker):
        def open(self, run_id):
            noted.calls.append(("open", run_id))
            return run_id or "run 1"

        def log(self, iteration, metrics):
            assert noted.gate.wait(100)
            if noted.failures:
                noted.failures -= 1
                if not noted.failures:
                    noted.last_failed.set()
                raise ConnectionError("no answer\nand more")
            noted.calls.append((iteration, metrics))

        def finish(self, end):
            noted.calls.append((end.status, end.best and end.best.name, end.report and end.report.name))

    EVENT_WRITER_REGISTRY.register(Kept)
    return noted


@pytest.fixture
def follow(calls, tmp_path):
    """Follow a run into which the lines are written one by one; return what was noted of it."""

    def run(*written, resumes=False, raises=None, between=lambda: None):
        cfg = SimpleNamespace(OUTPUT_DIR=str(tmp_path))
        calls.calls.clear()
        try:
            with Trackers(cfg, ("Kept",)) as all_trackers:
                all_trackers.start(resumes=resumes)
                for text in written:
                    with (tmp_path / "metrics.json").open("a") as file:
                        file.write(text)
                    all_trackers.write()
                    between()
                if raises:
                    raise raises
        except (RuntimeError, TrainingStopped):
            pass
        return calls.calls

    return run


def test_each_line_is_there_once_and_then_how_the_run_ended(follow, tmp_path):
    for name in ("model_best.pth", "report.html"):
        (tmp_path / name).touch()
    found = follow(line(19, loss=2.0), line(39, loss=float("nan")), line(40, **{"bbox/AP": 3.0}))
    loss = found[2][1].pop("loss")
    assert loss != loss
    end = ("finished", "model_best.pth", "report.html")
    assert found == [("open", None), (19, {"loss": 2.0}), (39, {}), (40, {"bbox/AP": 3.0}), end]
    assert json.loads((tmp_path / "tracker_Kept.json").read_text()) == {"run": "run 1", "iteration": 40}


def test_a_resumed_run_is_the_same_one_and_repeats_nothing(follow, tmp_path):
    assert follow(line(19), line(39), raises=TrainingStopped())[-1] == ("stopped", None, None)
    (tmp_path / "metrics.json").write_text(line(19))  # killed after iteration 39, and resumed from 20
    found = follow(line(39), line(59), resumes=True)
    assert found == [("open", "run 1"), (59, {}), ("finished", None, None)]
    assert follow(line(79))[0] == ("open", None)  # one that is not resumed is another


def test_a_tracker_that_fails_is_warned_of_once_and_gets_the_rest_later(follow, calls, lines):
    calls.failures = 3
    found = follow(line(19), line(39), between=lambda: calls.last_failed.wait(100))
    assert found == [("open", None), (19, {}), (39, {}), ("finished", None, None)]
    of_tracker = [text for text in lines if text.startswith("Kept")]
    assert of_tracker[0].startswith("Kept takes no metrics (ConnectionError: no answer); the training continues")
    assert sum("takes no metrics" in text for text in of_tracker) == 1


def test_what_was_not_sent_by_the_end_is_sent_by_the_next_start(follow, calls, lines):
    calls.failures = 10**6
    follow(line(19), line(39), raises=RuntimeError())
    assert lines[-1] == "Kept does not have all metrics; metrics.json has, and --resume sends what is missing"
    calls.failures = 0
    assert follow(resumes=True) == [("open", "run 1"), (19, {}), (39, {}), ("finished", None, None)]


def test_a_step_never_waits_and_the_end_only_for_some_seconds(follow, calls, lines, monkeypatch):
    monkeypatch.setattr(trackers, "_LAST_SECONDS", 0.05)
    calls.gate.clear()
    assert follow(line(19), line(39)) == [("open", None)]  # else it would not come to its end
    assert lines[-1].startswith("Kept does not have all metrics")
    calls.gate.set()


def test_a_line_without_its_end_waits_for_it(follow):
    assert follow(line(19)[:-1]) == [("open", None), ("finished", None, None)]


def test_an_event_writer_of_one_s_own_is_called_in_the_main_thread_until_it_fails(tmp_path, lines):
    written = []

    class Mine(EventWriter):
        def __init__(self, cfg):
            self.folder = cfg.OUTPUT_DIR

        def write(self):
            written.append((self.folder, threading.current_thread() is threading.main_thread()))
            if len(written) == 2:
                raise ValueError("full")

        def close(self):
            written.append("closed")

    EVENT_WRITER_REGISTRY.register(Mine)
    with Trackers(SimpleNamespace(OUTPUT_DIR=str(tmp_path)), ("Mine",)) as all_trackers:
        all_trackers.start(resumes=False)
        for _ in range(4):
            all_trackers.write()
    assert written == [(str(tmp_path), True)] * 2
    assert lines == ["Mine of MODEL.FOCAL_DET.TRACKERS failed (ValueError: full), and is off; the training continues"]


def test_the_start_asks_trackers_what_they_lack(tmp_path):
    class Paid(Tracker):
        problem = classmethod(lambda cls: "no licence, which is sold next door")

    EVENT_WRITER_REGISTRY.register(Paid)
    overrides = ("MODEL.FOCAL_DET.TRACKERS", "('Paid',)", "OUTPUT_DIR", str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"MODEL.FOCAL_DET.TRACKERS: no licence, which is sold next door"):
        check(TrainOptions(config_file=("focal_det://quickstart.yaml",), overrides=overrides))


def test_what_would_not_work_is_refused_before_the_start(tiny_cfg, monkeypatch, tmp_path):
    cfg = tiny_cfg("MODEL.FOCAL_DET.TRACKERS", "('MLflw', 'MLflow')")
    (problem,) = [p for p in check_config(cfg, num_processes=1, training=True).errors if "TRACKERS" in p]
    assert "it must be different names of MLflow, WandB" in problem
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    cfg = tiny_cfg("MODEL.FOCAL_DET.TRACKERS", "('MLflow',)")
    (problem,) = check_trackers(cfg).errors
    assert "No module named 'mlflow', which this needs; install it with: " in problem
    monkeypatch.undo()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0\n")
    cfg = tiny_cfg("MODEL.FOCAL_DET.TRACKERS", "('WandB',)")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert "WandB has no API key for api.wandb.ai: run `wandb login`" in check_trackers(cfg).errors[0]
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert check_trackers(cfg).errors == []
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert "no API key for wandb.example.org" in check_trackers(cfg).errors[0]
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert check_trackers(cfg).errors == []
