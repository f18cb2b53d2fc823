"""What is checked of a configuration before anything starts: every problem at once, each with its fix."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY

from ..data.catalog import is_writable
from ..errors import cut
from ..modeling.head import NORMS
from ..modeling.normalizer import MODES
from ..registries import DENSE_HEAD_REGISTRY, DENSE_LOSS_REGISTRY
from .config_file import UNSET_NUM_CLASSES
from .loss_keys import constants_of_loss

_DETECTRON2_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
_SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")


def config_problems(cfg: CfgNode, *, num_processes: int, training: bool) -> list[str]:
    """Values that cannot work, whatever the data.

    Args:
        num_processes: over all machines.
        training: also check the schedule and the batch.
    """
    problems = [*_name_problems(cfg), *_model_problems(cfg), *_loss_problems(cfg), *_path_problems(cfg, training)]
    if training:
        problems += _schedule_problems(cfg, num_processes)
    return problems


def class_problems(num_classes: int, classes: Mapping[str, list[str] | None]) -> list[str]:
    """Contradictions between NUM_CLASSES and the classes of the data sets by name. None stands for "does not say"."""
    problems = []
    known = {name: names for name, names in classes.items() if names is not None}
    for name, names in known.items():
        if num_classes != len(names):
            problems.append(
                f"data set {name} has {len(names)} classes ({_shortened(names)}), MODEL.RETINANET.NUM_CLASSES is "
                f"{num_classes}: set {len(names)} or leave it out"
            )
    first = next(iter(known), None)
    for name, names in known.items():
        if first is not None and names != known[first]:
            problems.append(
                f"data sets {first} and {name} differ in their classes: [{_shortened(known[first])}] against "
                f"[{_shortened(names)}]; they need the same names in the same order of ids"
            )
    return problems


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
    thresholds = retinanet.IOU_THRESHOLDS
    rules = [
        ("DATASETS.TEST", cfg.DATASETS.TEST, lambda v: len(v) > 0, "at least one data set; or use --val-json"),
        ("INPUT.MIN_SIZE_TRAIN", cfg.INPUT.MIN_SIZE_TRAIN, lambda v: v and min(v) > 0, "one or more sizes > 0"),
        ("MODEL.RETINANET.PRIOR_PROB", retinanet.PRIOR_PROB, lambda v: 0 < v < 1, "in (0, 1)"),
        ("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", retinanet.SMOOTH_L1_LOSS_BETA, lambda v: 0 <= v < math.inf, ">= 0"),
        ("MODEL.RETINANET.NUM_CLASSES", retinanet.NUM_CLASSES, lambda v: v >= 1 or v == UNSET_NUM_CLASSES, ">= 1"),
        ("MODEL.RETINANET.NUM_CONVS", retinanet.NUM_CONVS, lambda v: v >= 0, ">= 0"),
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
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        problems.append(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}; it must be cuda, cuda:<number> or cpu")
    if cfg.TEST.AUG.ENABLED:
        problems.append("TEST.AUG.ENABLED is True, but dense detectors have no test-time augmentation; set it to False")
    return problems


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


def _schedule_problems(cfg: CfgNode, num_processes: int) -> list[str]:
    solver = cfg.SOLVER
    problems = []
    if solver.IMS_PER_BATCH < 1 or solver.IMS_PER_BATCH % num_processes:
        problems.append(
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, the images of one step over all processes; "
            f"it must be a multiple of their number, {num_processes}"
        )
    if solver.MAX_ITER < 1:
        problems.append(f"SOLVER.MAX_ITER is {solver.MAX_ITER}; at least one iteration is needed")
    if list(solver.STEPS) != sorted(set(solver.STEPS)) or any(step <= 0 for step in solver.STEPS):
        problems.append(f"SOLVER.STEPS is {tuple(solver.STEPS)}; the iterations must be > 0 and rise")
    if solver.WARMUP_ITERS < 0:
        problems.append(f"SOLVER.WARMUP_ITERS is {solver.WARMUP_ITERS}; it must be >= 0")
    if solver.CHECKPOINT_PERIOD < 1:
        problems.append(f"SOLVER.CHECKPOINT_PERIOD is {solver.CHECKPOINT_PERIOD}; it must be >= 1")
    if not 0 < solver.BASE_LR < math.inf:
        problems.append(f"SOLVER.BASE_LR is {solver.BASE_LR}; it must be finite and > 0")
    if cfg.DATALOADER.NUM_WORKERS < 0:
        problems.append(f"DATALOADER.NUM_WORKERS is {cfg.DATALOADER.NUM_WORKERS}; it must be >= 0")
    if cfg.SEED >= 2**32:
        problems.append(f"SEED is {cfg.SEED}; it must be below 2^32 (negative: random)")
    if solver.AMP.ENABLED and solver.AMP.DTYPE == "float16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        problems.append(
            "SOLVER.AMP.ENABLED is True, but float16 needs a GPU: set it to False, or SOLVER.AMP.DTYPE to bfloat16"
        )
    if not cfg.DATASETS.TRAIN:
        problems.append("DATASETS.TRAIN is empty; name a data set, or use --train-json")
    return problems


def _path_problems(cfg: CfgNode, training: bool) -> list[str]:
    problems = []
    weights = cfg.MODEL.WEIGHTS
    if "://" not in weights and weights and not os.path.isfile(weights):
        problems.append(f"MODEL.WEIGHTS is {cut(weights, 250)}: no such file; give a checkpoint, a URL, or '' for none")
    if not training and not weights:
        problems.append("--eval-only evaluates MODEL.WEIGHTS, which is empty; add MODEL.WEIGHTS <checkpoint>")
    taken = [name for name in ("inference", "detections", "annotations") if os.path.isfile(Path(cfg.OUTPUT_DIR) / name)]
    if not cfg.OUTPUT_DIR or "://" in cfg.OUTPUT_DIR:
        problems.append(f"OUTPUT_DIR is {cfg.OUTPUT_DIR!r}; it must be a folder of this machine")
    elif taken:
        problems.append(f"OUTPUT_DIR is {cfg.OUTPUT_DIR}, whose {taken[0]} is a file; name another or move the file")
    elif not is_writable(Path(cfg.OUTPUT_DIR)):
        problems.append(
            f"OUTPUT_DIR is {cut(cfg.OUTPUT_DIR, 250)}: not a folder that can be made and written; name another"
        )
    return problems


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
