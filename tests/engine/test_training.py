"""A whole run on generated shapes: trained, stopped half way, resumed, evaluated again."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from focal_det.cli.train import parse_arguments
from focal_det.data.catalog import register_datasets
from focal_det.engine.trainer import Trainer
from focal_det.environment import processor
from focal_det.files import FolderLock
from focal_det.preflight.plan import check
from focal_det.report.run_files import environment_facts

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[2]
ITERATIONS, HALF = 24, 12


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of the runs, and the command line of a small one."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {
        "DATASETS.TRAIN": "shapes_train_40_64px",
        "DATASETS.TEST": "shapes_val_8_64px",
        "INPUT.MIN_SIZE_TRAIN": "(64,)",
        "INPUT.MIN_SIZE_TEST": 64,
        "MODEL.FPN.OUT_CHANNELS": 64,
        "MODEL.RETINANET.NUM_CONVS": 1,
        "MODEL.FOCAL_DET.NORMALIZER": "ema",
        "MODEL.FOCAL_DET.DRAW_IMAGES": 3,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.MAX_ITER": ITERATIONS,
        "SOLVER.STEPS": "(16, 20)",
        "SOLVER.WARMUP_ITERS": 5,
        "SOLVER.CHECKPOINT_PERIOD": HALF,
        "DATALOADER.NUM_WORKERS": 2,
        "SEED": 7,
    }
    words = ["--config-file", "configs/quickstart.yaml", *(str(x) for pair in settings.items() for x in pair)]
    return folder, words


def environment(folder):
    return {**os.environ, "DETECTRON2_DATASETS": str(folder / "datasets")}


@pytest.fixture(scope="module")
def run(runs, prepared):
    """Forks a run."""
    folder, base = runs
    return lambda *words: prepared.run(*base, *words, env=environment(folder))


@pytest.fixture(scope="module")
def whole(runs):
    """The uninterrupted run's folder and output; in a true process, from `python train_net.py` to its end."""
    folder, base = runs
    output = folder / "whole"
    command = [sys.executable, "train_net.py", *base, "OUTPUT_DIR", str(output)]
    options = {"cwd": ROOT, "env": environment(folder), "check": False}
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return output, done


def metrics_of(output):
    """Of each line of metrics.json a dict; the evaluation at the end has one of its own, the last."""
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def last_step_of(output):
    return [line for line in metrics_of(output) if "lr" in line][-1]


def final_state(output):
    return torch.load(output / "model_final.pth", weights_only=True)


def ap_of(text):
    """The AP line that evaluation ends with."""
    return [line.split("copypaste: ")[1] for line in text.splitlines() if "copypaste: " in line][-1]


def test_a_run_leaves_what_a_user_looks_for(whole):
    output, done = whole
    names = {path.name for path in output.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "detections.png", "last_checkpoint"} <= names
    page = (output / "report.html").read_text()
    assert "Test set shapes_val_8_64px" in page
    assert f"Of model_final.pth, after {ITERATIONS} iterations." in page
    assert len(list((output / "detections").glob("*.png"))) == 3
    assert last_step_of(output)["iteration"] == ITERATIONS - 1
    assert {"total_loss", "loss_cls", "loss_box_reg", "lr", "eta_seconds", "grad_norm"} <= set(last_step_of(output))
    assert last_step_of(output)["epoch"] == ITERATIONS * 2 / 40  # images of a step, and of the set
    assert {"bbox/AP", "bbox/AP50", "bbox/AP-disk", "val/total_loss"} <= set(metrics_of(output)[-1])
    changes = {change["key"]: change for change in json.loads((output / "config_changes.json").read_text())}
    assert changes["SEED"] == {"key": "SEED", "default": -1, "value": 7, "place": "command line"}
    assert changes["MODEL.RETINANET.NUM_CLASSES"]["place"] == "inferred"
    assert changes["MODEL.META_ARCHITECTURE"]["place"] == "configs/Base-RetinaNet-FPN.yaml"
    environment = (output / "environment.txt").read_text()
    assert environment.startswith("focal_det ")
    assert dict(environment_facts(environment))["hardware"].startswith(processor())
    assert any("num_pos_anchors" in line for line in metrics_of(output))
    assert f"iteration {ITERATIONS}/{ITERATIONS} (epoch 1.20)  eta 0:00:00" in done.stdout
    assert "Speed options in use: FOLD" not in done.stdout  # the quickstart's norm is GN: there is nothing to fold
    assert "| category" in done.stdout  # AP of each class
    assert "Traceback" not in done.stderr


def test_evaluating_the_final_checkpoint_gives_the_ap_that_training_ended_with(run, whole):
    output, trained = whole
    before = (output / "config.yaml").read_text()
    (output / "report.html").unlink()
    done = run("--eval-only", "MODEL.WEIGHTS", output / "model_final.pth", "OUTPUT_DIR", output)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (output / "report.html").exists()  # it is about the training
    assert ap_of(done.stdout) == ap_of(trained.stdout)
    assert json.loads((output / "inference/shapes_val_8_64px/dataset.json").read_text())["weights"] == (
        "../../model_final.pth"
    )
    assert (output / "config.yaml").read_text() == before  # the training's configuration is not written over


def test_evaluating_in_the_folder_of_a_running_training_is_refused(run, whole):
    log = (whole[0] / "log.txt").read_bytes()
    with FolderLock(str(whole[0])):
        done = run("--eval-only", "--resume", "OUTPUT_DIR", whole[0])
    assert done.returncode == 2
    assert "is in use by another training or evaluation" in done.stderr
    assert (whole[0] / "log.txt").read_bytes() == log


def test_stopped_half_way_and_resumed_ends_where_the_whole_run_ends(runs, run, prepared, whole, wait_for):
    folder, base = runs
    output = folder / "stopped"
    process = prepared.popen(*base, "OUTPUT_DIR", output, env=environment(folder), stderr=subprocess.STDOUT)
    wait_for(output / "last_checkpoint", process)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate()
    assert process.returncode == 75, text[-3000:]
    assert "SIGTERM: stopped after iteration" in text
    assert "Run again with --resume" in text
    stopped_at = int((output / "last_checkpoint").read_text().removeprefix("model_").removesuffix(".pth"))
    assert HALF - 1 <= stopped_at < ITERATIONS - 1

    refused = run("OUTPUT_DIR", output)
    assert refused.returncode == 2
    assert "already holds a run" in refused.stderr

    done = run("--resume", "OUTPUT_DIR", output)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Starting training from iteration {stopped_at + 1}" in done.stdout
    expected, resumed = final_state(whole[0]), final_state(output)
    assert resumed["iteration"] == expected["iteration"] == ITERATIONS - 1
    lrs = [
        [group["lr"] for group in state["trainer"]["_trainer"]["optimizer"]["param_groups"]]
        for state in (resumed, expected)
    ]
    assert lrs[0] == lrs[1]
    assert last_step_of(output)["lr"] == last_step_of(whole[0])["lr"] == pytest.approx(0.0001)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(lambda data: data[: len(data) // 2], "cut off"), (lambda data: b"", "it is empty")],
)
def test_a_damaged_checkpoint_is_refused(run, whole, tmp_path, damage, reason):
    data = (whole[0] / "model_final.pth").read_bytes()
    (tmp_path / "model_final.pth").write_bytes(damage(data))
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    weights = tmp_path / "model_final.pth"
    for words, message in (
        (("--resume", "OUTPUT_DIR", tmp_path), reason),
        (("--eval-only", "MODEL.WEIGHTS", weights), "cannot be read as a checkpoint"),
    ):
        done = run(*words)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_weights_of_another_model_are_refused(runs, run, whole):
    words = (
        "MODEL.WEIGHTS",
        whole[0] / "model_final.pth",
        "MODEL.RETINANET.NUM_CONVS",
        2,
        "MODEL.FPN.OUT_CHANNELS",
        32,
    )
    done = run("--eval-only", *words, "OUTPUT_DIR", runs[0] / "none")
    assert done.returncode == 2
    assert "does not fit the configuration's model: " in done.stderr
    assert "weights are missing, such as head.cls_subnet" in done.stderr
    assert "weights have another shape, such as backbone.fpn_lateral3.weight" in done.stderr
    assert not (runs[0] / "none").exists()


def test_resuming_loads_iteration_lr_and_normaliser_as_they_were_saved(runs, whole, monkeypatch):
    folder, base = runs
    output = folder / "half"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
    output.mkdir()
    checkpoint = f"model_{HALF - 1:07d}.pth"
    shutil.copy(whole[0] / checkpoint, output)
    (output / "last_checkpoint").write_text(checkpoint)
    job = check(parse_arguments([*base, "--resume", "OUTPUT_DIR", str(output)])).job
    register_datasets((*job.cfg.DATASETS.TRAIN, *job.cfg.DATASETS.TEST), ())
    trainer = Trainer(job.cfg)
    assert trainer.model.criterion.normalizer.ema == 100
    trainer.resume_or_load(resume=True)
    saved = torch.load(output / checkpoint, weights_only=True)
    assert trainer.start_iter == HALF
    assert trainer.model.criterion.normalizer.ema == saved["model"]["criterion.normalizer.ema"] != 100
    assert trainer.scheduler.last_epoch == HALF
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.01}  # warmed up, before the first drop


def test_a_finished_run_is_evaluated_and_says_so(run, whole):
    before = metrics_of(whole[0])
    done = run("--resume", "OUTPUT_DIR", whole[0])
    assert done.returncode == 0, done.stderr[-3000:]
    after = metrics_of(whole[0])  # the last line, of the evaluation, has come again in its own place
    assert [line["iteration"] for line in after] == [line["iteration"] for line in before]
    assert after[-1]["val/total_loss"] == pytest.approx(before[-1]["val/total_loss"])
    assert "is finished: it has the 24 iterations" in done.stdout
    assert f"Report, to be opened in a browser: {whole[0] / 'report.html'}" in done.stdout
    assert ap_of(done.stdout) == ap_of(whole[1].stdout)


def test_resume_auto_starts_fresh_where_there_is_nothing(runs, run):
    output = runs[0] / "fresh"
    done = run("--resume", "auto", "OUTPUT_DIR", output, "SOLVER.MAX_ITER", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (output / "model_final.pth").is_file()


def test_detectron2s_own_retinanet_trains_from_the_same_command(runs, prepared):
    folder, base = runs
    output, ours = folder / "detectron2", base.index("MODEL.FOCAL_DET.NORMALIZER")  # which its RetinaNet does not read
    words = [*base[:ours], *base[ours + 2 :], "OUTPUT_DIR", output, "SOLVER.MAX_ITER", 2]
    done = prepared.run(*words, "MODEL.META_ARCHITECTURE", "RetinaNet", env=environment(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert last_step_of(output)["iteration"] == 1
