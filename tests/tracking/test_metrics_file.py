"""The metrics of a resumed run are those of a run that was never interrupted."""

import itertools
import json
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from focal_det.tracking.metrics_file import WINDOW, MetricHistory, MetricsFile, TensorBoardFile

pytestmark = pytest.mark.detectron2


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(file, steps, history):
    """Steps of a training, with a metric that is smoothed and one that is not; a line every tenth."""
    with EventStorage(steps.start) as storage:
        history.recall(storage)
        for iteration in steps:
            storage.iter = iteration
            storage.put_scalar("loss", iteration * 7 % 50)
            storage.put_scalar("lr", iteration, smoothing_hint=False)
            if iteration == 30:
                storage.put_scalar("once", 1.0, smoothing_hint=False)  # not written yet when the run is stopped
            if iteration % 10 == 9:
                file.write()
        return history.state_dict()


def test_medians_continue_over_a_resume(tmp_path):
    run(MetricsFile(tmp_path / "whole.json"), range(60), MetricHistory())
    state = run(MetricsFile(tmp_path / "parts.json"), range(34), MetricHistory())
    assert {len(metric["values"]) for metric in state.values()} == {WINDOW, 1}
    history, file = MetricHistory(), MetricsFile(tmp_path / "parts.json")
    history.load_state_dict(state)
    file.continue_after(33)
    run(file, range(34, 60), history)
    assert lines_of(tmp_path / "parts.json") == lines_of(tmp_path / "whole.json")
    assert lines_of(tmp_path / "parts.json")[3] == {"iteration": 30, "once": 1.0}
    # the median of the newest 20 of 0, 7, 14 ... modulo 50, of iterations 20 to 39
    assert lines_of(tmp_path / "whole.json")[4] == {"iteration": 39, "loss": 23.5, "lr": 39.0}


def test_lines_beyond_the_checkpoint_and_half_a_line_go(tmp_path):
    path = tmp_path / "metrics.json"
    whole = [json.dumps({"iteration": i, "loss": 1.0}) + "\n" for i in (9, 19, 29)]
    path.write_text("".join(whole) + '{"iteration": 39, "lo')
    MetricsFile(path).continue_after(19)
    assert path.read_text() == "".join(whole[:2])
    path.write_text("".join(whole) + "no JSON\n")
    MetricsFile(path).continue_after(99)
    assert path.read_text() == "".join(whole)


def test_tensorboard_has_each_point_once_after_kills(tmp_path, monkeypatch):
    # files are read in the order of their names, which count seconds
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=itertools.count(1000).__next__))

    def points(folder):
        events = EventAccumulator(str(folder)).Reload()
        return {
            name: [(point.step, point.value) for point in events.Scalars(name)] for name in events.Tags()["scalars"]
        }

    run(TensorBoardFile(tmp_path / "whole"), range(60), MetricHistory())
    run(TensorBoardFile(tmp_path / "parts"), range(15), MetricHistory())  # ends before its first checkpoint
    again = TensorBoardFile(tmp_path / "parts")
    again.continue_after(-1)
    state = run(again, range(34), MetricHistory())
    killed = TensorBoardFile(tmp_path / "parts")  # not closed until all is seen
    killed.continue_after(29)  # the last that was written before the checkpoint
    run(killed, range(34, 50), MetricHistory())
    history, file = MetricHistory(), TensorBoardFile(tmp_path / "parts")
    history.load_state_dict(state)
    file.continue_after(29)
    run(file, range(34, 60), history)
    assert points(tmp_path / "parts") == points(tmp_path / "whole")
    assert [step for step, _ in points(tmp_path / "parts")["loss"]] == [9, 19, 29, 39, 49, 59]
    killed.close()


def test_nothing_there_is_nothing_to_cut(tmp_path):
    MetricsFile(tmp_path / "metrics.json").continue_after(5)
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], False),
        ([{"iteration": 5, "loss": 1}], False),  # the evaluation after it may not have been
        ([{"iteration": 5, "bbox/AP": 1}], True),
        ([{"iteration": 4, "bbox/AP": 1}], False),
        ([{"iteration": 6, "loss": 1}], True),
    ],
)
def test_whether_a_step_was_done_to_its_end(tmp_path, lines, expected):
    (tmp_path / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert MetricsFile(tmp_path / "metrics.json").has_beyond(5, "bbox/AP") is expected
