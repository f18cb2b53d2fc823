"""focal-det lr-find: what it writes and says, and what it leaves when it is stopped."""

import json
import math
import os
import signal
import time

import pytest

from focal_det.cli.main import main
from focal_det.engine import lr_range_test
from focal_det.errors import EXIT_INTERRUPTED

pytestmark = pytest.mark.detectron2

KEYS = [
    *("DATASETS.TRAIN", "('shapes_train_8_64px',)", "DATASETS.TEST", "('shapes_val_4_64px',)", "MODEL.DEVICE", "cpu"),
    *("MODEL.FPN.OUT_CHANNELS", "64", "MODEL.RETINANET.NUM_CONVS", "1", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.01", "INPUT.MIN_SIZE_TRAIN", "(32,)"),
]


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    return ["lr-find", "--config-file", "configs/quickstart.yaml", "--out", str(tmp_path / "found"), *KEYS]


def test_it_measures_suggests_and_writes_a_curve(words, tmp_path, capsys):
    assert main([*words, "--iterations", "20", "--from", "1e-4", "--to", "1", "--stop-at", "99"]) == 0
    found = json.loads((tmp_path / "found/lr_range.json").read_text())
    assert found["base_lr"] == 0.01
    assert [step["lr"] for step in found["steps"]][::19] == pytest.approx([1e-4, 1.0])
    assert found["lr"] > 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"done after 20 steps: SOLVER.BASE_LR {found['lr']:.2g}: ")
    assert "The configuration's is 0.01" in last
    written = {path.name for path in (tmp_path / "found").iterdir()}
    assert written == {"lr_range.html", "lr_range.png", "lr_range.svg", "lr_range.json"}
    assert "<svg" in (tmp_path / "found/lr_range.html").read_text()


def test_ctrl_c_leaves_what_was_measured(words, tmp_path, monkeypatch, capsys):
    def range_test(job, lowest, highest, iterations):
        assert (lowest, highest) == pytest.approx((1e-5, 1.0))  # of .01
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # until the thread that listens has it
            yield lr_range_test.Measurement(1e-5, math.inf, 3.0)
            time.sleep(0.01)

    monkeypatch.setattr(lr_range_test, "range_test", range_test)
    assert main(words) == EXIT_INTERRUPTED
    steps = json.loads((tmp_path / "found/lr_range.json").read_text())["steps"]
    assert 1 <= len(steps) < 1000
    assert steps[0] == {"lr": 1e-5, "loss": None, "smoothed": 3.0}  # JSON has no infinity
    assert f"stopped by a signal after {len(steps)} steps: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--resume",), "leave out --resume"),
        (("--eval-only",), "leave out --eval-only"),
        (("--num-gpus", "2"), "lr-find takes one process"),
        (("--iterations", "5"), "--iterations is 5; it must be at least 20"),
        (("--stop-at", "1.0"), "--stop-at is 1; it must be a number above 1"),
        (("--stop-at", "inf"), "--stop-at is inf; it must be a number above 1"),
        (("--stop-at", "nan"), "--stop-at is nan; it must be a number above 1"),
        (("--from", "0"), "--from is 0; it must be a number above 0"),
        (("--from", "-1"), "--from is -1; it must be a number above 0"),
        (("--to", "inf"), "--to is inf; it must be a number above 0"),
        (("--to", "nan"), "--to is nan; it must be a number above 0"),
        (("--from", "1", "--to", "0.1"), "--from 1 --to 0.1: the lr must rise"),
        (("--from", "2"), "--from 2 --to 1: the lr must rise"),
        (("OUTPUT_DIR", "output/mine"), "lr-find writes to --out, and touches no run: leave out OUTPUT_DIR"),
    ],
)
def test_what_it_cannot_do_is_bad_input(words, tmp_path, capsys, flags, message):
    assert main([*words, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "found").exists()
