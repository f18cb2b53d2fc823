"""In which keys a configuration differs from the defaults, and who set them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from detectron2.config import CfgNode, get_cfg

from ..config import add_focal_det_config
from .config_file import leaves
from .loss_keys import without_unread_keys

INFERRED = "inferred"


class Change(NamedTuple):
    """A key whose value is not the default; place is a file, "command line" or "inferred"."""

    key: str
    default: Any
    value: Any
    place: str


def config_changes(cfg: CfgNode, loaded: CfgNode, places: Mapping[str, str]) -> tuple[Change, ...]:
    """The keys of a configuration that differ from Detectron2's defaults, or focal_det's, in their order.

    Args:
        cfg: as it will be used.
        loaded: as the files and the command line had it; what differs from that was settled since, such as the number
            of classes, which the data say.
        places: see `read_config`.
    """
    defaults = get_cfg()
    add_focal_det_config(defaults)
    default, before = dict(leaves(defaults)), dict(leaves(loaded))
    return tuple(
        Change(key, default[key], value, places.get(key, INFERRED) if value == before[key] else INFERRED)
        for key, value in sorted(leaves(without_unread_keys(cfg), default))
        if value != default[key]
    )
