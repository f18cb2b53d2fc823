"""Every change of the configuration names the place that made it."""

import pytest

from focal_det.config.diff import config_changes
from focal_det.config.load import read_config

pytestmark = pytest.mark.detectron2


def test_every_change_names_the_place_that_set_it_last(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {BASE_LR: 0.5, MAX_ITER: 7, MOMENTUM: 0.9}\nSEED: 3\n")
    top = tmp_path / "top.yaml"
    top.write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 8}\n")
    cfg, _, places = read_config(top, ["SEED", "4", "MODEL.FOCAL_DET.DRAW_IMAGES", "3"])
    loaded = cfg.clone()
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    cfg.SOLVER.BASE_LR = 0.25  # as --scale-lr does
    assert config_changes(cfg, loaded, places) == (
        ("MODEL.FOCAL_DET.DRAW_IMAGES", 16, 3, "command line"),
        ("MODEL.RETINANET.NUM_CLASSES", 80, 2, "inferred"),
        ("SEED", -1, 4, "command line"),
        ("SOLVER.BASE_LR", 0.001, 0.25, "inferred"),
        ("SOLVER.MAX_ITER", 40000, 8, str(top)),
    )  # the momentum is set to its default, and so is no change
