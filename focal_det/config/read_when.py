"""Which keys are read at all, and with which others: a key that is set and not read would be ignored in silence.

Names that end with a dot or an underscore stand for all keys that begin with them. `tests/config/test_every_key.py`
holds these tables against what trainings and evaluations read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from detectron2.config import CfgNode

# The architectures that read none of the keys of `NEVER`, as their `from_config`, Detectron2's mapper and loaders show.
ARCHITECTURES = ("FocalRetinaNet", "RetinaNet")
# Keys, and why a dense detector does not read them.
NEVER: tuple[tuple[tuple[str, ...], str], ...] = (
    (  # MODEL.ROI_ stands for ROI_HEADS, ROI_BOX_HEAD, ROI_MASK_HEAD, ...
        ("MODEL.ROI_", "MODEL.RPN.", "MODEL.PROPOSAL_GENERATOR."),
        "there are no proposals and no second stage",
    ),
    (
        (
            *("MODEL.LOAD_PROPOSALS", "DATASETS.PROPOSAL_FILES_TRAIN", "DATASETS.PROPOSAL_FILES_TEST"),
            *("DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST"),
        ),
        "a dense detector takes no proposals",
    ),
    (("MODEL.SEM_SEG_HEAD.", "MODEL.PANOPTIC_FPN."), "boxes alone are detected"),
    (("MODEL.MASK_ON", "MODEL.KEYPOINT_ON"), "boxes alone are detected"),
    (("INPUT.MASK_FORMAT", "TEST.KEYPOINT_OKS_SIGMAS"), "boxes alone are detected"),
    (("MODEL.ANCHOR_GENERATOR.ANGLES",), "its anchors are upright"),
    (("GLOBAL.",), "it is for experiments with Detectron2's own code, in which nothing reads it"),
)

SAMPLERS = (
    *("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"),
    *("WeightedTrainingSampler", "WeightedCategoryTrainingSampler"),
)
# Losses without a kernel in `losses/triton_kernels.py`.
WITHOUT_KERNEL = (
    *("OHEMLoss", "OHEMOneToThreeLoss", "QualityFocalLoss", "VarifocalLoss"),
    *("AsymmetricLoss", "ClassBalancedFocalLoss", "FederatedFocalLoss"),
)
BATCH_NORMS = {"BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N"}
FPN_BACKBONES = ("build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone")
RESNETS = ("build_resnet_backbone", *FPN_BACKBONES)


class Condition(NamedTuple):
    """Keys that are read where a condition on other keys, the switches, holds."""

    keys: tuple[str, ...]
    switches: tuple[str, ...]
    holds: Callable[[CfgNode], bool]
    needed: str


def _one_of(keys: tuple[str, ...], switch: str, *values: object) -> Condition:
    """Return the condition that a key has one of some values."""

    def holds(cfg: CfgNode) -> bool:
        for part in switch.split("."):
            cfg = cfg[part]
        return cfg in values

    return Condition(keys, (switch,), holds, f"{switch} {' or '.join(map(str, values))}")


_SCHEDULER, _CLIP, _SAMPLER = "SOLVER.LR_SCHEDULER_NAME", "SOLVER.CLIP_GRADIENTS.", "DATALOADER.SAMPLER_TRAIN"
_OURS = "MODEL.FOCAL_DET."
# Of every architecture: what trainer, loader and evaluation read.
OF_ALL: tuple[Condition, ...] = (
    _one_of(("SOLVER.STEPS",), _SCHEDULER, "WarmupMultiStepLR"),
    _one_of(("SOLVER.GAMMA",), _SCHEDULER, "WarmupMultiStepLR", "WarmupStepWithFixedGammaLR"),
    _one_of(("SOLVER.NUM_DECAYS",), _SCHEDULER, "WarmupStepWithFixedGammaLR"),
    _one_of(("SOLVER.BASE_LR_END",), _SCHEDULER, "WarmupCosineLR"),
    _one_of((_CLIP + "CLIP_TYPE", _CLIP + "CLIP_VALUE"), _CLIP + "ENABLED", True),
    Condition(
        (_CLIP + "NORM_TYPE",),
        (_CLIP + "ENABLED", _CLIP + "CLIP_TYPE"),
        lambda cfg: cfg.SOLVER.CLIP_GRADIENTS.ENABLED and cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == "norm",
        f"{_CLIP}ENABLED True and {_CLIP}CLIP_TYPE norm",
    ),
    _one_of(("SOLVER.AMP.DTYPE",), "SOLVER.AMP.ENABLED", True),
    _one_of(("INPUT.CROP.TYPE", "INPUT.CROP.SIZE"), "INPUT.CROP.ENABLED", True),
    _one_of(
        ("DATALOADER.REPEAT_THRESHOLD", "DATALOADER.REPEAT_SQRT"),
        *(_SAMPLER, "RepeatFactorTrainingSampler", "WeightedCategoryTrainingSampler"),
    ),
    _one_of(("DATALOADER.RANDOM_SUBSET_RATIO",), _SAMPLER, "RandomSubsetTrainingSampler"),
    _one_of(("DATASETS.TRAIN_REPEAT_FACTOR",), _SAMPLER, "WeightedTrainingSampler", "WeightedCategoryTrainingSampler"),
    _one_of(("TEST.AUG.MIN_SIZES", "TEST.AUG.MAX_SIZE", "TEST.AUG.FLIP"), "TEST.AUG.ENABLED", True),
    Condition(
        (_OURS + "TILES.OVERLAP",),
        (_OURS + "TILES.SIZE",),
        lambda cfg: cfg.MODEL.FOCAL_DET.TILES.SIZE != 0,
        f"{_OURS}TILES.SIZE above 0",
    ),
    Condition(
        (_OURS + "PATIENCE_METRIC",),
        (_OURS + "PATIENCE",),
        lambda cfg: cfg.MODEL.FOCAL_DET.PATIENCE != 0,
        f"{_OURS}PATIENCE above 0",
    ),
    _one_of(("TEST.PRECISE_BN.NUM_ITER",), "TEST.PRECISE_BN.ENABLED", True),
    Condition(
        (_OURS + "DRAW_SCORE_THRESH",),
        (_OURS + "DRAW_IMAGES",),
        lambda cfg: cfg.MODEL.FOCAL_DET.DRAW_IMAGES != 0,
        f"{_OURS}DRAW_IMAGES above 0",
    ),
)
# Of `ARCHITECTURES` besides. A backbone, an anchor generator or a loss of one's own may read any key.
OF_DENSE: tuple[Condition, ...] = (
    _one_of(("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",), "MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "smooth_l1"),
    _one_of(
        (
            _OURS + "HEAD_NAME",
            _OURS + "ASSIGNER.",
            _OURS + "BOX_LOSS.",
            _OURS + "MATCH_BEST_ANCHOR",
            _OURS + "NORMALIZER",
        ),
        *("MODEL.META_ARCHITECTURE", "FocalRetinaNet"),
    ),
    Condition(  # an assigner of one's own may read all of them
        ("MODEL.RETINANET.IOU_THRESHOLDS", _OURS + "MATCH_BEST_ANCHOR"),
        (_OURS + "ASSIGNER.NAME",),
        lambda cfg: cfg.MODEL.FOCAL_DET.ASSIGNER.NAME != "ATSSAssigner",
        f"{_OURS}ASSIGNER.NAME IoUAssigner",
    ),
    Condition(
        (_OURS + "ASSIGNER.TOPK",),
        (_OURS + "ASSIGNER.NAME",),
        lambda cfg: cfg.MODEL.FOCAL_DET.ASSIGNER.NAME != "IoUAssigner",
        f"{_OURS}ASSIGNER.NAME ATSSAssigner",
    ),
    Condition(
        (_OURS + "SCALES_PER_OCTAVE",),
        ("MODEL.ANCHOR_GENERATOR.NAME",),
        lambda cfg: cfg.MODEL.ANCHOR_GENERATOR.NAME not in ("DefaultAnchorGenerator", "RotatedAnchorGenerator"),
        "MODEL.ANCHOR_GENERATOR.NAME OctaveAnchorGenerator",
    ),
    Condition(
        (_OURS + "SPEED.TRITON",),
        (_OURS + "LOSS.NAME",),
        lambda cfg: cfg.MODEL.FOCAL_DET.LOSS.NAME not in WITHOUT_KERNEL,
        f"a loss that has a kernel, which {', '.join(WITHOUT_KERNEL)} in {_OURS}LOSS.NAME have not",
    ),
    Condition(
        (_OURS + "WEIGHTS_CLASSES",),
        ("MODEL.WEIGHTS",),
        lambda cfg: cfg.MODEL.WEIGHTS != "",
        "MODEL.WEIGHTS of a detector to start from",
    ),
    Condition(
        ("MODEL.FPN.",),
        ("MODEL.BACKBONE.NAME",),
        lambda cfg: cfg.MODEL.BACKBONE.NAME != "build_resnet_backbone",
        f"MODEL.BACKBONE.NAME {' or '.join(FPN_BACKBONES)}",
    ),
    Condition(
        ("MODEL.RESNETS.STRIDE_IN_1X1", "MODEL.RESNETS.WIDTH_PER_GROUP"),
        ("MODEL.RESNETS.DEPTH",),
        lambda cfg: cfg.MODEL.BACKBONE.NAME not in RESNETS or cfg.MODEL.RESNETS.DEPTH not in (18, 34),
        "MODEL.RESNETS.DEPTH 50 or more, whose blocks have a bottleneck",
    ),
    Condition(
        ("MODEL.RESNETS.DEFORM_MODULATED", "MODEL.RESNETS.DEFORM_NUM_GROUPS"),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE",),
        lambda cfg: cfg.MODEL.BACKBONE.NAME not in RESNETS or any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE),
        "a stage of MODEL.RESNETS.DEFORM_ON_PER_STAGE True",
    ),
    Condition(
        ("VIS_PERIOD",),
        (_OURS + "DRAW_IMAGES",),
        lambda cfg: cfg.MODEL.FOCAL_DET.DRAW_IMAGES != 0,
        f"{_OURS}DRAW_IMAGES above 0",
    ),
)


def stands_for(names: tuple[str, ...], key: str) -> bool:
    """Tell whether a key is one of the names, or begins with one that stands for many."""
    return key in names or key.startswith(tuple(name for name in names if name.endswith((".", "_"))))


def never_read(cfg: CfgNode, key: str) -> str | None:
    """Return why this architecture never reads a key; None if it may."""
    if cfg.MODEL.META_ARCHITECTURE not in ARCHITECTURES:
        return None
    return next((why for names, why in NEVER if stands_for(names, key)), None)


def unmet_condition(cfg: CfgNode, key: str) -> Condition | None:
    """Return the condition that a key lacks to be read; None if it is read."""
    of_dense = OF_DENSE if cfg.MODEL.META_ARCHITECTURE in ARCHITECTURES else ()
    conditions = (c for c in (*OF_ALL, *of_dense) if stands_for(c.keys, key))
    return next((condition for condition in conditions if not condition.holds(cfg)), None)


def norms_of(cfg: CfgNode) -> tuple[str, ...] | None:
    """Return the names of all norms of a dense detector; None where a part of one's own may have others."""
    model = cfg.MODEL
    is_known = model.META_ARCHITECTURE in ARCHITECTURES and model.BACKBONE.NAME in RESNETS
    if not is_known or model.FOCAL_DET.HEAD_NAME != "RetinaNetHead":
        return None
    of_pyramid = (model.FPN.NORM,) if model.BACKBONE.NAME in FPN_BACKBONES else ()
    return (model.RESNETS.NORM, *of_pyramid, model.RETINANET.NORM)
