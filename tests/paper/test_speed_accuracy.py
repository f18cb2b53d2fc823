"""Figure 2: which models are timed, and what is drawn of them."""

import csv
import json

import pytest
import torch

from focal_det.config.unused_keys import without_unread_keys
from focal_det.engine.trainer import Trainer
from focal_det.paper import speed_accuracy
from focal_det.paper.cost import image_size
from focal_det.paper.runs import SweepOptions
from focal_det.paper.speed_accuracy import (
    Timing,
    describe_envelope,
    draw_speed_accuracy,
    time_models,
    timings_as_csv,
)
from focal_det.paper.tables import load_tables

pytestmark = pytest.mark.detectron2

ROWS = list(load_tables()["table1e"].rows.values())


def timing(row, ap=None):
    return Timing(row, 50, 600, 800, 50.0, ap, trained=ap is not None)


def test_what_was_not_measured_is_hollow_at_its_published_ap():
    timings = [timing(row, 20.0 if i == 0 else None) for i, row in enumerate(ROWS)]
    squares = [line for line in draw_speed_accuracy(timings, "x", "full").axes[0].lines if line.get_marker() == "s"]
    assert [line.get_fillstyle() for line in squares] == ["full"] + ["none"] * 9
    assert [line.get_ydata()[0] for line in squares][:2] == [20.0, 32.5]
    # a miniature has no published AP to stand in
    squares = [line for line in draw_speed_accuracy(timings, "x", "mini").axes[0].lines if line.get_marker() == "s"]
    assert len(squares) == 1
    lines = list(csv.DictReader(timings_as_csv(timings).splitlines()))
    assert (lines[0]["ap"], lines[1]["ap"], lines[1]["published_ap"]) == ("20.0", "", "32.5")


def test_the_envelope_is_drawn_over_all_detectors_and_said():
    lines = draw_speed_accuracy([timing(row) for row in ROWS], "x", "full").axes[0].lines
    (drawn,) = [line for line in lines if line.get_label().startswith("envelope")]
    assert list(zip(drawn.get_xdata(), drawn.get_ydata(), strict=True))[:3] == [(25, 21.6), (61, 28.0), (64, 30.5)]
    assert "YOLOv2 (25 ms, AP 21.6), SSD321 (61 ms, AP 28.0), R-50-400 (64 ms, AP 30.5)" in describe_envelope()


def test_every_model_is_timed_at_its_scale(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        speed_accuracy,
        "milliseconds",
        lambda cfg, repeats: (
            asked.append((cfg.MODEL.RESNETS.DEPTH, image_size(cfg), cfg.MODEL.RETINANET.NUM_CLASSES)) or 1.0
        ),
    )
    timings = list(time_models(SweepOptions("full", (1,), tmp_path), repeats=3))
    assert [t.row.name for t in timings] == [row.name for row in ROWS]
    assert asked[0] == (50, (400, 533), 80)
    assert asked[-1] == (101, (800, 1067), 80)
    assert all(t.ap is None and not t.trained for t in timings)


def test_a_finished_miniature_is_timed_with_its_weights(tmp_path, tiny_cfg):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TEST", "64", "OUTPUT_DIR", str(tmp_path))
    folder = tmp_path / "runs" / "table1e" / "depth_50_scale_400" / "seed1"
    folder.mkdir(parents=True)
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(without_unread_keys(cfg).dump())
    (folder / "metrics.json").write_text(json.dumps({"iteration": 399, "bbox/AP": 12.5}))
    first = next(time_models(SweepOptions("mini", (1,), tmp_path), repeats=1))
    assert (first.ap, first.trained, first.height, first.width) == (12.5, True, 64, 85)
    assert first.ms > 0
