"""Which levels of a backbone the detector takes, and whether anchors and head fit them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.anchor_generator import build_anchor_generator
from torch import nn


def level_shapes(backbone: Backbone, in_features: Sequence[str]) -> list[ShapeSpec]:
    """Return the shape of each level; raise ValueError for one that the backbone does not have."""
    available = backbone.output_shape()
    missing = [name for name in in_features if name not in available]
    if missing or not in_features:
        raise ValueError(
            f"in_features (MODEL.RETINANET.IN_FEATURES) is {list(in_features)}, but the backbone's features are "
            f"{', '.join(available)}: name some of these, finest first, with as many MODEL.ANCHOR_GENERATOR.SIZES"
        )
    return [available[name] for name in in_features]


def anchor_generator_of(cfg: CfgNode, shapes: list[ShapeSpec]) -> nn.Module:
    """Build the anchor generator that the configuration names; raise ValueError where its values do not fit."""
    try:
        return build_anchor_generator(cfg, shapes)
    except AssertionError as error:  # Detectron2's say what is wrong, and not where
        keys = cfg.MODEL.ANCHOR_GENERATOR
        raise ValueError(
            f"{keys.NAME} cannot be built with MODEL.ANCHOR_GENERATOR.SIZES {keys.SIZES}, ASPECT_RATIOS "
            f"{keys.ASPECT_RATIOS} and OFFSET {keys.OFFSET} for MODEL.RETINANET.IN_FEATURES "
            f"{cfg.MODEL.RETINANET.IN_FEATURES}: {error}"
        ) from error


def check_upright(generator: Any) -> None:
    """Raise ValueError for rotated anchors, which RetinaNet cannot regress from, ours or Detectron2's."""
    if getattr(generator, "box_dim", 4) != 4:
        raise ValueError(
            f"{type(generator).__name__} makes anchors of {generator.box_dim} numbers, and RetinaNet detects upright "
            "boxes, which have 4: set MODEL.ANCHOR_GENERATOR.NAME to OctaveAnchorGenerator or DefaultAnchorGenerator"
        )


def check_anchors(generator: Any, in_features: Sequence[str], shapes: Sequence[ShapeSpec]) -> None:
    """Raise ValueError for anchors that are not upright boxes of these levels."""
    check_upright(generator)
    strides = [level.stride for level in shapes]
    own_strides = list(getattr(generator, "strides", strides))
    if own_strides != strides:
        raise ValueError(
            f"the anchor generator has strides {own_strides}, but the levels {', '.join(in_features)} have "
            f"{strides}: give it these"
        )


def head_sizes(levels: Sequence[ShapeSpec], anchor_generator: Any) -> dict[str, int]:
    """Return what the levels and their anchors decide of a head: in_channels, num_levels and num_anchors.

    Raises:
        ValueError: levels that one head cannot serve.
    """
    num_anchors, channels = anchor_generator.num_cell_anchors, [level.channels for level in levels]
    if len(set(num_anchors)) != 1 or len(set(channels)) != 1:
        raise ValueError(
            f"one head serves all levels, so they need equal numbers of anchors and channels; they have {num_anchors} "
            f"anchors and {channels} channels: change MODEL.ANCHOR_GENERATOR.SIZES or ASPECT_RATIOS, or "
            "MODEL.RETINANET.IN_FEATURES to levels of one pyramid"
        )
    return {"in_channels": channels[0], "num_levels": len(levels), "num_anchors": num_anchors[0]}
