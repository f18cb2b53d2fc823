"""Each class loss has keys of its own; one that is set for another loss would be passed over in silence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode

from .. import plugin  # noqa: F401 - registers the losses
from ..registries import DENSE_LOSS_REGISTRY

_GROUP = "MODEL.FOCAL_DET.LOSS."
_OF_DETECTRON2 = ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", "MODEL.RETINANET.FOCAL_LOSS_GAMMA")


def settle_loss_keys(cfg: CfgNode, settings: Iterable[tuple[str, Any, str]], defaults: dict[str, Any]) -> list[str]:
    """Refuse keys that were set for a loss that does not read them, and leave them out of the configuration.

    A saved configuration thus holds what was used, and can be read again. Detectron2's own two stay in it whatever
    the loss, so in a file they may have their default values.

    Args:
        settings: key, value and place of whatever was set.
        defaults: of all keys.

    Returns:
        The problems; none for an unknown loss, another detector, or a loss that does not say what it reads.
    """
    name = cfg.MODEL.FOCAL_DET.LOSS.NAME
    if name not in DENSE_LOSS_REGISTRY or cfg.MODEL.META_ARCHITECTURE != "FocalRetinaNet":
        return []
    reads = getattr(DENSE_LOSS_REGISTRY.get(name), "reads", None)
    if reads is None:
        return []
    problems = []
    for key, value, place in settings:
        in_group = key.startswith(_GROUP) and key != _GROUP + "NAME"
        if key in reads or not (in_group or key in _OF_DETECTRON2):
            continue
        if in_group or place == "command line" or value != defaults[key]:
            readers = [other for other, loss in DENSE_LOSS_REGISTRY if key in getattr(loss, "reads", ())]
            problems.append(
                f"{place}: {key} is {value}, but the loss is {name}, which reads {' and '.join(reads) or 'no key'}: "
                f"leave it out, or set {_GROUP}NAME to {' or '.join(readers)}"
            )
    group = cfg.MODEL.FOCAL_DET.LOSS
    for leaf in list(group):
        if leaf != "NAME" and _GROUP + leaf not in reads:
            del group[leaf]
    return problems
