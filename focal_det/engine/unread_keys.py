"""Keys of Detectron2 that belong to other detectors: one that is set for RetinaNet would be passed over in silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .loss_keys import COMMAND_LINE, Setting

# The architectures that read none of the keys below, as their `from_config`, Detectron2's mapper and loaders show.
_ARCHITECTURES = ("FocalRetinaNet", "RetinaNet")
_GROUPS = (
    "MODEL.ROI_",  # ROI_HEADS, ROI_BOX_HEAD, ROI_MASK_HEAD, ...
    "MODEL.RPN.",
    "MODEL.PROPOSAL_GENERATOR.",
    "MODEL.SEM_SEG_HEAD.",
    "MODEL.PANOPTIC_FPN.",
    "DATASETS.PROPOSAL_FILES_",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_",
)
_KEYS = (
    "MODEL.MASK_ON",
    "MODEL.KEYPOINT_ON",
    "MODEL.LOAD_PROPOSALS",
    "MODEL.ANCHOR_GENERATOR.ANGLES",
    "INPUT.MASK_FORMAT",
    "TEST.KEYPOINT_OKS_SIGMAS",
    "TEST.EXPECTED_RESULTS",
)
_MEANT = {
    "MODEL.ROI_HEADS.NUM_CLASSES": "set MODEL.RETINANET.NUM_CLASSES, or leave it to the data",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "set MODEL.RETINANET.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "set MODEL.RETINANET.NMS_THRESH_TEST",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": "set MODEL.RETINANET.IOU_THRESHOLDS",
    "MODEL.ROI_HEADS.IN_FEATURES": "set MODEL.RETINANET.IN_FEATURES",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "remove it, every anchor counts",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": "remove it, every anchor counts",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": "set MODEL.RETINANET.BBOX_REG_WEIGHTS",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": "set MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
    "MODEL.ROI_BOX_HEAD.NORM": "set MODEL.RETINANET.NORM",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": "remove it, every anchor counts",
    "MODEL.RPN.POSITIVE_FRACTION": "remove it, every anchor counts",
    "MODEL.RPN.IN_FEATURES": "set MODEL.RETINANET.IN_FEATURES",
    "MODEL.RPN.IOU_THRESHOLDS": "set MODEL.RETINANET.IOU_THRESHOLDS",
    "MODEL.RPN.BBOX_REG_WEIGHTS": "set MODEL.RETINANET.BBOX_REG_WEIGHTS",
    "MODEL.RPN.SMOOTH_L1_BETA": "set MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
    "MODEL.RPN.NMS_THRESH": "set MODEL.RETINANET.NMS_THRESH_TEST",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "set MODEL.RETINANET.TOPK_CANDIDATES_TEST, which is per level",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "set TEST.DETECTIONS_PER_IMAGE",
    "MODEL.MASK_ON": "remove it, boxes alone are detected",
    "MODEL.KEYPOINT_ON": "remove it, boxes alone are detected",
}
# Detectron2's trainer reads it, this project's does not, whatever the model.
_WORLD_SIZE = "SOLVER.REFERENCE_WORLD_SIZE"


def unread_key_problems(architecture: str, settings: Sequence[Setting], defaults: dict[str, Any]) -> list[str]:
    """Keys that the architecture, or the trainer, does not read.

    A saved configuration has all keys, so at their defaults they may stand in a file; in the command line never.

    Args:
        settings: in the order in which they were applied.
        defaults: of all keys.
    """
    problems = []
    for key, value, place, _ in settings:
        if place != COMMAND_LINE and _plain(value) == _plain(defaults[key]):
            continue
        if key == _WORLD_SIZE:
            problems.append(
                f"{place}: {key} is {value}, but is not read: SOLVER.IMS_PER_BATCH is the batch of all processes "
                "together, so their number changes nothing; remove it; where you change the batch, add --scale-lr"
            )
        elif architecture in _ARCHITECTURES and (key.startswith(_GROUPS) or key in _KEYS):
            problems.append(
                f"{place}: {key} is {value}, but MODEL.META_ARCHITECTURE {architecture} does not read it: "
                + _MEANT.get(key, "remove it")
            )
    return problems


def _plain(value: Any) -> Any:
    """With lists for tuples, as YAML gives back what was saved."""
    return [_plain(element) for element in value] if isinstance(value, (list, tuple)) else value
