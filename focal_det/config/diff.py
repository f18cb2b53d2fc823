"""In which keys a configuration differs from the defaults, and who set them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from .layers import leaves
from .plugins import default_config
from .unused_keys import without_unread_keys

INFERRED = "inferred"


class Change(NamedTuple):
    """A key whose value is not the default, and who set it: a file, "command line" or "inferred"."""

    key: str
    default: Any
    value: Any
    place: str


def config_changes(cfg: CfgNode, loaded: CfgNode, places: Mapping[str, str]) -> tuple[Change, ...]:
    """Return the keys whose values differ from the defaults, Detectron2's, focal_det's and plug-ins', sorted.

    Args:
        cfg: as it will be used.
        loaded: as the files and the command line had it; what differs from that was inferred since, such as the number
            of classes, which the data say.
        places: see `ConfigAsRead`.
    """
    default, as_loaded = dict(leaves(default_config())), dict(leaves(loaded))
    return tuple(
        Change(key, default[key], value, places.get(key, INFERRED) if value == as_loaded[key] else INFERRED)
        for key, value in sorted(leaves(without_unread_keys(cfg), default))
        if value != default[key]
    )
