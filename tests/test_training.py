"""Training from Python: what the command line does, with a run that comes back and a process that stays as it was."""

import logging
import math
import multiprocessing
import os
import random
import signal
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventWriter
from training_fixtures import TINY

import focal_det
from focal_det import training
from focal_det.cli.train import parse_arguments
from focal_det.engine import run as engine_run
from focal_det.errors import EXIT_STOPPED
from focal_det.registries import DENSE_LOSS_REGISTRY, EVENT_WRITER_REGISTRY

pytestmark = pytest.mark.detectron2
ROOT = Path(__file__).parents[1]
BASE = ROOT / "configs" / "Base-RetinaNet-FPN.yaml"
TRAIN, TEST = ("shapes_train_8_64px",), ("shapes_val_4_64px",)
SMALL = {
    **dict(zip(TINY[::2], TINY[1::2], strict=True)),
    **{"SOLVER.MAX_ITER": 4, "SOLVER.STEPS": (), "SOLVER.WARMUP_ITERS": 0, "SOLVER.IMS_PER_BATCH": 2, "SEED": 3},
    **{"INPUT.MIN_SIZE_TRAIN": (64,), "INPUT.MIN_SIZE_TEST": 64, "DATALOADER.NUM_WORKERS": 0},
    **{"DATASETS.TRAIN": TRAIN, "DATASETS.TEST": TEST, "TEST.EVAL_PERIOD": 2, "MODEL.FOCAL_DET.DRAW_IMAGES": 0},
    **{"MODEL.RETINANET.SCORE_THRESH_TEST": 0.0, "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 20},
}


@pytest.fixture(autouse=True)
def _shapes(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path_factory.getbasetemp() / "shapes"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def no_page(monkeypatch):
    """No page at the end, for time."""
    monkeypatch.setattr(engine_run, "write_last_page", lambda folder: None)


def state():
    """What a training changes in a process that is its own."""
    loggers = [logging.getLogger(name) for name in ("", "detectron2", "focal_det", "fvcore")]
    return {
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "loggers": [(log.level, log.propagate, [*log.handlers]) for log in loggers],
        "sets": (DatasetCatalog.list(), sorted(MetadataCatalog.list())),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "ended threads": threading.excepthook,
        "start method": multiprocessing.get_start_method(allow_none=True),
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32),
        "precision": torch.get_float32_matmul_precision(),
        "warnings": [*warnings.filters],
        "threads": torch.get_num_threads(),
    }


def test_the_run_comes_back_and_the_process_is_as_it_was(tmp_path):
    before = state()
    run = focal_det.train(BASE, output_dir=tmp_path / "run", overrides={**SMALL, "FLOAT32_PRECISION": "high"})
    assert state() == before
    names = ("model_best.pth", "model_final.pth", "report.html")
    assert [run.best, run.final, run.report] == [tmp_path / "run" / name for name in names]
    iterations, losses = run.curve("total_loss")
    assert iterations == [1, 3]
    assert losses[-1] == run.metrics["total_loss"] > 0
    assert max(run.curve("bbox/AP")[1]) == run.AP
    assert run == focal_det.Run(str(tmp_path / "run"))
    found = run.predictor(score_thresh=0.0)(np.zeros((64, 64, 3), np.uint8))
    assert isinstance(found, focal_det.Detections)
    with pytest.raises(focal_det.InputError, match=r"has no metric 'loss'; it has .*total_loss"):
        run.curve("loss")


def test_the_best_model_is_the_better_of_both_files_and_says_its_ap(tmp_path):
    (tmp_path / "config.yaml").touch()
    (tmp_path / "metrics.json").write_text('{"iteration": 1, "first/bbox/AP": 30.0, "second/bbox/AP": 90.0}\n')
    assert (focal_det.Run(tmp_path).best, math.isnan(focal_det.Run(tmp_path).AP)) == (None, True)
    for name, ap in (("model_best.pth", 30.0), ("model_best_ema.pth", 31.0)):
        torch.save({"best": {"AP": ap, "iteration": 1}}, tmp_path / name)
        run = focal_det.Run(tmp_path)
        assert (run.best, run.AP) == (tmp_path / name, ap)


def test_every_problem_is_raised_at_once_and_nothing_is_written(tmp_path, capsys):
    with pytest.raises(focal_det.InputError) as error:
        focal_det.train(
            BASE, train=tmp_path / "none", split_val=2.0, num_gpus=0, output_dir=tmp_path / "run", overrides=SMALL
        )
    text = "\n".join(error.value.problems)
    assert all(part in text for part in (f"{tmp_path / 'none'}", "--num-gpus is 0", "DATASETS.SPLIT_VAL is [2.0, 0]"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(focal_det.InputError, match=r"holds no run, since config.yaml is not there"):
        focal_det.Run(tmp_path)


@pytest.mark.parametrize("batch", [4, "auto", None])
def test_the_arguments_are_the_flags(tmp_path, monkeypatch, batch):
    def launched(options):
        words = ["--config-file", str(BASE), "--tile", "96", "--split-val", "0.2", "SEED", "3"]
        of_flags = [(key, value) for _, key, value in parse_arguments(words).of_flags]
        assert {(key, value) for _, key, value in options.of_flags} == {*of_flags, ("OUTPUT_DIR", str(tmp_path))}
        assert (options.overrides, options.batch) == (("SEED", "3"), batch)
        return EXIT_STOPPED

    monkeypatch.setattr(training, "run_as_launcher", launched)
    with pytest.raises(focal_det.TrainingStopped, match=str(tmp_path)):
        focal_det.train(BASE, tile=96, split_val=0.2, output_dir=tmp_path, batch=batch, overrides={"SEED": 3})


def test_an_argument_and_the_key_that_it_stands_for_are_two_answers(tmp_path):
    with pytest.raises(focal_det.InputError) as error:
        focal_det.train(BASE, batch=4, weights="w.pth", overrides={**SMALL, "OUTPUT_DIR": str(tmp_path / "run")})
    text = "\n".join(error.value.problems)
    assert "--batch 4 and SOLVER.IMS_PER_BATCH 2 both set SOLVER.IMS_PER_BATCH; leave one of them out" in text
    assert "weights w.pth and MODEL.WEIGHTS '' both set MODEL.WEIGHTS" in text


def test_a_second_training_beside_one_is_refused_and_after_it_is_not(tmp_path):
    (tmp_path / "within.py").write_text("import focal_det\nfocal_det.train('second.yaml')\n")
    with pytest.raises(focal_det.InputError, match="a training is already running in this process; wait for it"):
        focal_det.train("first.yaml", plugin=tmp_path / "within.py")
    with pytest.raises(focal_det.InputError, match=r"third\.yaml"):
        focal_det.train("third.yaml")


@pytest.mark.usefixtures("no_page")
def test_a_configuration_and_own_data_train_in_a_thread(tmp_path, write_voc):
    folder = write_voc({f"n{i}": [("cat", 10, 10, 40, 40)] for i in range(4)}, train=["n0", "n1", "n2"], val=["n3"])
    cfg = get_cfg()
    focal_det.add_focal_det_config(cfg)
    cfg.merge_from_file(str(BASE))
    cfg.merge_from_list(TINY[:-2])  # the number of classes follows from the data
    settings = {key: value for key, value in SMALL.items() if not key.startswith(("DATASETS.", "MODEL.RE"))}
    settings |= {"SOLVER.MAX_ITER": 1, "TEST.EVAL_PERIOD": 0}
    results, before = [], state()["signals"]

    def work():
        results.append(
            focal_det.train(
                cfg,
                train=folder,
                val=[folder],
                output_dir=tmp_path / "run",
                overrides=[str(word) for pair in settings.items() for word in pair],
            )
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (run,) = results
    assert state()["signals"] == before
    assert run.predictor().class_names == ["cat"]
    assert not math.isnan(run.metrics["val/total_loss"])


@pytest.mark.usefixtures("no_page")
def test_a_stopped_run_is_saved_and_continued_and_a_fault_is_raised(tmp_path, capfd):
    class StopsOnce(EventWriter):
        def __init__(self, cfg):
            pass

        def write(self):
            os.kill(os.getpid(), signal.SIGTERM)

    EVENT_WRITER_REGISTRY.register(StopsOnce)
    settings, before = {**SMALL, "TEST.EVAL_PERIOD": 1, "MODEL.FOCAL_DET.VAL_LOSS": False}, state()
    stopping = {**settings, "MODEL.FOCAL_DET.TRACKERS": ("StopsOnce",)}
    with pytest.raises(focal_det.TrainingStopped, match=f"resume=True continues {tmp_path / 'run'}"):
        focal_det.train(BASE, output_dir=tmp_path / "run", overrides=stopping)
    assert state() == before
    assert not focal_det.Run(tmp_path / "run").final
    with pytest.raises(focal_det.InputError, match="already holds"):
        focal_det.train(BASE, output_dir=tmp_path / "run", overrides=settings)
    capfd.readouterr()
    run = focal_det.train(BASE, output_dir=tmp_path / "run", overrides=settings, resume=True)
    assert run.curve("total_loss")[0] == [0, 1, 2, 3]
    for said in (capfd.readouterr().out, (tmp_path / "run" / "log.txt").read_text()):
        assert "Starting training from iteration 2" in said

    class Fails(torch.nn.Module):
        def __init__(self, cfg):
            super().__init__()

        def forward(self, logits, labels):
            raise RuntimeError("no loss today")

    DENSE_LOSS_REGISTRY.register(Fails)
    with pytest.raises(focal_det.TrainingError, match="no loss today"):
        focal_det.train(
            BASE, output_dir=tmp_path / "other", overrides={**settings, "MODEL.FOCAL_DET.LOSS.NAME": "Fails"}
        )
    assert state() == before
