"""What the values of keys may be: names to choose from, parts of ours that know a range, ranges of Detectron2's parts.

A range stands once. Where a part of ours knows it, the part is asked, by making it or calling it with the value alone,
and its ValueError is the message. Detectron2's parts take most wrong values in silence, or trip over them late and
without naming the key: their ranges stand here and nowhere else. Their ends are far beyond what is of use, so that a
slip is named before memory, disk or a lifetime is spent on it.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY

from ..assigners.atss import check_topk
from ..assigners.iou import check_iou_thresholds
from ..data.catalog import known_classes
from ..defaults import check_overlap, check_tile
from ..losses.box import check_beta
from ..modeling.anchors import cell_anchors
from ..modeling.box_coding import check_box_weights
from ..modeling.criterion import BOX_LOSSES, BOX_WEIGHTINGS, check_box_factor
from ..modeling.decode import check_decoding
from ..modeling.head import NORMS, logit_of
from ..modeling.normalizer import MODES
from ..registries import (
    ASSIGNER_REGISTRY,
    AUGMENTATION_REGISTRY,
    DENSE_HEAD_REGISTRY,
    DENSE_LOSS_REGISTRY,
    EVENT_WRITER_REGISTRY,
)
from .load import UNSET_NUM_CLASSES
from .read_when import BATCH_NORMS, FPN_BACKBONES, SAMPLERS, norms_of

_DETECTRON2_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
# Key, and what it may be: a registry's names, or these.
CHOICES: tuple[tuple[str, Any], ...] = (
    ("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY),
    ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY),
    ("MODEL.ANCHOR_GENERATOR.NAME", ANCHOR_GENERATOR_REGISTRY),
    ("MODEL.FOCAL_DET.HEAD_NAME", DENSE_HEAD_REGISTRY),
    ("MODEL.FOCAL_DET.LOSS.NAME", DENSE_LOSS_REGISTRY),
    ("MODEL.FOCAL_DET.ASSIGNER.NAME", ASSIGNER_REGISTRY),
    ("MODEL.FOCAL_DET.BOX_LOSS.WEIGHTING", BOX_WEIGHTINGS),
    ("MODEL.FOCAL_DET.NORMALIZER", MODES),
    ("MODEL.RETINANET.NORM", NORMS),
    ("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", BOX_LOSSES),
    ("MODEL.RESNETS.NORM", _DETECTRON2_NORMS),
    ("MODEL.RESNETS.DEPTH", (18, 34, 50, 101, 152)),
    ("MODEL.RESNETS.RES5_DILATION", (1, 2)),
    ("MODEL.FPN.NORM", _DETECTRON2_NORMS),
    ("MODEL.FPN.FUSE_TYPE", ("sum", "avg")),
    ("SOLVER.LR_SCHEDULER_NAME", ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")),
    ("SOLVER.WARMUP_METHOD", ("linear", "constant")),
    ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", ("value", "norm")),
    ("SOLVER.AMP.DTYPE", ("float16", "bfloat16")),
    ("DATALOADER.SAMPLER_TRAIN", SAMPLERS),
    ("INPUT.FORMAT", ("BGR", "RGB")),
    ("INPUT.RANDOM_FLIP", ("horizontal", "vertical", "none")),
    ("INPUT.MIN_SIZE_TRAIN_SAMPLING", ("choice", "range")),
    ("INPUT.CROP.TYPE", ("relative_range", "relative", "absolute", "absolute_range")),
    ("FLOAT32_PRECISION", ("", "highest", "high", "medium")),
)


def _some(values: Sequence[Any]) -> Sequence[Any]:
    if not values:
        raise ValueError("an empty list, where one or more values are needed")
    return values


def _decoding(**option: float) -> None:
    defaults = {"score_thresh": 0.5, "topk_per_level": 1, "nms_thresh": 0.5, "max_detections": 1}
    check_decoding(**{**defaults, **option}, box_weights=(1, 1, 1, 1))  # type: ignore[arg-type]


# Key, and the part of ours that is asked.
PARTS: tuple[tuple[str, Callable[[Any], object]], ...] = (
    ("MODEL.ANCHOR_GENERATOR.SIZES", lambda v: [cell_anchors(x, 1, [1.0]) for level in _some(v) for x in _some(level)]),
    ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", lambda v: [cell_anchors(1.0, 1, ratios) for ratios in _some(v)]),
    ("MODEL.FOCAL_DET.SCALES_PER_OCTAVE", lambda v: cell_anchors(1.0, v, [1.0])),
    ("MODEL.RETINANET.PRIOR_PROB", logit_of),
    ("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", check_beta),
    ("MODEL.RETINANET.BBOX_REG_WEIGHTS", check_box_weights),
    ("MODEL.RETINANET.IOU_THRESHOLDS", check_iou_thresholds),
    ("MODEL.FOCAL_DET.ASSIGNER.TOPK", check_topk),
    ("MODEL.FOCAL_DET.BOX_LOSS.FACTOR", check_box_factor),
    ("MODEL.RETINANET.SCORE_THRESH_TEST", lambda v: _decoding(score_thresh=v)),
    ("MODEL.RETINANET.NMS_THRESH_TEST", lambda v: _decoding(nms_thresh=v)),
    ("MODEL.RETINANET.TOPK_CANDIDATES_TEST", lambda v: _decoding(topk_per_level=v)),
    ("TEST.DETECTIONS_PER_IMAGE", lambda v: _decoding(max_detections=v)),
    ("MODEL.FOCAL_DET.TILES.SIZE", check_tile),
    ("MODEL.FOCAL_DET.TILES.OVERLAP", check_overlap),
)


def is_device(name: object) -> bool:
    """Tell whether it names a device that the detector runs on: cuda, cuda:<number> or cpu."""
    return isinstance(name, str) and re.fullmatch(r"cuda(:\d+)?|cpu", name) is not None


_Range = tuple[Callable[[Any], bool], str]
Rule = tuple[str, Callable[[Any], Any], str]  # key, whether a value is possible, and what it must be


def _in(low: float, high: float, ends: str = "[]", note: str = "") -> _Range:
    """Return a range, which nan is never in, and how it is written; the ends are closed, or open as in "(]"."""

    def holds(value: Any) -> bool:
        above = low < value if ends[0] == "(" else low <= value
        return bool(above and (value < high if ends[1] == ")" else value <= high))

    return holds, f"in {ends[0]}{low:,}, {high:,}{ends[1]}{note}"


def _each(of_one: _Range, what: str, *, whole: bool = False, count: int | None = None) -> _Range:
    """Return the range of a list whose elements are in that of one; the list is not empty."""

    def holds(values: Any) -> bool:
        fits = len(values) == count if count is not None else bool(values)
        return fits and all(of_one[0](value) and (not whole or value == int(value)) for value in values)

    return holds, f"{what} {of_one[1]}"


_SIDE = _in(1, 100_000)  # pixels
_CHANNELS = _in(1, 4_096)
_ITERATIONS = 10**9
_MOST = _in(0, _ITERATIONS)
_FACTOR = _in(0, 1_000, "(]")
_AUGMENT = "MODEL.FOCAL_DET.AUGMENT."
_FIXED_GAMMA = "WarmupStepWithFixedGammaLR"
_CHANNEL = "three numbers, one for each channel,"

DETECTOR_RULES: tuple[Rule, ...] = (
    ("INPUT.MIN_SIZE_TRAIN", *_each(_SIDE, "one or more whole numbers", whole=True)),
    ("INPUT.MIN_SIZE_TEST", *_in(0, 100_000, note="; 0: images are not resized")),
    ("MODEL.DEVICE", is_device, "cuda, cuda:<number> or cpu"),
    ("MODEL.PIXEL_MEAN", *_each(_in(-(10**6), 10**6), _CHANNEL, count=3)),
    ("MODEL.PIXEL_STD", *_each(_in(0, 10**6, "(]"), _CHANNEL, count=3)),
    ("MODEL.BACKBONE.FREEZE_AT", *_in(0, 5, note="; 0 freezes nothing")),
    ("MODEL.FPN.OUT_CHANNELS", *_CHANNELS),
    ("MODEL.RESNETS.NUM_GROUPS", *_CHANNELS),
    ("MODEL.RESNETS.WIDTH_PER_GROUP", *_CHANNELS),
    ("MODEL.RESNETS.RES2_OUT_CHANNELS", *_CHANNELS),
    ("MODEL.RESNETS.STEM_OUT_CHANNELS", *_CHANNELS),
    ("MODEL.RESNETS.DEFORM_NUM_GROUPS", *_CHANNELS),
    ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", lambda v: len(v) == 4, "four of True and False, for res2 to res5"),
    ("MODEL.ANCHOR_GENERATOR.OFFSET", *_in(0, 1, "[)")),
    ("MODEL.RETINANET.NUM_CLASSES", lambda v: v == UNSET_NUM_CLASSES or 1 <= v <= 100_000, "in [1, 100,000]"),
    ("MODEL.RETINANET.NUM_CONVS", *_in(0, 100)),
    ("MODEL.FOCAL_DET.DRAW_IMAGES", *_MOST),
    ("MODEL.FOCAL_DET.DRAW_SCORE_THRESH", *_in(0, 1)),
    ("MODEL.FOCAL_DET.CHECKPOINTS_KEPT", *_in(0, _ITERATIONS, note="; 0 keeps all")),
    ("TEST.AUG.MIN_SIZES", *_each(_SIDE, "one or more whole numbers", whole=True)),
)
TRAINING_RULES: tuple[Rule, ...] = (
    ("SOLVER.MAX_ITER", *_in(1, _ITERATIONS)),
    (
        "SOLVER.STEPS",
        lambda v: list(v) == sorted(set(v)) and all(x == int(x) and 0 < x <= _ITERATIONS for x in map(_finite, v)),
        f"whole iterations > 0 that rise, up to {_ITERATIONS:,}",
    ),
    ("MODEL.FOCAL_DET.ACCUMULATION", *_in(1, 2**16)),
    ("SOLVER.WARMUP_ITERS", *_MOST),
    ("SOLVER.WARMUP_FACTOR", *_in(0, 1)),
    ("SOLVER.CHECKPOINT_PERIOD", *_in(1, _ITERATIONS)),
    ("MODEL.FOCAL_DET.EMA.DECAY", *_in(0, 1, "[)", note="; 0: no EMA")),
    ("MODEL.FOCAL_DET.PATIENCE", *_in(0, _ITERATIONS, note="; 0: no early stopping")),
    ("SOLVER.BASE_LR", *_FACTOR),
    ("SOLVER.BIAS_LR_FACTOR", *_in(0, 1_000)),
    ("SOLVER.GAMMA", *_in(0, 1, "(]", ", what a step leaves of the learning rate")),
    ("SOLVER.NUM_DECAYS", *_in(1, 1_000)),
    ("SOLVER.MOMENTUM", *_in(0, 1, "[)")),
    ("SOLVER.WEIGHT_DECAY", *_in(0, 1)),
    ("SOLVER.WEIGHT_DECAY_NORM", *_in(0, 1)),
    (
        "SOLVER.WEIGHT_DECAY_BIAS",
        lambda v: v is None or (isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 1),
        "a number in [0, 1], or None for SOLVER.WEIGHT_DECAY",
    ),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", lambda v: 0 < v < math.inf, "> 0"),
    ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", lambda v: v > 0, "> 0; inf is the largest gradient"),
    ("SOLVER.REFERENCE_WORLD_SIZE", *_in(0, 10**6, note="; 0 scales nothing")),
    ("DATALOADER.NUM_WORKERS", *_in(0, 256)),
    ("DATALOADER.REPEAT_THRESHOLD", *_in(0, 1, note=", a share of the images")),
    ("DATALOADER.RANDOM_SUBSET_RATIO", *_in(0, 1, "(]")),
    (
        _AUGMENT + "SCALE_JITTER",
        lambda v: v == [] or (all(type(x) in (int, float) for x in v) and len(v) == 2 and 0.1 <= v[0] <= v[1] <= 10),
        "two factors in [0.1, 10], the lower one first, such as [0.5, 2.0], or [] for none",
    ),
    (
        "MODEL.FOCAL_DET.WEIGHTS_CLASSES",
        lambda v: not v or known_classes(v) is not None,
        "'' or a registered data set whose classes are known, such as coco_2017_train",
    ),
    (_AUGMENT + "ROTATION", *_in(0, 20, note=" degrees, since boxes around turned boxes get loose")),
    *((_AUGMENT + key, *_in(0, 1, "[)")) for key in ("BRIGHTNESS", "CONTRAST", "SATURATION")),
    (_AUGMENT + "LIGHTING", *_in(0, 1)),
    ("TEST.EVAL_PERIOD", *_in(0, _ITERATIONS, note="; 0: only at the end")),
    ("TEST.PRECISE_BN.NUM_ITER", *_in(1, 1_000_000)),
    ("VIS_PERIOD", *_in(0, _ITERATIONS, note="; 0: only at the end")),
    ("SEED", lambda v: v < 2**32, "below 2^32 (negative: random)"),
    ("DATASETS.TRAIN", bool, "at least one data set; or use --train"),
)


def _finite(value: float) -> float:
    return value if -math.inf < value < math.inf else -1  # also for nan


def detector_rules(cfg: CfgNode) -> list[Rule]:
    """Return the rules for building a detector, with those by which one key bounds another."""
    train, test = max(cfg.INPUT.MIN_SIZE_TRAIN, default=1), cfg.INPUT.MIN_SIZE_TEST
    depth, sizes = cfg.MODEL.RESNETS.DEPTH, cfg.TEST.AUG.MIN_SIZES
    is_basic = depth in (18, 34)  # whose blocks have no bottleneck
    why = "the longer side may not be less than the shorter"

    def longest(least: float) -> Callable[[Any], bool]:
        return lambda value: max(1, least) <= value <= sys.maxsize

    def are_levels(key: str) -> Rule:
        is_possible = lambda v: bool(v) and all(isinstance(name, str) for name in v)  # noqa: E731
        return (key, is_possible, "one or more names of feature maps, such as ['res3', 'res4']")

    has_pyramid = cfg.MODEL.BACKBONE.NAME in FPN_BACKBONES
    bands = len(cfg.MODEL.RETINANET.IOU_THRESHOLDS) + 1
    return [
        *DETECTOR_RULES,
        are_levels("MODEL.RETINANET.IN_FEATURES"),
        are_levels("MODEL.RESNETS.OUT_FEATURES"),
        *([are_levels("MODEL.FPN.IN_FEATURES")] if has_pyramid else []),
        (
            "MODEL.RETINANET.IOU_LABELS",
            lambda v: len(v) == bands and all(label in (-1, 0, 1) for label in v),
            f"-1, 0 or 1 for each of the {bands} bands of MODEL.RETINANET.IOU_THRESHOLDS",
        ),
        ("INPUT.MAX_SIZE_TRAIN", longest(train), f">= INPUT.MIN_SIZE_TRAIN, {train}, and below 2^63: {why}"),
        ("INPUT.MAX_SIZE_TEST", longest(test), f">= INPUT.MIN_SIZE_TEST, {test}, >= 1 and below 2^63: {why}"),
        ("TEST.AUG.MAX_SIZE", longest(max(sizes, default=1)), f">= TEST.AUG.MIN_SIZES {sizes}, and below 2^63: {why}"),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", lambda v: v == 64 or not is_basic, f"64 for MODEL.RESNETS.DEPTH {depth}"),
    ]


def training_rules(cfg: CfgNode) -> list[Rule]:
    """Return the rules for a training, with those by which one key bounds another."""
    solver, crop, sizes = cfg.SOLVER, cfg.INPUT.CROP.TYPE, cfg.INPUT.MIN_SIZE_TRAIN
    part = _SIDE if crop.startswith("absolute") else _in(0, 1, "(]")
    norms, own = norms_of(cfg), sorted(name for name, _ in AUGMENTATION_REGISTRY)
    trackers = sorted(name for name, _ in EVENT_WRITER_REGISTRY)
    return [
        *TRAINING_RULES,
        (
            _AUGMENT + "NAMES",
            lambda v: all(name in own for name in v),
            f"names in AUGMENTATION_REGISTRY, which has {', '.join(own) or 'none'}; --plugin FILE registers yours",
        ),
        (
            "MODEL.FOCAL_DET.TRACKERS",
            lambda v: all(name in trackers for name in v) and len(set(v)) == len(v),
            f"different names of {', '.join(trackers)}; --plugin FILE registers yours in EVENT_WRITER_REGISTRY",
        ),
        ("INPUT.CROP.SIZE", *_each(part, f"height and width, with INPUT.CROP.TYPE {crop} each", count=2)),
        (
            "INPUT.MIN_SIZE_TRAIN_SAMPLING",
            lambda v: v != "range" or len(sizes) == 2,
            f"'choice', or INPUT.MIN_SIZE_TRAIN the two ends of a range, and not {sizes}",
        ),
        (
            "SOLVER.WARMUP_ITERS",
            lambda v: v < solver.MAX_ITER or solver.LR_SCHEDULER_NAME != _FIXED_GAMMA,
            f"below SOLVER.MAX_ITER {solver.MAX_ITER} with SOLVER.LR_SCHEDULER_NAME {_FIXED_GAMMA}",
        ),
        ("SOLVER.NUM_DECAYS", lambda v: v < solver.MAX_ITER, f"below SOLVER.MAX_ITER {solver.MAX_ITER}"),
        ("SOLVER.BASE_LR_END", lambda v: 0 <= v <= solver.BASE_LR, f"in [0, SOLVER.BASE_LR {solver.BASE_LR}]"),
        ("SOLVER.NESTEROV", lambda v: not v or solver.MOMENTUM > 0, "False, since SOLVER.MOMENTUM is 0"),
        (
            "TEST.PRECISE_BN.ENABLED",
            lambda v: not v or norms is None or BATCH_NORMS.intersection(norms),
            f"False, since the norms of this model, {norms}, are none of {', '.join(sorted(BATCH_NORMS))}",
        ),
    ]
