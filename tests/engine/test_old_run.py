"""A run that focal_det 0.1.0 wrote, stopped by a signal, resumes, evaluates, detects and reports under this version.

tests/data/README.md says how it was made. This file uses only what users rely on: the command lines and their messages,
the files in OUTPUT_DIR, and `focal_det.Predictor`. Moving modules changes nothing here.

The run is float32, which processors round differently; hence the tolerances. Measured with AVX2 and SSE4.1 in place of
AVX-512: the AP of `model_best.pth` stays the same to the last digit, scores change by 9e-7, boxes by 2e-5 px. Noise of
1e-5 of each weight changes no AP, noise of 1e-4 changes it by .06. In the resumed run all of these change a loss by at
most 1.2e-4 of its value and the AP not at all; a lost momentum changes the loss at iteration 979 by 8e-3, the AP by .5.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import focal_det

pytestmark = pytest.mark.detectron2

ARCHIVE = Path(__file__).parents[1] / "data" / "run_of_0.1.0.tar.xz"
COMMAND = [
    *("--config-file", "run/data/detector.yaml", "OUTPUT_DIR", "run"),
    *("--train-json", "run/data/train.json", "--train-images", "run/data/images"),
    *("--val-json", "run/data/val.json", "--val-images", "run/data/images"),
]
STOPPED, END = 960, 999  # the last iteration before the signal, and the last of all
AP_TOLERANCE = 0.2  # points
# What 0.1.0 itself wrote when it resumed this run: by iteration, total_loss, num_pos_anchors and lr.
CONTINUED = {979: (0.254511, 10.75, 6e-4), 999: (0.254502, 12.5, 6e-5)}
LAST_AP = 53.034
# 0.1.0 trained on the boxes that Detectron2's mapper rounds when it resizes them; with exact ones the loss is another.
ROUNDING = """
import sys
from detectron2.data import DatasetMapper
from focal_det.cli.train import main
from focal_det.data.image_mapper import ImageMapper

ImageMapper.__call__ = DatasetMapper.__call__
sys.exit(main())
"""


@pytest.fixture
def run(tmp_path):
    """The run's folder; the commands are given in its parent, as they were to 0.1.0."""
    shutil.unpack_archive(ARCHIVE, tmp_path)
    return tmp_path / "run"


def metrics_of(run):
    return [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]


def last_scores(run):
    return [line for line in metrics_of(run) if "bbox/AP" in line][-1]


def saved(path):
    return torch.load(path, weights_only=True)


def test_it_resumes_to_where_the_old_version_would_have_come(train_net, run):
    lines_before = (run / "metrics.json").read_text().splitlines()
    (run.parent / "rounding.py").write_text(ROUNDING)
    done = train_net(*COMMAND, "--resume", program=run.parent / "rounding.py", cwd=run.parent)
    assert done.returncode == 0, done.stderr[-3000:]

    # It knows what it was trained with, and that nothing has changed but versions and the keys that they have.
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    of_versions = re.compile(r"warning: --resume: (focal_det|torch): .+ before, .+ now")
    of_new_keys = [
        f"warning: --resume: {key}: {value} now, a key that the other does not have"
        for key, value in (
            ("DATALOADER.RANDOM_SUBSET_RATIO", "1.0"),
            ("DATASETS.CLASSES", "[]"),
            ("DATASETS.MERGE_CLASSES", "[]"),
            ("DATASETS.SPLIT_VAL", "[]"),
            ("DATASETS.TRAIN_REPEAT_FACTOR", "[]"),
            ("MODEL.FOCAL_DET.ACCUMULATION", "1"),
            ("MODEL.FOCAL_DET.ASSIGNER.NAME", "'IoUAssigner'"),
            ("MODEL.FOCAL_DET.ASSIGNER.TOPK", "9"),
            *((f"MODEL.FOCAL_DET.AUGMENT.{key}", "0.0") for key in ("BRIGHTNESS", "CONTRAST", "LIGHTING")),
            ("MODEL.FOCAL_DET.AUGMENT.NAMES", "[]"),
            ("MODEL.FOCAL_DET.AUGMENT.ROTATION", "0.0"),
            ("MODEL.FOCAL_DET.AUGMENT.SATURATION", "0.0"),
            ("MODEL.FOCAL_DET.AUGMENT.SCALE_JITTER", "[]"),
            ("MODEL.FOCAL_DET.BOX_LOSS.FACTOR", "1.0"),
            ("MODEL.FOCAL_DET.BOX_LOSS.WEIGHTING", "'none'"),
            ("MODEL.FOCAL_DET.EMA.DECAY", "0.0"),
            ("MODEL.FOCAL_DET.PATIENCE", "0"),
            ("MODEL.FOCAL_DET.PATIENCE_METRIC", "''"),
            ("MODEL.FOCAL_DET.PLUGINS", "[]"),
            ("MODEL.FOCAL_DET.SPEED.CUDA_GRAPHS", "False"),
            ("MODEL.FOCAL_DET.SPEED.PAD_TO", "[]"),
            ("MODEL.FOCAL_DET.TILES.OVERLAP", "0.2"),
            ("MODEL.FOCAL_DET.TILES.SIZE", "0"),
            ("MODEL.FOCAL_DET.TRACKERS", "[]"),
            ("MODEL.FOCAL_DET.WEIGHTS_CLASSES", "''"),
        )
    ]
    of_images, *others = [line for line in warnings if not of_versions.fullmatch(line)]
    assert others == of_new_keys
    assert of_images.startswith("warning: 8 of the 8 images of val_json are in train_json too")  # as they are
    assert any("focal_det: 0.1.0, commit 924f219e8f before, " in line for line in warnings)
    assert f"Starting training from iteration {STOPPED + 1}" in done.stdout

    # Each iteration has its line once, those of before as they were; the last is of the evaluation at the end.
    assert (run / "metrics.json").read_text().splitlines()[: len(lines_before)] == lines_before
    metrics = metrics_of(run)
    assert [line["iteration"] for line in metrics] == [0, *range(19, END + 1, 20), END + 1]
    for line in metrics[-3:-1]:
        loss, anchors, lr = CONTINUED[line["iteration"]]
        assert line["total_loss"] == pytest.approx(loss, rel=1e-3)
        assert line["num_pos_anchors"] == anchors
        assert line["lr"] == pytest.approx(lr)
    assert metrics[-1]["bbox/AP"] == pytest.approx(LAST_AP, abs=AP_TOLERANCE)

    # The stopped run's checkpoint was its own, so it has made room; the best one was surpassed.
    assert {path.name for path in run.glob("*.pth*")} == {f"model_{END:07d}.pth", "model_best.pth", "model_final.pth"}
    assert (run / "last_checkpoint").read_text() == "model_final.pth"
    assert saved(run / "model_final.pth")["iteration"] == END
    assert saved(run / "model_best.pth")["best"] == {"AP": pytest.approx(LAST_AP, abs=AP_TOLERANCE), "iteration": END}


def test_its_best_checkpoint_has_the_ap_that_was_recorded(train_net, run):
    recorded = last_scores(run)
    assert saved(run / "model_best.pth")["best"] == {"AP": recorded["bbox/AP"], "iteration": recorded["iteration"]}
    done = train_net(*COMMAND, "--eval-only", "MODEL.WEIGHTS", "run/model_best.pth", cwd=run.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    (ap,) = re.findall(r"copypaste: ([\d.]+),", done.stdout)  # of one evaluation
    assert float(ap) == pytest.approx(recorded["bbox/AP"], abs=AP_TOLERANCE)


def test_a_predictor_of_it_finds_what_was_recorded(run):
    recorded = json.loads((run / "inference" / "val_json" / "coco_instances_results.json").read_text())
    files = {image["id"]: image["file_name"] for image in json.loads((run / "data" / "val.json").read_text())["images"]}
    predictor = focal_det.Predictor.from_run(run)
    assert (predictor.class_names, predictor.category_ids) == (["disk", "box", "triangle"], [3, 5, 9])
    found = {id_: predictor(run / "data" / "images" / name) for id_, name in files.items()}
    clear = [detection for detection in recorded if detection["score"] > 0.3]
    assert len(clear) == 43
    for detection in clear:
        x, y, width, height = detection["bbox"]
        there = found[detection["image_id"]]
        label = predictor.category_ids.index(detection["category_id"])
        same = (there.classes == label) & (np.abs(there.boxes - (x, y, x + width, y + height)).max(axis=1) < 0.01)
        assert there.scores[same] == pytest.approx([detection["score"]], abs=1e-4)


def test_a_report_of_it_has_its_scores(train_net, run):
    done = train_net("report", "run", program="focal-det", cwd=run.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (run / "report.html").read_text()
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    scores = {name: f"{last_scores(run)[f'bbox/{name}']:.1f}" for name in ("AP", "AP50", "AP75")}
    assert "Test set val_json" in text
    assert " ".join(f"{name} {score}" for name, score in scores.items()) in text
    assert "iterations 960 of 1,000" in text
    assert "focal_det 0.1.0, commit 924f219e8f" in text
    assert 'id="missing"' not in page  # every file was there and could be read
    assert re.search(r'alt="detections in \d\d\.png"', page)
