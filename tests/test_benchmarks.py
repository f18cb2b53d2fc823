"""The rows that a GPU is measured by, with something in the place of the measuring: order, limits, failures, counts."""

import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from time_limit import is_running

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    yield gpu
    for name in ("gpu", "measure"):
        sys.modules.pop(name, None)


def measured(script, *options, limit):
    """What a start of network.py prints: something for each of its detectors."""
    detectors = options[options.index("--detector") + 1 : options.index("--mode")]
    if options[options.index("--mode") + 1] == "floor":
        return [{"detector": detectors[0], "infer": 0.5, "train": 1.5, "per_s": 750.0}]
    row = {"s": [0.5, 0.01, 0.01], "peak_gb": 2.0, "first_s": 1.0, "launches": 1600, "waits": 2, "gate": None}
    return [{"detector": name} | row for name in detectors]


def test_every_row_is_measured_or_named_with_the_reason(gpu):
    def run(*command, limit):
        *first, last = measured(*command, limit=limit)
        if last["detector"] == "focal_det fp32":
            return [*first, last]
        return [*first, {"detector": last["detector"], "failed": "OutOfMemoryError: 3 GB"}]

    found = gpu.measure(run, [], (2, 16), budget=60)
    failed = {start[-1] for start in gpu.starts((2, 16)) if start[-1].detector != "focal_det fp32"}
    for row in (row for start in gpu.starts((2, 16)) for row in start):
        reasons = [reason for *left, reason in found["left_out"] if left == list(row)]
        times = sum(all(one[key] == value for key, value in row._asdict().items()) for one in found["rows"])
        assert (reasons, times) == ((["OutOfMemoryError: 3 GB"], 0) if row in failed else ([], 1))
    text = "\n".join(gpu.lines(found, lambda *_: "equal"))
    assert "**step, N=16, 1 shape**" in text
    # the median of three; 16 images of 1.5 TFLOP at 750 TFLOP/s
    assert "| Detectron2 | 10.00 | 32.00 | 1600 | 1.00 | 2.00 | 1600 | 2 | equal | 1.0 |" in text
    assert text.count("left out: ") == len(failed)


def test_the_rows_have_each_speed_option_alone_and_all_together(gpu):
    rows = [row for start in gpu.starts((2, 16, 1)) for row in start]
    assert len(rows) == len(set(rows))
    words = {frozenset(row.detector.split()[1:]) for row in rows if row[1:] == ("train", 2, 6)}
    some = [{"TRITON"}, {"GRAPHS"}, {"COMPILE"}, {"TRITON", "GRAPHS", "COMPILE"}, set()]
    assert {frozenset({"bf16", *one}) for one in some} < words
    assert frozenset({"fp32", "TRITON"}) in words
    for mode, count, shapes in {row[1:] for row in rows} - {("network", 1, 1), ("network", 16, 1)}:
        assert gpu.Row("Detectron2", mode, count, shapes) in rows  # whose results are the gate
    assert {row.images for row in rows if row.mode == "infer"} == {1, 2, 16}


def test_without_time_nothing_is_started_and_what_takes_too_long_is_left_out(gpu):
    def run(*command, limit):
        assert limit <= 20
        return measured(*command, limit=limit)[:1]  # by then the first was done

    found = gpu.measure(run, [], (2,), budget=20)
    starts = gpu.starts((2,))
    assert len({tuple(start) for start in starts}) == len(starts)
    assert len(found["rows"]) == len(starts)
    assert len(found["left_out"]) == sum(len(start) - 1 for start in starts)
    assert {why for *_, why in found["left_out"]} == {"no time was left"}
    nothing = gpu.measure(measured, [], (2,), budget=gpu.RESERVE)
    assert nothing["rows"] == []
    assert "- the floor is left out: no time was left" in gpu.lines(nothing, lambda *_: "")


@pytest.fixture
def speed(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import speed

    monkeypatch.setattr(speed, "HERE", tmp_path)
    yield speed
    for name in ("speed", "gpu", "figures", "report"):
        sys.modules.pop(name, None)


def test_what_is_out_of_time_is_ended_with_its_children_and_what_it_had_printed_counts(speed, tmp_path):
    (tmp_path / "one.py").write_text(
        "import os, time\n"
        'print(\'{"detector": "a"}\', flush=True)\n'
        "print('{\"half\": {}', end='', flush=True)\n"
        "child = os.fork()\n"
        f"open(r'{tmp_path}/pid', 'a').write(f'{{os.getpid()}}\\n')\n"
        "time.sleep(60)\n"
    )
    assert speed.run("one.py", limit=2.0) == [{"detector": "a"}]
    pids = [int(line) for line in (tmp_path / "pid").read_text().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 30  # a busy processor lets one that was killed run until it is its turn
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, pids
        time.sleep(0.01)
    (tmp_path / "two.py").write_text("raise ValueError('no such thing')")
    with pytest.raises(SystemExit, match="no such thing"):
        speed.run("two.py")


def test_parts_that_do_not_fit_are_left_out_and_named(speed, monkeypatch):
    failures = {8: "OutOfMemoryError: 3 GB", 3: "losses: {}, but at most 2e-6 is allowed"}

    def run(script, *options, limit):
        if options[1] in failures:
            raise SystemExit(f"ops.py\nexit code 1\n{failures[options[1]]}\n")
        return [{"losses": {"s": limit}}] if options[1] == 2 else []

    monkeypatch.setattr(speed, "run", run)
    found, left_out = speed.ops([], (2, 8, 16), [], 120.0)
    assert list(found) == ["losses, N=2"]
    assert left_out == ["the parts for 8 images: OutOfMemoryError: 3 GB", "the parts for 16 images: no time was left"]
    with pytest.raises(SystemExit, match="but at most 2e-6 is allowed"):  # what is wrong ends it
        speed.ops([], (2, 3), [], 120.0)
    assert speed.ops([], (2,), [], None) == ({"losses": {"s": None}}, [])


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
