"""Each class loss has keys of its own; one that is set for another loss would be passed over in silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from .. import plugin  # noqa: F401 - registers the losses
from ..registries import DENSE_LOSS_REGISTRY

_GROUP = "MODEL.FOCAL_DET.LOSS."
_NAME = _GROUP + "NAME"
_SPEED = "MODEL.FOCAL_DET.SPEED."
_OF_DETECTRON2 = ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", "MODEL.RETINANET.FOCAL_LOSS_GAMMA")

COMMAND_LINE = "command line"


class Setting(NamedTuple):
    """A known key that was set to a possible value, where, and in which layer, counted from the lowest base."""

    key: str
    value: Any
    place: str
    layer: int


def settle_loss_keys(cfg: CfgNode, settings: Sequence[Setting], defaults: dict[str, Any]) -> list[str]:
    """Refuse keys that were set for a loss that does not read them.

    A layer that names another loss than those below it leaves their constants behind: they go back to their
    defaults. From that layer on every key must be one that the loss reads; only Detectron2's two may stand at their
    defaults in a file, since every saved configuration has them.

    Args:
        settings: in the order in which they were applied.
        defaults: of all keys.

    Returns:
        The problems; none for an unknown loss, or one that does not say what it reads.
    """
    name, since = defaults[_NAME], 0
    for setting in settings:
        if setting.key == _NAME and setting.value != name:
            name, since = setting.value, setting.layer
    architecture = cfg.MODEL.META_ARCHITECTURE
    if _is_detectron2s(architecture):
        return [
            f"{place}: {key} is {value}, but MODEL.META_ARCHITECTURE {architecture} has a loss of its own: remove it, "
            "or set MODEL.META_ARCHITECTURE to FocalRetinaNet"
            for key, value, place, _ in settings
            if key.startswith(_GROUP)
        ] + [
            f"{place}: {key} is {value}, but MODEL.META_ARCHITECTURE {architecture} does not read it: remove it, "
            "or set MODEL.META_ARCHITECTURE to FocalRetinaNet"
            for key, value, place, _ in settings
            if key.startswith(_SPEED) and value is True and key != _SPEED + "FUSED_SGD"
        ]
    reads = _reads(name)
    if reads is None:
        return []
    problems = []
    for key, value, place, layer in settings:
        if key in (*reads, _NAME) or not (key.startswith(_GROUP) or key in _OF_DETECTRON2):
            continue
        if layer < since:
            _set(cfg, key, defaults[key])
        elif key.startswith(_GROUP) or place == COMMAND_LINE or value != defaults[key]:
            readers = [other for other, _ in DENSE_LOSS_REGISTRY if key in (_reads(other) or ())]
            problems.append(
                f"{place}: {key} is {value}, but the loss is {name}, which reads {' and '.join(reads) or 'no key'}: "
                f"remove it, or set {_NAME} to {' or '.join(readers)}"
            )
    return problems


def without_unread_keys(cfg: CfgNode) -> CfgNode:
    """A copy without what the chosen loss does not read, for saving: it holds what was used, and can be read again."""
    cfg = cfg.clone()
    cfg.defrost()
    group = cfg.MODEL.FOCAL_DET.LOSS
    reads = _reads(group.NAME)
    if _is_detectron2s(cfg.MODEL.META_ARCHITECTURE):
        del cfg.MODEL.FOCAL_DET["LOSS"]
        for leaf in set(cfg.MODEL.FOCAL_DET.SPEED) - {"FUSED_SGD"}:
            del cfg.MODEL.FOCAL_DET.SPEED[leaf]
    elif reads is not None:
        for leaf in set(group) - {"NAME"}:
            if _GROUP + leaf not in reads:
                del group[leaf]
    return cfg


def constants_of_loss(cfg: CfgNode) -> list[str]:
    """ "KEY VALUE" of each key that the chosen loss reads."""
    return [f"{key} {_get(cfg, key)}" for key in _reads(cfg.MODEL.FOCAL_DET.LOSS.NAME) or ()]


def _reads(name: str) -> tuple[str, ...] | None:
    return getattr(DENSE_LOSS_REGISTRY.get(name), "reads", None) if name in DENSE_LOSS_REGISTRY else None


def _is_detectron2s(architecture: str) -> bool:
    known = architecture in META_ARCH_REGISTRY
    return known and META_ARCH_REGISTRY.get(architecture).__module__.startswith("detectron2.")


def _get(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _set(cfg: CfgNode, key: str, value: Any) -> None:
    group, leaf = key.rsplit(".", 1)
    _get(cfg, group)[leaf] = value
