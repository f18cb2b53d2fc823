"""Keys that the chosen loss, architecture or trainer does not read: one that is set would be ignored in silence.

A saved configuration has all keys, so one that is not read may be in a file at its default; on the command line never,
and of another loss's constants neither in a file: those are saved only where they are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from .. import plugin  # noqa: F401 - registers the losses
from ..errors import Findings, cut
from ..registries import DENSE_LOSS_REGISTRY
from .layers import COMMAND_LINE, Setting, get_value, set_value
from .read_when import never_read, unmet_condition

_LOSS = "MODEL.FOCAL_DET.LOSS."
_NAME = _LOSS + "NAME"
_SPEED = "MODEL.FOCAL_DET.SPEED."
_DETECTRON2S_CONSTANTS = ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", "MODEL.RETINANET.FOCAL_LOSS_GAMMA")
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


def check_unread_keys(cfg: CfgNode, settings: Sequence[Setting], defaults: Mapping[str, Any]) -> Findings:
    """Refuse keys that were set and that the loss, the architecture or the trainer does not read.

    A key that other keys leave unread, such as the steps of another schedule, is refused on the command line; in a file
    it is a warning, unless a layer above it set those others, or the file is a saved configuration, which has all keys.

    Args:
        cfg: what the settings make.
        settings: in the order in which they were applied. A loss that does not say what it reads may read all of them.
        defaults: of all keys.
    """
    architecture, found = cfg.MODEL.META_ARCHITECTURE, Findings()
    is_detectron2s = _is_detectron2s(architecture)
    found.errors += _own_loss_problems(architecture, settings) if is_detectron2s else _loss_problems(settings, defaults)
    layer_of = {setting.key: setting.layer for setting in settings}
    sizes = Counter(setting.layer for setting in settings)
    for key, value, place, layer in settings:
        on_command_line = place == COMMAND_LINE
        if not on_command_line and _plain(value) == _plain(defaults[key]):
            continue
        if why := never_read(cfg, key):
            fix = _MEANT.get(key, f"remove it, since {why}")
            unread = f"MODEL.META_ARCHITECTURE {architecture} does not read it"
            found.errors.append(f"{place}: {key} is {value}, but {unread}: {fix}")
        elif condition := unmet_condition(cfg, key):
            message = f"{place}: {key} is {value}, but is read only with {condition.needed}: set that, or remove it"
            if on_command_line:
                found.errors.append(message)
            elif sizes[layer] < len(defaults) / 2 and layer >= max(layer_of.get(s, 0) for s in condition.switches):
                found.warnings.append(message)
    return found


def reset_constants_left_behind(cfg: CfgNode, settings: Sequence[Setting], defaults: Mapping[str, Any]) -> None:
    """Set constants of other losses back to their defaults, where a layer above them names the loss."""
    name, since = _chosen_loss(settings, defaults)
    for setting in _not_read_by(name, settings):
        if setting.layer < since:
            set_value(cfg, setting.key, defaults[setting.key])


def without_unread_keys(cfg: CfgNode) -> CfgNode:
    """Return a copy without what the chosen loss does not read, for saving: what was used, to be read again."""
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.FOCAL_DET
    reads = _reads(node.LOSS.NAME)
    if _is_detectron2s(cfg.MODEL.META_ARCHITECTURE):
        del node["LOSS"]
        for leaf in set(node.SPEED) - {"FUSED_SGD"}:
            del node.SPEED[leaf]
    elif reads is not None:
        for leaf in set(node.LOSS) - {"NAME"}:
            if _LOSS + leaf not in reads:
                del node.LOSS[leaf]
    return cfg


def constants_of_loss(cfg: CfgNode) -> list[str]:
    """Return "KEY VALUE" of each key that the chosen loss reads."""
    return [f"{key} {cut(get_value(cfg, key), 60)}" for key in _reads(cfg.MODEL.FOCAL_DET.LOSS.NAME) or ()]


def _own_loss_problems(architecture: str, settings: Sequence[Setting]) -> list[str]:
    """Refuse the keys of our loss and network under an architecture of Detectron2's."""
    problems = []
    for key, value, place, _ in settings:
        is_speed = key.startswith(_SPEED) and value and key != _SPEED + "FUSED_SGD"  # which the trainer reads
        if is_speed or key.startswith(_LOSS):
            why = f"{architecture} {'does not read it' if is_speed else 'has a loss of its own'}"
            fix = "remove it, or set MODEL.META_ARCHITECTURE to FocalRetinaNet"
            problems.append(f"{place}: {key} is {value}, but MODEL.META_ARCHITECTURE {why}: {fix}")
    return problems


def _loss_problems(settings: Sequence[Setting], defaults: Mapping[str, Any]) -> list[str]:
    """Refuse constants of other losses, from the layer on that names the loss."""
    name, since = _chosen_loss(settings, defaults)
    reads = _reads(name) or ()
    problems = []
    for key, value, place, layer in _not_read_by(name, settings):
        # Every saved configuration has Detectron2's two.
        may_be_saved = key in _DETECTRON2S_CONSTANTS and place != COMMAND_LINE and value == defaults[key]
        if layer >= since and not may_be_saved:
            readers = [other for other, _ in DENSE_LOSS_REGISTRY if key in (_reads(other) or ())]
            problems.append(
                f"{place}: {key} is {value}, but the loss is {name}, which reads {' and '.join(reads) or 'no key'}: "
                f"remove it, or set {_NAME} to {' or '.join(readers)}"
            )
    return problems


def _chosen_loss(settings: Sequence[Setting], defaults: Mapping[str, Any]) -> tuple[str, int]:
    """Return the loss's name and the layer that first named it."""
    name, since = defaults[_NAME], 0
    for setting in settings:
        if setting.key == _NAME and setting.value != name:
            name, since = setting.value, setting.layer
    return name, since


def _not_read_by(loss: str, settings: Sequence[Setting]) -> list[Setting]:
    """Return the constants that this loss does not read; none for one that does not say what it reads."""
    reads = _reads(loss)
    if reads is None:
        return []
    constants = [s for s in settings if s.key.startswith(_LOSS) or s.key in _DETECTRON2S_CONSTANTS]
    return [s for s in constants if s.key not in (*reads, _NAME)]


def _reads(loss: str) -> tuple[str, ...] | None:
    return getattr(DENSE_LOSS_REGISTRY.get(loss), "reads", None) if loss in DENSE_LOSS_REGISTRY else None


def _is_detectron2s(architecture: str) -> bool:
    known = architecture in META_ARCH_REGISTRY
    return known and META_ARCH_REGISTRY.get(architecture).__module__.startswith("detectron2.")


def _plain(value: Any) -> Any:
    """Return a value with lists for tuples, as YAML gives back what was saved."""
    return [_plain(element) for element in value] if isinstance(value, (list, tuple)) else value
