"""metrics.json is read line by line, whatever a kill or an editor has left of it."""

import math

import pytest

from focal_det.report.metrics import metrics_lines


def test_damaged_lines_are_told_from_others_and_only_numbers_are_kept(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_bytes(
        b'{"iteration": 3, "lr": 0.5, "name": "x", "loss": NaN, "far": 1e300, "odd": Infinity}\n'
        b'{"lr": 1}\n{"iteration": -1}\n{"iteration": NaN}\n{"iteration": 1e999}\n[1]\n\xff\n' + 20000 * b"[" + b"\n"
        b'{"iteration": 4, "lo'
    )
    first, *damaged = metrics_lines(path)
    assert first.iteration == 3
    assert list(first.values) == ["iteration", "lr", "loss"]
    assert math.isnan(first.values["loss"])
    assert first.text.endswith("}\n")
    assert [(line.iteration, line.values) for line in damaged] == [(None, {})] * 8
    assert damaged[-1].text == '{"iteration": 4, "lo'


def test_the_tail_may_begin_within_a_line(tmp_path):
    (tmp_path / "metrics.json").write_text("".join(f'{{"iteration": {i}}}\n' for i in range(10)))
    lines = list(metrics_lines(tmp_path / "metrics.json", tail=25))
    assert [line.iteration for line in lines] == [None, 9]


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(metrics_lines(tmp_path / "metrics.json"))
