"""What is checked of the detector that a configuration describes: single values, each problem with its fix."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY

from ..modeling.head import NORMS
from ..modeling.normalizer import MODES
from ..registries import DENSE_HEAD_REGISTRY, DENSE_LOSS_REGISTRY
from .config_file import UNSET_NUM_CLASSES
from .loss_keys import constants_of_loss

_DETECTRON2_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
_SAMPLERS = (
    *("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"),
    *("WeightedTrainingSampler", "WeightedCategoryTrainingSampler"),
)
_MOST_CONVS = 100  # more is a slip, on which memory runs out
_SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")


def detector_problems(cfg: CfgNode) -> list[str]:
    """Values of which no detector can be made, whatever it is for."""
    return [*_name_problems(cfg), *_model_problems(cfg), *_loss_problems(cfg)]


def is_device(name: object) -> bool:
    """Whether it names a device that the detector runs on: cuda, cuda:<number> or cpu."""
    return isinstance(name, str) and re.fullmatch(r"cuda(:\d+)?|cpu", name) is not None


def _name_problems(cfg: CfgNode) -> list[str]:
    named: list[tuple[str, str, Any]] = [
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
        ("MODEL.ANCHOR_GENERATOR.NAME", cfg.MODEL.ANCHOR_GENERATOR.NAME, ANCHOR_GENERATOR_REGISTRY),
        ("MODEL.FOCAL_DET.HEAD_NAME", cfg.MODEL.FOCAL_DET.HEAD_NAME, DENSE_HEAD_REGISTRY),
        ("MODEL.FOCAL_DET.LOSS.NAME", cfg.MODEL.FOCAL_DET.LOSS.NAME, DENSE_LOSS_REGISTRY),
        ("MODEL.FOCAL_DET.NORMALIZER", cfg.MODEL.FOCAL_DET.NORMALIZER, dict.fromkeys(MODES)),
        ("MODEL.RETINANET.NORM", cfg.MODEL.RETINANET.NORM, dict.fromkeys(NORMS)),
        # Where a name of Detectron2's own norms is misspelt, it fails late and without the key.
        ("MODEL.RESNETS.NORM", cfg.MODEL.RESNETS.NORM, dict.fromkeys(_DETECTRON2_NORMS)),
        ("MODEL.FPN.NORM", cfg.MODEL.FPN.NORM, dict.fromkeys(_DETECTRON2_NORMS)),
        ("SOLVER.LR_SCHEDULER_NAME", cfg.SOLVER.LR_SCHEDULER_NAME, dict.fromkeys(_SCHEDULERS)),
        ("SOLVER.AMP.DTYPE", cfg.SOLVER.AMP.DTYPE, dict.fromkeys(("float16", "bfloat16"))),
        ("DATALOADER.SAMPLER_TRAIN", cfg.DATALOADER.SAMPLER_TRAIN, dict.fromkeys(_SAMPLERS)),
        ("INPUT.FORMAT", cfg.INPUT.FORMAT, dict.fromkeys(("BGR", "RGB"))),
        ("MODEL.RESNETS.DEPTH", cfg.MODEL.RESNETS.DEPTH, dict.fromkeys((18, 34, 50, 101, 152))),
    ]
    problems = []
    for key, value, allowed in named:
        if value not in allowed:
            names = sorted(str(name) for name in (allowed if isinstance(allowed, dict) else dict(iter(allowed))))
            problems.append(f"{key} is {value!r}; allowed are {', '.join(map(repr, names))}")
    return problems


def _model_problems(cfg: CfgNode) -> list[str]:
    retinanet, extra = cfg.MODEL.RETINANET, cfg.MODEL.FOCAL_DET
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    thresholds = retinanet.IOU_THRESHOLDS
    rules: list[tuple[str, Any, Callable[[Any], Any], str]] = [
        *_size_rules(cfg),
        ("MODEL.DEVICE", cfg.MODEL.DEVICE, is_device, "cuda, cuda:<number> or cpu"),
        ("MODEL.PIXEL_MEAN", cfg.MODEL.PIXEL_MEAN, lambda v: _are_numbers(v, 3), "three numbers, one of each channel"),
        (
            "MODEL.PIXEL_STD",
            cfg.MODEL.PIXEL_STD,
            lambda v: _are_numbers(v, 3) and min(v) > 0,
            "three numbers > 0, one of each channel",
        ),
        ("MODEL.BACKBONE.FREEZE_AT", cfg.MODEL.BACKBONE.FREEZE_AT, lambda v: v >= 0, ">= 0; 0 freezes nothing"),
        ("MODEL.FPN.OUT_CHANNELS", cfg.MODEL.FPN.OUT_CHANNELS, lambda v: v >= 1, ">= 1"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", anchors.SIZES, _are_lists_above_0, "one or more lists of numbers > 0"),
        (
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
            anchors.ASPECT_RATIOS,
            _are_lists_above_0,
            "one or more lists of numbers > 0",
        ),
        ("MODEL.RETINANET.PRIOR_PROB", retinanet.PRIOR_PROB, lambda v: 0 < v < 1, "in (0, 1)"),
        ("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", retinanet.SMOOTH_L1_LOSS_BETA, lambda v: 0 <= v < math.inf, ">= 0"),
        ("MODEL.RETINANET.NUM_CLASSES", retinanet.NUM_CLASSES, lambda v: v >= 1 or v == UNSET_NUM_CLASSES, ">= 1"),
        (
            "MODEL.RETINANET.NUM_CONVS",
            retinanet.NUM_CONVS,
            lambda v: 0 <= v <= _MOST_CONVS,
            f"in 0 to {_MOST_CONVS}",
        ),
        ("MODEL.RETINANET.SCORE_THRESH_TEST", retinanet.SCORE_THRESH_TEST, lambda v: 0 <= v < 1, "in [0, 1)"),
        ("MODEL.RETINANET.NMS_THRESH_TEST", retinanet.NMS_THRESH_TEST, lambda v: 0 <= v <= 1, "in [0, 1]"),
        ("MODEL.RETINANET.TOPK_CANDIDATES_TEST", retinanet.TOPK_CANDIDATES_TEST, lambda v: v >= 1, ">= 1"),
        ("TEST.DETECTIONS_PER_IMAGE", cfg.TEST.DETECTIONS_PER_IMAGE, lambda v: v >= 1, ">= 1"),
        (
            "MODEL.RETINANET.IOU_THRESHOLDS",
            thresholds,
            lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1,
            "[background, object], 0 < background <= object <= 1",
        ),
        (
            "MODEL.RETINANET.BBOX_REG_WEIGHTS",
            retinanet.BBOX_REG_WEIGHTS,
            lambda v: len(v) == 4 and all(w > 0 for w in v),
            "four numbers > 0",
        ),
        ("MODEL.FOCAL_DET.SCALES_PER_OCTAVE", extra.SCALES_PER_OCTAVE, lambda v: v >= 1, "an integer >= 1"),
        ("MODEL.FOCAL_DET.DRAW_IMAGES", extra.DRAW_IMAGES, lambda v: v >= 0, ">= 0"),
        ("MODEL.FOCAL_DET.DRAW_SCORE_THRESH", extra.DRAW_SCORE_THRESH, lambda v: 0 <= v <= 1, "in [0, 1]"),
        ("MODEL.FOCAL_DET.CHECKPOINTS_KEPT", extra.CHECKPOINTS_KEPT, lambda v: v >= 0, ">= 0; 0 keeps all"),
    ]
    problems = [f"{key} is {value}; it must be {needed}" for key, value, holds, needed in rules if not holds(value)]
    if cfg.MODEL.RESNETS.DEPTH in (18, 34) and cfg.MODEL.RESNETS.RES2_OUT_CHANNELS != 64:
        problems.append(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS is {cfg.MODEL.RESNETS.RES2_OUT_CHANNELS}; "
            f"it must be 64 for MODEL.RESNETS.DEPTH {cfg.MODEL.RESNETS.DEPTH}"
        )
    if cfg.TEST.AUG.ENABLED:
        problems.append("TEST.AUG.ENABLED is True, but dense detectors have no test-time augmentation; set it to False")
    return problems


def _size_rules(cfg: CfgNode) -> list[tuple[str, Any, Callable[[Any], Any], str]]:
    """Of the sides that pictures are resized to, in pixels."""
    shorter, of_test = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST
    largest = max(shorter, default=1)
    needed = "the longer side may not be less than the shorter"
    return [
        ("INPUT.MIN_SIZE_TRAIN", shorter, lambda v: v and min(v) > 0, "one or more sizes > 0"),
        (
            "INPUT.MAX_SIZE_TRAIN",
            cfg.INPUT.MAX_SIZE_TRAIN,
            lambda v: v >= max(1, largest),
            f">= INPUT.MIN_SIZE_TRAIN, {largest}: {needed}",
        ),
        ("INPUT.MIN_SIZE_TEST", of_test, lambda v: v >= 0, ">= 0; 0: pictures are not resized"),
        (
            "INPUT.MAX_SIZE_TEST",
            cfg.INPUT.MAX_SIZE_TEST,
            lambda v: v >= max(1, of_test),
            f">= INPUT.MIN_SIZE_TEST, {of_test}, and >= 1: {needed}",
        ),
    ]


def _are_numbers(values: Sequence[float], count: int) -> bool:
    return len(values) == count and all(map(math.isfinite, values))


def _are_lists_above_0(lists: Sequence[Sequence[float]]) -> bool:
    return len(lists) > 0 and all(values and min(values) > 0 and max(values) < math.inf for values in lists)


def _loss_problems(cfg: CfgNode) -> list[str]:
    """What the chosen loss says of its constants."""
    name = cfg.MODEL.FOCAL_DET.LOSS.NAME
    if cfg.MODEL.META_ARCHITECTURE != "FocalRetinaNet" or name not in DENSE_LOSS_REGISTRY:
        return []
    try:
        DENSE_LOSS_REGISTRY.get(name)(cfg)
    except ValueError as error:
        return [f"{name} cannot be made of {' and '.join(constants_of_loss(cfg))}: {error}"]
    return []
