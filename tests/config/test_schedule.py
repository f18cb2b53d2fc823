"""The linear rule: a schedule for another batch size; and what of a schedule is likely not meant."""

from pathlib import Path

import pytest
from detectron2.config import get_cfg

from focal_det import add_focal_det_config
from focal_det.config.load import load_config
from focal_det.config.schedule import check_schedule, epoch_warnings, scale_schedule, scale_to_processes

pytestmark = pytest.mark.detectron2

CONFIGS = Path(__file__).parents[2] / "configs"


def schedule(batch):
    cfg = get_cfg()
    add_focal_det_config(cfg)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = batch, 0.01, 90000
    cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.CHECKPOINT_PERIOD = (60000, 80000), 1000, 5000
    cfg.TEST.EVAL_PERIOD = 500
    return cfg


def test_a_quarter_of_the_batch_has_a_quarter_of_the_lr_and_four_times_the_iterations():
    cfg = schedule(4)
    words = scale_schedule(cfg, 16, kept=())
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (0.0025, 360000, (240000, 320000))
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) == (4000, 20000, 2000)
    assert words == (
        "batch 16 -> 4: BASE_LR 0.01 -> 0.0025, STEPS (60000, 80000) -> (240000, 320000), MAX_ITER 90000 -> 360000, "
        "WARMUP_ITERS 1000 -> 4000, CHECKPOINT_PERIOD 5000 -> 20000, EVAL_PERIOD 500 -> 2000"
    )


def test_what_the_user_set_stays():
    cfg = schedule(4)
    scale_schedule(cfg, 16, kept={"SOLVER.MAX_ITER", "TEST.EVAL_PERIOD"})
    assert (cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.BASE_LR) == (90000, 500, 0.0025)


def test_the_same_batch_changes_nothing():
    cfg = schedule(16)
    assert scale_schedule(cfg, 16, kept=()) is None
    assert cfg == schedule(16)


def test_a_schedule_for_two_processes_is_scaled_to_eight_once():
    cfg = schedule(16)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 2
    scaled, found = scale_to_processes(cfg, 8)
    solver = scaled.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, solver.STEPS) == (64, 0.04, 22500, (15000, 20000))
    assert (solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD, scaled.TEST.EVAL_PERIOD) == (250, 1250, 125)
    assert found.notes == [
        "SOLVER.REFERENCE_WORLD_SIZE 2 -> 8 processes: IMS_PER_BATCH 16 -> 64, BASE_LR 0.01 -> 0.04, STEPS "
        "(60000, 80000) -> (15000, 20000), MAX_ITER 90000 -> 22500, WARMUP_ITERS 1000 -> 250, CHECKPOINT_PERIOD "
        "5000 -> 1250, EVAL_PERIOD 500 -> 125"
    ]
    assert (solver.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH) == (8, 16)
    assert scale_to_processes(scaled, 8)[0] is scaled


def test_what_is_done_now_and_then_is_still_done_on_many_processes():
    cfg = schedule(16)
    cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD = 1, 3, 7
    scaled, _ = scale_to_processes(cfg, 128)
    assert (scaled.TEST.EVAL_PERIOD, scaled.SOLVER.CHECKPOINT_PERIOD) == (1, 1)
    cfg.TEST.EVAL_PERIOD = 0
    assert scale_to_processes(cfg, 128)[0].TEST.EVAL_PERIOD == 0


def test_a_batch_that_the_reference_does_not_divide_is_named():
    cfg = schedule(16)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 3
    (problem,) = scale_to_processes(cfg, 8)[1].errors
    assert problem == "SOLVER.REFERENCE_WORLD_SIZE is 3; it must divide SOLVER.IMS_PER_BATCH, 16, or be 0"


@pytest.mark.parametrize(
    ("key", "value"), [("IMS_PER_BATCH", 10**400), ("MAX_ITER", 10**400), ("STEPS", (1.5,)), ("WARMUP_ITERS", 10**300)]
)
def test_what_cannot_be_multiplied_is_left_to_its_own_check(key, value):
    cfg = schedule(8)
    cfg.SOLVER[key] = value
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 2
    assert scale_to_processes(cfg, 8)[0] is cfg
    assert scale_schedule(cfg, 16, kept=()) is None
    assert check_schedule(cfg).errors == []


@pytest.mark.parametrize(
    ("patience", "period", "iterations", "fix"),
    [
        (3, 25, 101, None),  # after 25 the best, after 50, 75 and 100 the patience
        (3, 25, 100, "set TEST.EVAL_PERIOD to 24 or less, or PATIENCE to 2 or less, or PATIENCE to 0"),
        (3, 60, 100, "set TEST.EVAL_PERIOD to 24 or less, or PATIENCE to 0"),
        (200, 60, 100, "set PATIENCE to 0"),
        (0, 60, 100, None),
        (3, 0, 100, None),  # which `check_patience` refuses
    ],
)
def test_an_early_stopping_that_the_evaluations_are_too_few_for_is_refused(patience, period, iterations, fix):
    cfg = schedule(16)
    cfg.MODEL.FOCAL_DET.PATIENCE, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER = patience, period, iterations
    errors = check_schedule(cfg).errors
    assert [error.partition("it never stops; ")[2] for error in errors] == ([fix] if fix else [])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("quickstart.yaml", []),
        ("paper/miniature.yaml", []),
        ("bccd.yaml", []),
        ("retinanet_R_50_FPN_1x.yaml", []),
        ("retinanet_coco_finetune.yaml", []),
        ("retinanet_X_101_32x8d_FPN_1x.yaml", []),
        ("paper/table2.yaml", []),
        ("detectron2_parity.yaml", []),
    ],
)
def test_no_configuration_here_is_warned_of(config, words):
    cfg = load_config(CONFIGS / config, words)
    assert check_schedule(cfg).warnings == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["SOLVER.STEPS", "(90, 100)"], 'the lr never drops at 100; set SOLVER.STEPS to fit, such as "(66, 88)"'),
        (["SOLVER.STEPS", "(10, 40)"], "the last drop of the lr comes before half of SOLVER.MAX_ITER 100"),
        (["SOLVER.WARMUP_ITERS", "100"], "the lr never reaches SOLVER.BASE_LR"),
        (["SOLVER.BASE_LR", "0.05"], "80 times the paper's lr for each image"),  # .05 / 1 to .01 / 16
        (["SOLVER.BASE_LR", "0.05", "MODEL.RESNETS.NORM", "GN"], None),
        (["SOLVER.STEPS", "()"], None),
        (["TEST.EVAL_PERIOD", "1000"], None),
        ([], None),
    ],
)
def test_what_of_the_schedule_is_likely_not_meant(words, said):
    base = ["SOLVER.MAX_ITER", "100", "SOLVER.STEPS", "(60, 80)", "SOLVER.WARMUP_ITERS", "10"]
    base += ["SOLVER.IMS_PER_BATCH", "1", "SOLVER.BASE_LR", "0.0006"]
    found = check_schedule(load_config("", [*base, *words])).warnings
    assert len(found) == (said is not None)
    assert all(said in line for line in found)


def test_a_schedule_for_a_much_larger_set_is_named_with_one_that_fits(tiny_cfg):
    cfg = tiny_cfg("SOLVER.MAX_ITER", "90000", "SOLVER.IMS_PER_BATCH", "16")
    assert epoch_warnings(cfg, 117_266) == []  # COCO
    assert epoch_warnings(cfg, None) == []
    (line,) = epoch_warnings(cfg, 292)
    # 90000 * 16 / 292 epochs; 50 * 292 / 16 iterations.
    assert "SOLVER.MAX_ITER is 90000: 4,932 epochs of 292 images" in line
    assert 'for 50 epochs add SOLVER.MAX_ITER 912 SOLVER.STEPS "(608, 810)" SOLVER.WARMUP_ITERS 91' in line
