"""Check a configuration before anything starts: every problem at once, each with its fix.

A range stands once. Where a part of ours knows it, the part is asked, by making it or calling it with the value alone,
and its ValueError is the message. Detectron2's parts take most wrong values in silence, or trip over them late and
without naming the key: their ranges stand here and nowhere else.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY

from .. import output_layout as layout
from ..data.catalog import is_writable
from ..errors import Findings, cut
from ..losses.box import check_beta
from ..modeling.anchors import cell_anchors
from ..modeling.assignment import check_iou_thresholds
from ..modeling.box_coding import check_box_weights
from ..modeling.decode import check_decoding
from ..modeling.head import NORMS, logit_of
from ..modeling.normalizer import MODES
from ..registries import DENSE_HEAD_REGISTRY, DENSE_LOSS_REGISTRY
from .layers import get_value
from .load import UNSET_NUM_CLASSES
from .unused_keys import constants_of_loss

_DETECTRON2_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
_SAMPLERS = (
    *("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"),
    *("WeightedTrainingSampler", "WeightedCategoryTrainingSampler"),
)
# Key, and what it may be: a registry's names, or these.
_CHOICES: tuple[tuple[str, Any], ...] = (
    ("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY),
    ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY),
    ("MODEL.ANCHOR_GENERATOR.NAME", ANCHOR_GENERATOR_REGISTRY),
    ("MODEL.FOCAL_DET.HEAD_NAME", DENSE_HEAD_REGISTRY),
    ("MODEL.FOCAL_DET.LOSS.NAME", DENSE_LOSS_REGISTRY),
    ("MODEL.FOCAL_DET.NORMALIZER", MODES),
    ("MODEL.RETINANET.NORM", NORMS),
    ("MODEL.RESNETS.NORM", _DETECTRON2_NORMS),
    ("MODEL.FPN.NORM", _DETECTRON2_NORMS),
    ("SOLVER.LR_SCHEDULER_NAME", ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")),
    ("SOLVER.AMP.DTYPE", ("float16", "bfloat16")),
    ("DATALOADER.SAMPLER_TRAIN", _SAMPLERS),
    ("INPUT.FORMAT", ("BGR", "RGB")),
    ("MODEL.RESNETS.DEPTH", (18, 34, 50, 101, 152)),
)


def _some(values: Sequence[Any]) -> Sequence[Any]:
    if not values:
        raise ValueError("an empty list, where one or more values are needed")
    return values


def _decoding(**option: float) -> None:
    defaults = {"score_thresh": 0.5, "topk_per_level": 1, "nms_thresh": 0.5, "max_detections": 1}
    check_decoding(**{**defaults, **option}, box_weights=(1, 1, 1, 1))  # type: ignore[arg-type]


# Key, and the part of ours that is asked.
_PARTS: tuple[tuple[str, Callable[[Any], object]], ...] = (
    ("MODEL.ANCHOR_GENERATOR.SIZES", lambda v: [cell_anchors(x, 1, [1.0]) for level in _some(v) for x in _some(level)]),
    ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", lambda v: [cell_anchors(1.0, 1, ratios) for ratios in _some(v)]),
    ("MODEL.FOCAL_DET.SCALES_PER_OCTAVE", lambda v: cell_anchors(1.0, v, [1.0])),
    ("MODEL.RETINANET.PRIOR_PROB", logit_of),
    ("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", check_beta),
    ("MODEL.RETINANET.BBOX_REG_WEIGHTS", check_box_weights),
    ("MODEL.RETINANET.IOU_THRESHOLDS", check_iou_thresholds),
    ("MODEL.RETINANET.SCORE_THRESH_TEST", lambda v: _decoding(score_thresh=v)),
    ("MODEL.RETINANET.NMS_THRESH_TEST", lambda v: _decoding(nms_thresh=v)),
    ("MODEL.RETINANET.TOPK_CANDIDATES_TEST", lambda v: _decoding(topk_per_level=v)),
    ("TEST.DETECTIONS_PER_IMAGE", lambda v: _decoding(max_detections=v)),
)


def is_device(name: object) -> bool:
    """Tell whether it names a device that the detector runs on: cuda, cuda:<number> or cpu."""
    return isinstance(name, str) and re.fullmatch(r"cuda(:\d+)?|cpu", name) is not None


def _are_three(values: Sequence[float]) -> bool:
    return len(values) == 3 and all(map(math.isfinite, values))


# Key, whether a value is possible, and what it must be.
_Rule = tuple[str, Callable[[Any], Any], str]
_MOST_CONVS, _MOST_WORKERS = 100, 256  # more is a slip, on which memory runs out
_DETECTOR_RULES: tuple[_Rule, ...] = (
    ("INPUT.MIN_SIZE_TRAIN", lambda v: v and min(v) > 0, "one or more sizes > 0"),
    ("INPUT.MIN_SIZE_TEST", lambda v: v >= 0, ">= 0; 0: images are not resized"),
    ("MODEL.DEVICE", is_device, "cuda, cuda:<number> or cpu"),
    ("MODEL.PIXEL_MEAN", _are_three, "three numbers, one for each channel"),
    ("MODEL.PIXEL_STD", lambda v: _are_three(v) and min(v) > 0, "three numbers > 0, one for each channel"),
    ("MODEL.BACKBONE.FREEZE_AT", lambda v: v >= 0, ">= 0; 0 freezes nothing"),
    ("MODEL.FPN.OUT_CHANNELS", lambda v: v >= 1, ">= 1"),
    ("MODEL.RETINANET.NUM_CLASSES", lambda v: v >= 1 or v == UNSET_NUM_CLASSES, ">= 1"),
    ("MODEL.RETINANET.NUM_CONVS", lambda v: 0 <= v <= _MOST_CONVS, f"in 0 to {_MOST_CONVS}"),
    ("MODEL.FOCAL_DET.DRAW_IMAGES", lambda v: v >= 0, ">= 0"),
    ("MODEL.FOCAL_DET.DRAW_SCORE_THRESH", lambda v: 0 <= v <= 1, "in [0, 1]"),
    ("MODEL.FOCAL_DET.CHECKPOINTS_KEPT", lambda v: v >= 0, ">= 0; 0 keeps all"),
    ("TEST.AUG.ENABLED", lambda v: not v, "False, since dense detectors have no test-time augmentation"),
)
_TRAINING_RULES: tuple[_Rule, ...] = (
    ("SOLVER.MAX_ITER", lambda v: v >= 1, ">= 1"),
    ("SOLVER.STEPS", lambda v: list(v) == sorted(set(v)) and min(v, default=1) > 0, "iterations > 0 that rise"),
    ("SOLVER.WARMUP_ITERS", lambda v: v >= 0, ">= 0"),
    ("SOLVER.CHECKPOINT_PERIOD", lambda v: v >= 1, ">= 1"),
    ("SOLVER.BASE_LR", lambda v: 0 < v < math.inf, "finite and > 0"),
    ("SOLVER.GAMMA", lambda v: 0 < v <= 1, "in (0, 1], what a step leaves of the learning rate"),
    ("DATALOADER.NUM_WORKERS", lambda v: 0 <= v <= _MOST_WORKERS, f"in 0 to {_MOST_WORKERS}"),
    ("SEED", lambda v: v < 2**32, "below 2^32 (negative: random)"),
    ("DATASETS.TRAIN", bool, "at least one data set; or use --train-json"),
)
_CLIPPING: _Rule = ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", lambda v: v > 0, "> 0")


def detector_problems(cfg: CfgNode) -> list[str]:
    """Return what prevents building a detector, whatever it is for."""
    problems = []
    for key, choices in _CHOICES:
        names = choices if isinstance(choices, tuple) else [name for name, _ in choices]
        value = get_value(cfg, key)
        if value not in names:
            problems.append(f"{key} is {value!r}; allowed are {', '.join(map(repr, sorted(names)))}")
    problems += _broken(cfg, (*_size_rules(cfg), *_DETECTOR_RULES))
    for key, ask in _PARTS:
        value = get_value(cfg, key)
        try:
            ask(value)
        except ValueError as error:
            problems.append(f"{key} is {value}: {error}")
        except OverflowError:  # from an integer of hundreds of digits
            problems.append(f"{key} is {cut(value)}; it must be numbers that a float can hold")
    return problems + _loss_problems(cfg)


def _broken(cfg: CfgNode, rules: Sequence[_Rule]) -> list[str]:
    return [
        f"{key} is {value}; it must be {needed}"
        for key, is_possible, needed in rules
        if not is_possible(value := get_value(cfg, key))
    ]


def _size_rules(cfg: CfgNode) -> list[_Rule]:
    """Return the rules by which one key bounds another."""
    train, test = max(cfg.INPUT.MIN_SIZE_TRAIN, default=1), cfg.INPUT.MIN_SIZE_TEST
    depth = cfg.MODEL.RESNETS.DEPTH
    is_basic = depth in (18, 34)  # whose blocks have no bottleneck
    why = "the longer side may not be less than the shorter"
    return [
        ("INPUT.MAX_SIZE_TRAIN", lambda v: v >= max(1, train), f">= INPUT.MIN_SIZE_TRAIN, {train}: {why}"),
        ("INPUT.MAX_SIZE_TEST", lambda v: v >= max(1, test), f">= INPUT.MIN_SIZE_TEST, {test}, and >= 1: {why}"),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", lambda v: v == 64 or not is_basic, f"64 for MODEL.RESNETS.DEPTH {depth}"),
    ]


def _loss_problems(cfg: CfgNode) -> list[str]:
    """Return what the chosen loss says of its constants."""
    name = cfg.MODEL.FOCAL_DET.LOSS.NAME
    if cfg.MODEL.META_ARCHITECTURE != "FocalRetinaNet" or name not in DENSE_LOSS_REGISTRY:
        return []
    try:
        DENSE_LOSS_REGISTRY.get(name)(cfg)
    except ValueError as error:
        return [f"{name} cannot be made of {' and '.join(constants_of_loss(cfg))}: {error}"]
    return []


def check_config(cfg: CfgNode, *, num_processes: int, training: bool) -> Findings:
    """Find what cannot work, whatever the data; in training also of the schedule and the batch of all processes."""
    problems = detector_problems(cfg)
    if not cfg.DATASETS.TEST:
        problems.append("DATASETS.TEST is (); it must be at least one data set; or use --val-json")
    problems += _path_problems(cfg, training)
    if training:
        problems += _schedule_problems(cfg, num_processes)
    return Findings(problems)


def check_num_classes(num_classes: int, classes: Mapping[str, list[str] | None]) -> Findings:
    """Find contradictions between NUM_CLASSES and the classes of the data sets by name; None: a set does not say."""
    known = {name: names for name, names in classes.items() if names is not None}
    problems = [
        f"data set {name} has {len(names)} classes ({_shortened(names)}), MODEL.RETINANET.NUM_CLASSES is "
        f"{num_classes}: set {len(names)} or leave it out"
        for name, names in known.items()
        if num_classes != len(names)
    ]
    first, expected = next(iter(known.items()), ("", []))
    problems += [
        f"data sets {first} and {name} differ in their classes: [{_shortened(expected)}] against "
        f"[{_shortened(names)}]; they need the same names in the same order of ids"
        for name, names in known.items()
        if names != expected
    ]
    return Findings(problems)


def _schedule_problems(cfg: CfgNode, num_processes: int) -> list[str]:
    solver = cfg.SOLVER
    problems = []
    if solver.IMS_PER_BATCH < 1 or solver.IMS_PER_BATCH % num_processes:
        problems.append(
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, the images of one step over all processes; "
            f"it must be a multiple of their number, {num_processes}"
        )
    problems += _broken(cfg, (*_TRAINING_RULES, *([_CLIPPING] if solver.CLIP_GRADIENTS.ENABLED else [])))
    if solver.AMP.ENABLED and solver.AMP.DTYPE == "float16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        fix = "set it to False, or SOLVER.AMP.DTYPE to bfloat16"
        problems.append(f"SOLVER.AMP.ENABLED is True, but float16 needs a GPU: {fix}")
    return problems


def _path_problems(cfg: CfgNode, training: bool) -> list[str]:
    problems = []
    weights = cfg.MODEL.WEIGHTS
    if "://" not in weights and weights and not os.path.isfile(weights):
        problems.append(f"MODEL.WEIGHTS is {cut(weights, 250)}: no such file; give a checkpoint, a URL, or '' for none")
    if not training and not weights:
        problems.append("--eval-only evaluates MODEL.WEIGHTS, which is empty; add MODEL.WEIGHTS <checkpoint>")
    taken = _in_the_way(Path(cfg.OUTPUT_DIR))
    if not cfg.OUTPUT_DIR or "://" in cfg.OUTPUT_DIR or "\0" in cfg.OUTPUT_DIR:
        problems.append(f"OUTPUT_DIR is {cfg.OUTPUT_DIR!r}; it must be a folder of this machine")
    elif taken:
        problems.append(f"OUTPUT_DIR is {cfg.OUTPUT_DIR}, whose {taken}; name another or move that")
    elif not is_writable(Path(cfg.OUTPUT_DIR)):
        wrong = "not a folder that can be made and written"
        problems.append(f"OUTPUT_DIR is {cut(cfg.OUTPUT_DIR, 250)}: {wrong}; name another")
    return problems


# What a run makes in its OUTPUT_DIR.
_FOLDERS = (layout.INFERENCE, layout.DRAWINGS, layout.ANNOTATIONS)
_FILES = (
    *(layout.LOCK, layout.LOG, layout.CONFIG, layout.CONFIG_CHANGES, layout.ENVIRONMENT, layout.CLASSES_FILE),
    *(layout.METRICS, layout.LAST_CHECKPOINT, layout.BEST_CHECKPOINT, layout.FINAL_CHECKPOINT),
    *(layout.DRAWINGS_SHEET, layout.REPORT),
)


def _in_the_way(folder: Path) -> str:
    """Return what in OUTPUT_DIR a run could not replace, such as a dangling link, and would meet late or wait for."""
    for name in (*_FOLDERS, *_FILES):
        path = folder / name
        is_file, is_folder = os.path.isfile(path), os.path.isdir(path)  # which take a path that is too long
        if os.path.lexists(path) and not (is_folder if name in _FOLDERS else is_file):
            return f"{name} is {'a file' if is_file else 'a folder' if is_folder else 'a link to nothing, or a device'}"
    return ""


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
