"""The linear rule: a schedule for another batch size."""

import pytest
from detectron2.config import get_cfg

from focal_det.config.schedule import scale_schedule

pytestmark = pytest.mark.detectron2


def schedule(batch):
    cfg = get_cfg()
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
