"""Values that cannot work are named with their fix, all at once."""

import re

import pytest

from focal_det.config.validate import check_config

pytestmark = pytest.mark.detectron2

LOSS = "MODEL.FOCAL_DET.LOSS."


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.META_ARCHITECTURE", "FocalRetinaNett"),
        ("MODEL.BACKBONE.NAME", "resnet"),
        ("MODEL.FOCAL_DET.HEAD_NAME", "Head"),
        ("MODEL.FOCAL_DET.LOSS.NAME", "focal"),
        ("MODEL.FOCAL_DET.NORMALIZER", "batch"),
        ("MODEL.FOCAL_DET.SCALES_PER_OCTAVE", "0"),
        ("MODEL.FOCAL_DET.DRAW_IMAGES", "-1"),
        ("MODEL.FOCAL_DET.DRAW_SCORE_THRESH", "1.5"),
        ("MODEL.FOCAL_DET.CHECKPOINTS_KEPT", "-1"),
        ("MODEL.RETINANET.NORM", "GNN"),
        ("MODEL.RESNETS.NORM", "BatchNorm"),
        ("MODEL.FPN.NORM", "GNN"),
        ("MODEL.RESNETS.DEPTH", "20"),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", "256"),
        ("MODEL.RETINANET.BBOX_REG_WEIGHTS", "(1., 1.)"),
        ("MODEL.RETINANET.PRIOR_PROB", "0.0"),
        ("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", "-0.1"),
        ("MODEL.RETINANET.SCORE_THRESH_TEST", "1.0"),
        ("MODEL.RETINANET.NMS_THRESH_TEST", "1.1"),
        ("MODEL.RETINANET.TOPK_CANDIDATES_TEST", "0"),
        ("MODEL.RETINANET.IOU_THRESHOLDS", "[0.5, 0.4]"),
        ("TEST.DETECTIONS_PER_IMAGE", "0"),
        ("INPUT.FORMAT", "GREY"),
        ("INPUT.MIN_SIZE_TRAIN", "()"),
        ("INPUT.MAX_SIZE_TRAIN", "0"),
        ("INPUT.MAX_SIZE_TRAIN", "700"),
        ("INPUT.MIN_SIZE_TEST", "-5"),
        ("INPUT.MAX_SIZE_TEST", "700"),
        ("MODEL.PIXEL_STD", "[0, 1, 1]"),
        ("MODEL.PIXEL_STD", "[1.0, 1.0]"),
        ("MODEL.PIXEL_MEAN", "[100.0]"),
        ("MODEL.BACKBONE.FREEZE_AT", "-1"),
        ("MODEL.FPN.OUT_CHANNELS", "-4"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[]]"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", f"[[{10**400}]]"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0, 0.0]]"),
        ("MODEL.RETINANET.NUM_CONVS", "101"),
        ("DATALOADER.SAMPLER_TRAIN", "Sampler"),
        ("DATALOADER.NUM_WORKERS", "100000"),
        ("SOLVER.GAMMA", "0.0"),
        ("SOLVER.GAMMA", "1.5"),
        ("MODEL.DEVICE", "meta"),
        ("MODEL.DEVICE", "cuda:x"),
        ("MODEL.DEVICE", "gpu"),
        ("MODEL.RETINANET.NUM_CLASSES", "0"),
        ("SOLVER.AMP.DTYPE", "half"),
        ("SOLVER.LR_SCHEDULER_NAME", "Cosine"),
        ("SOLVER.WARMUP_ITERS", "-1"),
        ("SOLVER.CHECKPOINT_PERIOD", "0"),
        ("TEST.AUG.ENABLED", "True"),
        ("SOLVER.IMS_PER_BATCH", "15"),
        ("SOLVER.MAX_ITER", "0"),
        ("SOLVER.STEPS", "(80, 60)"),
        ("SOLVER.BASE_LR", "0.0"),
        ("SOLVER.AMP.ENABLED", "True"),
        ("DATASETS.TRAIN", "()"),
        ("DATASETS.TEST", "()"),
        ("MODEL.WEIGHTS", "nowhere.pth"),
        ("OUTPUT_DIR", "setup.py/output"),
    ],
)
def test_a_value_that_cannot_work_is_named(tiny_cfg, key, value):
    assert check_config(tiny_cfg(), num_processes=2, training=True).errors == []
    found = check_config(tiny_cfg(key, value), num_processes=2, training=True).errors
    assert len(found) == 1
    assert found[0].startswith(f"{key} is ")
    assert re.search(r"must|allowed are|is outside [\[(]|name a|set it|give a|need", found[0])  # the fix


def test_gradients_are_clipped_at_something(tiny_cfg):
    clipped = ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.0"]
    assert check_config(tiny_cfg(*clipped), num_processes=1, training=True).errors == []  # which nothing reads
    cfg = tiny_cfg(*clipped, "SOLVER.CLIP_GRADIENTS.ENABLED", "True")
    (problem,) = check_config(cfg, num_processes=1, training=True).errors
    assert problem == "SOLVER.CLIP_GRADIENTS.CLIP_VALUE is 0.0; it must be > 0"


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("FocalLoss", "MODEL.RETINANET.FOCAL_LOSS_GAMMA", "-1.0"),
        ("FocalLoss", "MODEL.RETINANET.FOCAL_LOSS_GAMMA", "1e39"),
        ("FocalLoss", "MODEL.RETINANET.FOCAL_LOSS_ALPHA", "1.5"),
        ("FocalLoss", "MODEL.RETINANET.FOCAL_LOSS_ALPHA", "0.0"),
        ("FocalLoss", "MODEL.RETINANET.FOCAL_LOSS_ALPHA", "1.0"),
        ("BalancedCrossEntropyLoss", "ALPHA", "0.0"),
        ("BalancedCrossEntropyLoss", "ALPHA", "1.5"),
        ("FocalLossStar", "GAMMA", "0.0"),
        ("FocalLossStar", "BETA", "1e999"),
        ("HingeLoss", "MARGIN", "0.0"),
        ("HingeLoss", "MARGIN", "1.01"),
        ("HingeLoss", "MARGIN", "1" + "0" * 400),
        ("OHEMLoss", "BATCH_SIZE", "0"),
        ("OHEMOneToThreeLoss", "BATCH_SIZE", "3"),
        ("OHEMLoss", "NMS_THRESH", "1.5"),
        ("OHEMOneToThreeLoss", "NMS_THRESH", "-0.1"),
    ],
)
def test_a_loss_constant_that_cannot_work_is_named(tiny_cfg, name, key, value):
    key = key if "." in key else LOSS + key
    chosen = [LOSS + "NAME", name] if name != "FocalLoss" else []
    found = check_config(tiny_cfg(*chosen, key, value), num_processes=1, training=True).errors
    assert len(found) == 1
    assert re.match(rf"{name} cannot be made of .*{key} \S+.*: \w+=\S+ (is outside|must be|has no room)", found[0])


def test_evaluation_needs_weights(tiny_cfg):
    (problem,) = check_config(tiny_cfg(), num_processes=1, training=False).errors
    assert problem.endswith("add MODEL.WEIGHTS <checkpoint>")
