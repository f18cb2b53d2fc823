"""The rows that a GPU is measured by, with something in the place of the measuring: order, limits, failures, counts."""

import sys
import warnings
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    yield gpu
    for name in ("gpu", "measure"):
        sys.modules.pop(name, None)


def measured(*command, limit):
    return {"s": [0.5, 0.01, 0.01], "peak_gb": 2.0, "first_s": 1.0, "launches": 1600, "waits": 2, "gate": None}


def test_every_row_is_measured_or_named_with_the_reason(gpu):
    def run(*command, limit):
        if "torchvision" in command:
            raise SystemExit("a command\nRuntimeError: out of memory\n")
        return measured(*command, limit=limit)

    found = gpu.measure(run, [], (2, 16), budget=60)
    for row in gpu.rows((2, 16)):
        reasons = [reason for *left, reason in found["left_out"] if left == list(row)]
        times = sum(all(one[key] == value for key, value in row._asdict().items()) for one in found["rows"])
        assert len(reasons) + times == 1
        if row.detector == "torchvision":
            assert reasons == ["RuntimeError: out of memory"]
        else:
            assert times == 1
    text = "\n".join(gpu.lines(found, lambda *_: "equal"))
    assert "**step, N=16, 1 shape**" in text
    assert "| Detectron2 | 10.00 | 200 | 1.00 | 2.00 | 1600 | 2 | equal | 1.0 |" in text  # the median of three


def test_without_time_nothing_is_started_and_what_takes_too_long_is_left_out(gpu):
    def run(*command, limit):
        assert limit <= 20
        raise TimeoutError

    found = gpu.measure(run, [], (2,), budget=20)
    assert found["rows"] == []
    assert {"no time was left"} <= {why for *_, why in found["left_out"]}
    assert gpu.measure(measured, [], (2,), budget=gpu.RESERVE)["rows"] == []


def test_waits_are_counted_by_the_warnings_of_pytorch(gpu, monkeypatch):
    import measure

    modes = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step():
        for text in ("called a synchronizing CUDA operation",) * 3 + ("another",):
            if modes == ["warn"]:
                warnings.warn(text, stacklevel=1)

    assert measure.launches_and_waits(step) == {"launches": 0, "waits": 3}
    assert modes == ["warn", "default"]
