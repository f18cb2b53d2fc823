"""A run that is stopped and resumed ends where the uninterrupted one ends, to the last bit, with the same metrics."""

import itertools
import json
import os
import re
import shutil
import signal
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from recorded_graphs import RecordedGraphs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from training_fixtures import NARROW, make_shallow

from focal_det import Predictor
from focal_det.cli.train import parse_arguments
from focal_det.distributed.watchdog import RankWatchdog
from focal_det.engine import early_stopping, run, trainer
from focal_det.engine.early_stopping import Standing
from focal_det.engine.run import run_job
from focal_det.engine.trainer import Trainer
from focal_det.errors import Findings, InputError, TrainingError
from focal_det.modeling.captured import CapturedOrPlain
from focal_det.modeling.retinanet import FocalRetinaNet
from focal_det.preflight import plan as planning
from focal_det.preflight.plan import check, write

pytestmark = pytest.mark.detectron2

# Steps 10 and 14 are those at which the lr drops; an epoch has 10 steps; evaluations and checkpoints meet and part.
SETTINGS = {
    "DATASETS.TRAIN": "shapes_train_20_64px",
    "DATASETS.TEST": "shapes_val_8_64px",
    "INPUT.MIN_SIZE_TRAIN": "(48, 56, 64)",
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.CROP.ENABLED": True,
    "MODEL.DEVICE": "cpu",  # to the last bit; see test_gpu.py for a GPU
    **dict(zip(NARROW[::2], NARROW[1::2], strict=True)),
    "MODEL.FPN.OUT_CHANNELS": 64,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.FOCAL_DET.NORMALIZER": "ema",
    "MODEL.FOCAL_DET.DRAW_IMAGES": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.MAX_ITER": 16,
    "SOLVER.STEPS": "(10, 14)",
    "SOLVER.WARMUP_ITERS": 3,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,  # that there are detections to score
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 20,
    "TEST.EVAL_PERIOD": 6,
    "SEED": 7,
}
# Of the clock, not of the training.
TIMES = {"time", "data_time", "rank_data_time", "eta_seconds"}
# TensorBoard reads files in the order of their names, which count seconds: two starts here may share one.
CLOCK = SimpleNamespace(time=itertools.count(10**9).__next__)


def arguments(folder, *words, **settings):
    """The command line of the run in a folder."""
    keys = [str(word) for pair in {**SETTINGS, **settings}.items() for word in pair]
    return ["--config-file", "configs/quickstart.yaml", *keys, "OUTPUT_DIR", str(folder), *words]


@contextmanager
def surroundings(folder):
    """Generated images in a folder of the tests; metrics every second step; few layers and no page, for time."""
    with pytest.MonkeyPatch.context() as patch:
        make_shallow(patch)
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        patch.setattr(trainer, "WRITE_PERIOD", 2)
        patch.setattr(planning, "check_memory", lambda *_: Findings())
        patch.setattr(run, "write_last_page", lambda folder: None)
        patch.setattr(event_file_writer, "time", CLOCK)
        yield


def send_at(iteration):
    """Let this process send itself SIGUSR1 in a step; return what undoes that."""
    step = Trainer.run_step

    def run_step(self):
        step(self)
        if self.iter == iteration:
            os.kill(os.getpid(), signal.SIGUSR1)

    Trainer.run_step = run_step
    return lambda: setattr(Trainer, "run_step", step)


def note_images(note):
    """Let this process note the ids of each batch that it trains on; return what undoes that."""
    forward = FocalRetinaNet.forward

    def forward_seen(self, batch, *of_part):
        if self.training and "instances" in batch[0] and torch.is_grad_enabled():
            note([image["image_id"] for image in batch])
        return forward(self, batch, *of_part)

    FocalRetinaNet.forward = forward_seen
    return lambda: setattr(FocalRetinaNet, "forward", forward)


def train(words, stop_after=None, seen=None):
    """One start of a run in this process: whether it was stopped by the signal that is sent in step `stop_after`."""
    plan = check(parse_arguments(words))
    write(plan)

    class Stopped:
        is_set = False

        def set(self):
            self.is_set = True

    stopped = Stopped()
    with ExitStack() as stack:
        stack.callback(send_at(stop_after))
        stack.callback(note_images([].append if seen is None else seen.append))
        run_job(plan.job, stopped, RankWatchdog(0))
    return stopped.is_set


def outcome(folder):
    """Weights, momentum and lr at the end; and metrics.json and TensorBoard's points but for the clock."""
    state = torch.load(folder / "model_final.pth", weights_only=True)
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    metrics = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
    metrics = [line for line in metrics if len(line) > 1]
    events = EventAccumulator(str(folder)).Reload()
    names = set(events.Tags()["scalars"]) - TIMES
    points = {name: [(point.step, point.value) for point in events.Scalars(name)] for name in sorted(names)}
    return (state["model"], state["trainer"]["_trainer"]["optimizer"], state["iteration"]), [metrics, points]


def assert_same(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=0)
    assert json.dumps(one[1]) == json.dumps(other[1])  # as text: nan is to equal nan


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run: its images, its outcome and its folder."""
    folder, seen = tmp_path_factory.mktemp("whole"), []
    with surroundings(folder / "datasets"):
        assert not train(arguments(folder / "run"), seen=seen)
    return seen, outcome(folder / "run"), folder / "run"


# In the middle of an epoch and of an lr; right after an lr has dropped; where an evaluation and a checkpoint are due;
# at the end of an epoch.
@pytest.mark.parametrize(("stop_after", "workers"), [(4, 0), (10, 2), (5, 0), (9, 2)])
def test_stopped_and_resumed_is_as_if_it_had_not_been(whole, tmp_path, stop_after, workers):
    words = arguments(tmp_path / "run", **{"DATALOADER.NUM_WORKERS": workers})
    seen = []
    with surroundings(tmp_path / "datasets"):
        assert train(words, stop_after=stop_after, seen=seen)
        assert not train([*words, "--resume"], seen=seen)
    assert seen == whole[0]
    assert_same(outcome(tmp_path / "run"), whole[1])


def fail_at(monkeypatch, iteration, words):
    """A start of the run that a fault ends in a step."""
    step = Trainer.run_step

    def fail(self):
        if self.iter == iteration:
            raise OSError("an image that was there is gone")
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", fail)
        with pytest.raises(TrainingError, match="is gone"):
            train(words)


def test_so_it_is_with_captured_networks_that_capture_anew_after_a_resume(whole, tmp_path, monkeypatch):
    build, captured = Trainer.build_model, []

    def build_captured(cfg):
        model = build(cfg)
        model._runner = CapturedOrPlain(model, model.network)
        model.runner.make_graphs = RecordedGraphs
        captured.append(model.runner)
        return model

    monkeypatch.setattr(Trainer, "build_model", staticmethod(build_captured))
    with surroundings(tmp_path / "datasets"):
        assert train(arguments(tmp_path / "run"), stop_after=8)
        assert not train(arguments(tmp_path / "run", "--resume"))
    assert_same(outcome(tmp_path / "run"), whole[1])
    assert all(one.counts["replayed"] >= 3 for one in captured)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count(" calls of the network ") == len(captured) == 2


def test_so_is_one_that_a_fault_has_ended_in_the_step_after_a_checkpoint(whole, tmp_path, monkeypatch):
    words = arguments(tmp_path / "run", **{"DATALOADER.NUM_WORKERS": 1})
    with surroundings(tmp_path / "datasets"):
        fail_at(monkeypatch, 9, words)
        assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000008.pth"
        assert not train([*words, "--resume"])
    assert_same(outcome(tmp_path / "run"), whole[1])


def test_one_that_a_fault_has_ended_before_its_first_checkpoint_is_not_started_again_by_chance(tmp_path, monkeypatch):
    words = arguments(tmp_path / "run")
    with surroundings(tmp_path / "datasets"):
        fail_at(monkeypatch, 0, words)
        with pytest.raises(InputError, match="holds a run that ended before its first checkpoint"):
            check(parse_arguments(words))


def test_so_it_is_with_batches_in_parts_of_the_same_images(whole, tmp_path):
    settings = {"SOLVER.MAX_ITER": 6, "SOLVER.STEPS": "(4,)", "TEST.EVAL_PERIOD": 0, "MODEL.FOCAL_DET.ACCUMULATION": 2}
    words = {name: arguments(tmp_path / name, **settings) for name in ("once", "twice")}
    seen = {"once": [], "twice": []}
    with surroundings(tmp_path / "datasets"):
        assert not train(words["once"], seen=seen["once"])
        assert train(words["twice"], stop_after=3, seen=seen["twice"])
        assert not train([*words["twice"], "--resume"], seen=seen["twice"])
    assert seen["twice"] == seen["once"] == [[image] for batch in whole[0][:6] for image in batch]
    assert_same(outcome(tmp_path / "twice"), outcome(tmp_path / "once"))


def test_so_it_is_on_tiles_which_predictions_then_have_too(tmp_path):
    settings = {"SOLVER.MAX_ITER": 6, "SOLVER.STEPS": "(4,)", "TEST.EVAL_PERIOD": 0}
    settings["DATASETS.TEST"] = "shapes_val_2_64px"
    words = {name: arguments(tmp_path / name, "--tile", "40", **settings) for name in ("whole", "parts")}
    seen = {"whole": [], "parts": []}
    with surroundings(tmp_path / "datasets"):
        assert not train(words["whole"], seen=seen["whole"])
        assert train(words["parts"], stop_after=3, seen=seen["parts"])
        assert not train([*words["parts"], "--resume"], seen=seen["parts"])
        tiles = Predictor.from_run(tmp_path / "whole").cfg.MODEL.FOCAL_DET.TILES
    assert seen["parts"] == seen["whole"]
    assert_same(outcome(tmp_path / "parts"), outcome(tmp_path / "whole"))
    assert (tiles.SIZE, tiles.OVERLAP) == (40, 0.2)
    with pytest.raises(InputError, match=r"TILES.SIZE: 40 before, 48 now"):
        check(parse_arguments([*words["whole"], "--tile", "48", "--resume"]))


def test_so_it_is_with_two_ranks_of_which_one_is_told_to_stop(start_ranks, tmp_path):
    settings = {"SOLVER.IMS_PER_BATCH": 4, "SOLVER.MAX_ITER": 12, "DATALOADER.NUM_WORKERS": 1, "TEST.EVAL_PERIOD": 5}
    settings["MODEL.FOCAL_DET.TILES.SIZE"] = 48  # which the first rank cuts for both

    def train(folder, *words, stop_after=None):
        """One start of a run by two ranks: their exit codes."""
        plan = check(parse_arguments(arguments(tmp_path / folder, "--num-gpus", "2", *words, **settings)))
        write(plan)
        began = CLOCK.time() + 10**6 * len(words)  # the second start's file of TensorBoard's comes second

        def prepare(rank, ranks):
            CLOCK.time = itertools.count(began).__next__
            if rank == 1:
                send_at(stop_after)
            seen = tmp_path / f"{folder}_seen_by_{rank}"
            note_images(lambda ids: seen.open("a").write(f"{ids}\n"))

        return start_ranks(replace(plan.job, hang_timeout=60), prepare=prepare).codes(120)

    with surroundings(tmp_path / "datasets"):
        assert train("whole") == [0, 0]
        assert train("parts", stop_after=9) == [75, 75]
        assert train("parts", "--resume") == [0, 0]
    for rank in range(2):
        whole, parts = ((tmp_path / f"{folder}_seen_by_{rank}").read_text() for folder in ("whole", "parts"))
        assert whole == parts
        assert whole.count("\n") == 12
    assert_same(outcome(tmp_path / "parts"), outcome(tmp_path / "whole"))


def test_killed_between_its_last_two_checkpoints_it_still_gets_its_final_one(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[2], folder)
    for name in ("model_final.pth", "model_best.pth"):
        (folder / name).unlink()
    (folder / "last_checkpoint").write_text("model_0000014.pth")
    with surroundings(tmp_path / "datasets"):
        assert not train(arguments(folder, "--resume", **{"SOLVER.MAX_ITER": 15}))  # all of which are done
    last, final = (torch.load(folder / f"model_{name}.pth", weights_only=True) for name in ("0000014", "final"))
    torch.testing.assert_close(final["model"], last["model"], rtol=0, atol=0)
    assert final["iteration"] == final["trainer"]["iteration"] == 14
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert json.loads((folder / "metrics.json").read_text().splitlines()[-1])["iteration"] == 15  # the evaluation


AVERAGED = {"MODEL.FOCAL_DET.EMA.DECAY": 0.6}


def average_of(folder, name="model_final.pth"):
    return torch.load(folder / name, weights_only=True)["ema"]


def without_average(metrics_and_points):
    metrics, points = metrics_and_points
    lines = [{name: value for name, value in line.items() if not name.startswith("ema/")} for line in metrics]
    return [lines, {name: values for name, values in points.items() if not name.startswith("ema/")}]


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """The uninterrupted run with an average of its weights: its folder."""
    folder = tmp_path_factory.mktemp("averaged")
    with surroundings(folder / "datasets"):
        assert not train(arguments(folder / "run", **AVERAGED))
    return folder / "run"


def test_a_training_is_the_same_to_the_bit_with_an_average_of_its_weights(whole, averaged):
    state, found = outcome(averaged)
    assert_same((state, without_average(found)), whole[1])
    assert [line["iteration"] for line in found[0] if "ema/val/total_loss" in line] == [5, 11, 16]
    assert len(found[1]["ema/bbox/AP"]) == 3  # in TensorBoard
    assert average_of(averaged)["updates"] == 16


# Between two checkpoints; where an evaluation and a checkpoint are due.
@pytest.mark.parametrize("stop_after", [4, 5])
def test_its_average_is_as_if_it_had_not_been_stopped(averaged, tmp_path, stop_after):
    words = arguments(tmp_path / "run", **AVERAGED)
    with surroundings(tmp_path / "datasets"):
        assert train(words, stop_after=stop_after)
        assert not train([*words, "--resume"])
    assert_same(outcome(tmp_path / "run"), outcome(averaged))
    torch.testing.assert_close(average_of(tmp_path / "run"), average_of(averaged), rtol=0, atol=0)
    for name in ("model_final_ema.pth", "model_best_ema.pth"):
        ours, theirs = (torch.load(folder / name, weights_only=True) for folder in (tmp_path / "run", averaged))
        torch.testing.assert_close(ours["model"], theirs["model"], rtol=0, atol=0)
        assert ours["iteration"] == theirs["iteration"]


def test_an_average_is_begun_or_ended_in_mid_run_only_where_that_is_allowed(tmp_path):
    with surroundings(tmp_path / "datasets"):
        assert train(arguments(tmp_path / "run"), stop_after=4)
        with pytest.raises(InputError, match=r"EMA.DECAY: 0.0 before, 0.6 now"):
            check(parse_arguments(arguments(tmp_path / "run", "--resume", **AVERAGED)))
        words = arguments(tmp_path / "run", "--resume", "--allow-changes", **AVERAGED, **{"SOLVER.MAX_ITER": 8})
        assert not train(words)
        log = (tmp_path / "run" / "log.txt").read_text()
        begun = int(re.search(r"The checkpoint has no EMA: it begins with the weights after (\d+) iterations", log)[1])
        last = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
        assert last["ema"]["updates"] == 1 + 8 - begun
        assert not train(arguments(tmp_path / "run", "--resume", "--allow-changes", **{"SOLVER.MAX_ITER": 9}))
    assert "ema" not in torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)


# A loss that stays what it is: the weights of each step are those of the one before, to the last bit.
STOPPING = {
    "SOLVER.BASE_LR": 1e-30,
    "MODEL.FOCAL_DET.NORMALIZER": "global",
    "MODEL.FOCAL_DET.PATIENCE": 2,
    "MODEL.FOCAL_DET.PATIENCE_METRIC": "val/total_loss",
    "TEST.EVAL_PERIOD": 3,
}


@pytest.fixture(scope="module")
def stopped_early(tmp_path_factory):
    """A run whose validation loss does not fall, ended by that: its folder."""
    folder = tmp_path_factory.mktemp("early")
    with surroundings(folder / "datasets"):
        assert not train(arguments(folder / "run", **STOPPING))
    return folder / "run"


def test_it_stops_early_as_if_that_had_been_its_end(stopped_early):
    (_, _, iteration), (metrics, _) = outcome(stopped_early)
    assert iteration == 8  # 9 of 16: after 3 for the best, after 6 and 9 for the patience
    assert [line["iteration"] for line in metrics if "val/total_loss" in line] == [2, 5, 8]
    assert (stopped_early / "last_checkpoint").read_text() == "model_final.pth"
    log = (stopped_early / "log.txt").read_text()
    assert "stopped early, after 9 iterations: val/total_loss was best after 3 iterations, " in log
    assert "Done: 9 iterations" in log
    assert "iteration 10/16" not in log
    assert log.count("Start inference on") == 3  # that of the end is the one that ended it
    (evaluated,) = (stopped_early / "inference").glob("*/dataset.json")
    assert json.loads(evaluated.read_text())["iterations"] == 9


@pytest.mark.parametrize("stop_after", [4, 8])  # before its evaluation, and in the step after which it stops
def test_killed_and_resumed_it_stops_early_at_the_same_iteration(stopped_early, tmp_path, stop_after):
    words = arguments(tmp_path / "run", **STOPPING)
    with surroundings(tmp_path / "datasets"):
        assert train(words, stop_after=stop_after)
        assert not train([*words, "--resume"])
    assert_same(outcome(tmp_path / "run"), outcome(stopped_early))


def test_so_it_does_if_it_was_killed_before_its_final_checkpoint(stopped_early, tmp_path):
    shutil.copytree(stopped_early, tmp_path / "run")
    (tmp_path / "run" / "model_final.pth").unlink()
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000008.pth")
    with surroundings(tmp_path / "datasets"):
        assert not train(arguments(tmp_path / "run", "--resume", **STOPPING))
    assert_same(outcome(tmp_path / "run"), outcome(stopped_early))


def test_one_that_was_stopped_early_is_evaluated_again_and_trained_on_where_that_is_said(stopped_early, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped_early, folder)
    on = {key: value for key, value in STOPPING.items() if "PATIENCE" not in key} | {"MODEL.FOCAL_DET.PATIENCE": 0}
    with surroundings(tmp_path / "datasets"):
        assert not train(arguments(folder, "--resume", **STOPPING))
        assert "had been stopped early and is evaluated again, after 9 iterations" in (folder / "log.txt").read_text()
        assert outcome(folder)[0][2] == 8
        with pytest.raises(InputError, match=r"PATIENCE: 2 before, 0 now"):
            check(parse_arguments(arguments(folder, "--resume", **on)))
        assert not train(arguments(folder, "--resume", "--allow-changes", **on))
    assert outcome(folder)[0][2] == 15


def test_two_ranks_stop_early_at_once_with_the_same_average(start_ranks, tmp_path):
    settings = {**STOPPING, **AVERAGED, "SOLVER.IMS_PER_BATCH": 4, "SOLVER.BASE_LR": 0.01}
    end = Trainer.after_train

    def prepare(rank, ranks):
        def after_train(self):
            torch.save((self.iter, self.average.state_dict()), tmp_path / f"average{rank}")
            end(self)

        Trainer.after_train = after_train
        early_stopping.standing = lambda evaluations, is_loss: Standing(0.0, 0, len(evaluations))

    with surroundings(tmp_path / "datasets"):
        plan = check(parse_arguments(arguments(tmp_path / "run", "--num-gpus", "2", **settings)))
        write(plan)
        assert start_ranks(replace(plan.job, hang_timeout=60), prepare=prepare).codes(120) == [0, 0]
    (done, first), (other_done, second) = (torch.load(tmp_path / f"average{rank}") for rank in range(2))
    assert done == other_done == 6  # after two evaluations, which only the first rank has measured
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first["updates"] == done
    assert torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["iteration"] == done - 1
