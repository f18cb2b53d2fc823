"""Values that cannot work are named with their fix, all at once."""

import math
import re

import pytest
from detectron2.modeling import BACKBONE_REGISTRY

from focal_det.config.layers import leaves, set_value
from focal_det.config.read_when import never_read, unmet_condition
from focal_det.config.validate import check_config

pytestmark = pytest.mark.detectron2

LOSS = "MODEL.FOCAL_DET.LOSS."
FIXED_GAMMA = ("SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR")


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
        ("MODEL.FOCAL_DET.TILES.SIZE", "31"),
        ("MODEL.FOCAL_DET.DRAW_SCORE_THRESH", "1.5"),
        ("MODEL.FOCAL_DET.CHECKPOINTS_KEPT", "-1"),
        ("MODEL.FOCAL_DET.EMA.DECAY", "1.0"),
        ("MODEL.FOCAL_DET.PATIENCE", "-1"),
        ("MODEL.RETINANET.NORM", "GNN"),
        ("MODEL.RESNETS.NORM", "BatchNorm"),
        ("MODEL.FPN.NORM", "GNN"),
        ("MODEL.RESNETS.DEPTH", "20"),
        ("MODEL.FPN.IN_FEATURES", "[]"),
        ("MODEL.RETINANET.IN_FEATURES", "[]"),
        ("MODEL.RESNETS.OUT_FEATURES", "[]"),
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
        ("MODEL.FOCAL_DET.AUGMENT.SCALE_JITTER", "[2.0, 0.5]"),
        ("MODEL.FOCAL_DET.AUGMENT.SCALE_JITTER", "[0.5]"),
        ("MODEL.FOCAL_DET.AUGMENT.SCALE_JITTER", "['x', 2.0]"),
        ("MODEL.FOCAL_DET.AUGMENT.ROTATION", "25"),
        ("MODEL.FOCAL_DET.AUGMENT.BRIGHTNESS", "1.0"),
        ("MODEL.FOCAL_DET.AUGMENT.CONTRAST", "1.0"),
        ("MODEL.FOCAL_DET.AUGMENT.SATURATION", "-0.1"),
        ("MODEL.FOCAL_DET.AUGMENT.LIGHTING", "25.5"),
        ("MODEL.FOCAL_DET.AUGMENT.NAMES", "('Blur',)"),
        ("DATALOADER.SAMPLER_TRAIN", "Sampler"),
        ("DATALOADER.NUM_WORKERS", "100000"),
        ("SOLVER.GAMMA", "0.0"),
        ("SOLVER.GAMMA", "1.5"),
        ("MODEL.DEVICE", "meta"),
        ("MODEL.DEVICE", "cuda:x"),
        ("MODEL.DEVICE", "gpu"),
        ("MODEL.RETINANET.NUM_CLASSES", "0"),
        ("SOLVER.LR_SCHEDULER_NAME", "Cosine"),
        ("SOLVER.WARMUP_ITERS", "-1"),
        ("SOLVER.CHECKPOINT_PERIOD", "0"),
        ("SOLVER.IMS_PER_BATCH", "15"),
        ("MODEL.FOCAL_DET.ACCUMULATION", "0"),
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


@pytest.mark.parametrize(
    ("switch", "chosen", "key", "value", "allowed"),
    [
        ("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.0", "must be > 0"),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "'max'", "are 'norm', 'value'"),
        ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "'half'", "allowed are 'bfloat16', 'float16'"),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", "1.0", "in [0, SOLVER.BASE_LR 0.01]"),
        (
            "INPUT.CROP.ENABLED",
            "True",
            "INPUT.CROP.SIZE",
            "[0.5, 1.5]",
            "relative_range each in (0, 1]",
        ),
        (*FIXED_GAMMA, "SOLVER.NUM_DECAYS", "0", "in [1, 1,000]"),
        (*FIXED_GAMMA, "SOLVER.WARMUP_ITERS", "90000", "below SOLVER.MAX_ITER 90000"),
        ("INPUT.CROP.ENABLED", "True", "INPUT.CROP.SIZE", "[0.5]", "height and width"),
        ("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "()", "one or more whole numbers in [1, 100,000]"),
        ("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(400.5,)", "one or more whole numbers in [1, 100,000]"),
        ("TEST.AUG.ENABLED", "True", "TEST.AUG.MAX_SIZE", "1100", ">= TEST.AUG.MIN_SIZES"),
        ("SOLVER.MOMENTUM", "0", "SOLVER.NESTEROV", "True", "False, since SOLVER.MOMENTUM is 0"),
        ("SOLVER.GAMMA", "0.5", "SOLVER.WEIGHT_DECAY_BIAS", "'x'", "a number in [0, 1], or None"),
        ("INPUT.MIN_SIZE_TRAIN", "(64, 80, 96)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "two ends of a range"),
        ("MODEL.WEIGHTS", __file__, "MODEL.FOCAL_DET.WEIGHTS_CLASSES", "coco", "'' or a registered data set"),
    ],
)
def test_a_value_that_another_key_makes_count_is_named(tiny_cfg, switch, chosen, key, value, allowed):
    (problem,) = check_config(tiny_cfg(switch, chosen, key, value), num_processes=1, training=True).errors
    assert problem.startswith(f"{key} is ")
    assert allowed in problem


@pytest.mark.parametrize(
    ("batch", "processes", "parts", "fits"), [(16, 2, 8, True), (16, 4, 8, False), (6, 1, 4, False)]
)
def test_parts_of_a_batch_are_equal_on_every_process(tiny_cfg, batch, processes, parts, fits):
    cfg = tiny_cfg("SOLVER.IMS_PER_BATCH", str(batch), "MODEL.FOCAL_DET.ACCUMULATION", str(parts))
    problems = check_config(cfg, num_processes=processes, training=True).errors
    words = f"MODEL.FOCAL_DET.ACCUMULATION is {parts}; it must divide SOLVER.IMS_PER_BATCH {batch} into equal parts"
    assert [problem.startswith(words) for problem in problems] == ([] if fits else [True])


def test_statistics_that_are_made_precise_are_of_batches(tiny_cfg):
    precise = ("TEST.PRECISE_BN.ENABLED", "True")
    (problem,) = check_config(tiny_cfg(*precise), num_processes=1, training=True).errors
    assert problem.startswith(
        "TEST.PRECISE_BN.ENABLED is True; it must be False, since the norms of this model, ('GN',"
    )
    assert check_config(tiny_cfg(*precise, "MODEL.FPN.NORM", "BN"), num_processes=1, training=True).errors == []


def test_a_backbone_of_ones_own_may_have_other_depths_and_norms(tiny_cfg, monkeypatch):
    def build_mine(cfg, input_shape):
        pass

    monkeypatch.setattr(BACKBONE_REGISTRY, "_obj_map", {**BACKBONE_REGISTRY._obj_map, "build_mine": build_mine})
    words = ("MODEL.RESNETS.DEPTH", "26", "MODEL.RESNETS.NORM", "IBN", "MODEL.RESNETS.NUM_GROUPS", "5000")
    found = check_config(tiny_cfg(*words), num_processes=1, training=True).errors
    assert [problem.split()[0] for problem in found] == [words[2], words[0], words[4]]
    own = tiny_cfg(*words, "MODEL.BACKBONE.NAME", "build_mine")
    assert check_config(own, num_processes=1, training=True).errors == []


def test_the_boxes_of_other_architectures_are_not_merged(tiny_cfg):
    cfg = tiny_cfg("TEST.AUG.ENABLED", "True", "MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
    (problem,) = check_config(cfg, num_processes=1, training=True).errors
    assert problem.endswith("the boxes of FocalRetinaNet and RetinaNet, by MODEL.RETINANET.NMS_THRESH_TEST")


# What is of no use: beyond all that is meant, no number, below 0, and part of an integer. What works has its reason.
USELESS = {int: [2**70, int(1e300), -(2**70)], float: [1e300, math.inf, math.nan, -1e300]}
WORKS = {
    ("MODEL.ANCHOR_GENERATOR.SIZES", "[[32.5], [64], [128], [256], [512]]"): "a size needs not be whole",
    ("SEED", str(-(2**70))): "negative: random",
    ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "1e+300"): "as good as the largest gradient",
    ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "inf"): "the largest gradient",
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "1e+300"): "clips nothing",
    ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", "-1e+300"): "negative: no alpha",
}
SWITCHES = [
    *("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm", "INPUT.CROP.ENABLED", "True"),
    *("TEST.AUG.ENABLED", "True", "TEST.PRECISE_BN.ENABLED", "True", "MODEL.FPN.NORM", "BN"),
    *("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "256"),
    *("MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, False, False, True]"),
]
# With what each of these keys is read.
READ_WITH = {
    "SOLVER.NUM_DECAYS": ["SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR"],
    "SOLVER.BASE_LR_END": ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"],
    "DATALOADER.RANDOM_SUBSET_RATIO": ["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"],
    **{f"{LOSS}{key}": [LOSS + "NAME", "FocalLossStar"] for key in ("GAMMA", "BETA")},
    **{f"{LOSS}{key}": [LOSS + "NAME", "OHEMLoss"] for key in ("BATCH_SIZE", "NMS_THRESH")},
    LOSS + "ALPHA": [LOSS + "NAME", "BalancedCrossEntropyLoss"],
    LOSS + "MARGIN": [LOSS + "NAME", "HingeLoss"],
    **{f"{LOSS}{key}": [LOSS + "NAME", "AsymmetricLoss"] for key in ("GAMMA_POS", "GAMMA_NEG", "PROB_SHIFT")},
    LOSS + "CB_BETA": [LOSS + "NAME", "ClassBalancedFocalLoss"],
    **{f"{LOSS}{key}": [LOSS + "NAME", "FederatedFocalLoss"] for key in ("FED_NUM_CLASSES", "FED_FREQ_POWER")},
    "MODEL.FOCAL_DET.ASSIGNER.TOPK": ["MODEL.FOCAL_DET.ASSIGNER.NAME", "ATSSAssigner"],
    "MODEL.FOCAL_DET.TILES.OVERLAP": ["MODEL.FOCAL_DET.TILES.SIZE", "64"],
}


def useless_values(default):
    """Values of the kind of a key's default that are of no use; in each place of a list."""
    if isinstance(default, (list, tuple)):
        kinds = [useless_values(element) for element in default[:1]]
        lists = [[value, *default[1:]] for values in kinds for value in values]
        return lists + [[default[0] + 0.5, *default[1:]] for _ in kinds if type(default[0]) is int]
    return USELESS.get(type(default), [])


def test_numbers_of_no_use_are_refused_by_name(tiny_cfg):
    cfg, problems, tried = tiny_cfg(*SWITCHES), [], 0
    assert check_config(cfg, num_processes=1, training=True).errors == []
    for key, default in leaves(cfg):
        if never_read(cfg, key) or key == "VERSION" or not useless_values(default):
            continue
        chosen = tiny_cfg(*SWITCHES, *READ_WITH.get(key, ()))
        assert unmet_condition(chosen, key) is None, key
        for value in useless_values(default):
            set_value(chosen, key, type(default)(value))
            errors = check_config(chosen, num_processes=1, training=True).errors
            named = [error for error in errors if key in error and len(error) < 800]
            tried += 1
            if bool(named) == ((key, str(value)) in WORKS):
                problems.append(f"{key} {str(value)[:40]}: {errors}")
    assert not problems, "\n".join(problems)
    assert tried > 200


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("FocalLoss", "MODEL.RETINANET.FOCAL_LOSS_GAMMA", "-1.0"),
        ("FocalLoss", "MODEL.RETINANET.FOCAL_LOSS_GAMMA", "1e39"),
        ("FocalLoss", "MODEL.RETINANET.FOCAL_LOSS_ALPHA", "1.5"),
        ("BalancedCrossEntropyLoss", "ALPHA", "-0.1"),
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
        ("AsymmetricLoss", "GAMMA_NEG", "-1.0"),
        ("AsymmetricLoss", "PROB_SHIFT", "1.0"),
        ("ClassBalancedFocalLoss", "CB_BETA", "1.0"),
        ("FederatedFocalLoss", "FED_NUM_CLASSES", "0"),
        ("FederatedFocalLoss", "FED_FREQ_POWER", "-0.5"),
    ],
)
def test_a_loss_constant_that_cannot_work_is_named(tiny_cfg, name, key, value):
    key = key if "." in key else LOSS + key
    chosen = [LOSS + "NAME", name] if name != "FocalLoss" else []
    found = check_config(tiny_cfg(*chosen, key, value), num_processes=1, training=True).errors
    assert len(found) == 1
    assert re.match(rf"{name} cannot be built with .*{key} \S+.*: \w+=\S+ (is outside|must be|has no room)", found[0])


def test_evaluation_needs_weights(tiny_cfg):
    (problem,) = check_config(tiny_cfg(), num_processes=1, training=False).errors
    assert problem.endswith("add MODEL.WEIGHTS <checkpoint>")
