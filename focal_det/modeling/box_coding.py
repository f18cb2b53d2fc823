"""Boxes as four offsets from an anchor, the parameterisation of R-CNN that the box subnet regresses.

With (x, y, w, h) centre and sides of a box and (xa, ya, wa, ha) those of its anchor, the deltas are

    dx = (x - xa) / wa    dy = (y - ya) / ha    dw = log(w / wa)    dh = log(h / ha)

each times its weight. Shapes: boxes, anchors and deltas (..., 4); boxes and anchors XYXY in pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

# A predicted side is at most 1000 / 16 times its anchor's, so that exp() cannot overflow: from a 16 px
# anchor to a 1000 px image (the bound that R-CNN's descendants share).
MAX_LOG_SCALE = math.log(1000.0 / 16)


def check_box_weights(weights: Sequence[float]) -> None:
    """Raise ValueError unless there is one weight, in (0, 1e6], for each of dx, dy, dw and dh."""
    if len(weights) != 4 or not all(0 < weight <= 1e6 for weight in weights):
        raise ValueError(f"box_weights={list(weights)} must be four finite numbers > 0, at most 1e6")


def encode_boxes(boxes: Tensor, anchors: Tensor, *, weights: Sequence[float]) -> Tensor:
    """Return the deltas that take anchors to boxes. Sides of both must be > 0, else the deltas are inf or NaN.

    Raises:
        ValueError: see `check_box_weights`.
    """
    sides, anchor_sides = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    centres, anchor_centres = boxes[..., :2] + 0.5 * sides, anchors[..., :2] + 0.5 * anchor_sides
    shifts = (centres - anchor_centres) / anchor_sides
    scales = torch.log(sides / anchor_sides)
    return torch.cat((shifts, scales), dim=-1) * _on_device(tuple(weights), boxes.dtype, boxes.device)


def decode_boxes(deltas: Tensor, anchors: Tensor, *, weights: Sequence[float] | Tensor) -> Tensor:
    """Return the boxes that deltas make of anchors; inverse of `encode_boxes` up to the bound on the scales.

    Computed in float32 for half-precision deltas.

    Raises:
        ValueError: see `check_box_weights`; not of weights that are a tensor already.
    """
    if not isinstance(weights, Tensor):
        weights = _on_device(tuple(weights), anchors.dtype, anchors.device)
    deltas = deltas.to(anchors.dtype) / weights
    anchor_sides = anchors[..., 2:] - anchors[..., :2]
    anchor_centres = anchors[..., :2] + 0.5 * anchor_sides
    centres = deltas[..., :2] * anchor_sides + anchor_centres
    half_sides = 0.5 * (torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * anchor_sides)
    return torch.cat((centres - half_sides, centres + half_sides), dim=-1)


@functools.lru_cache(maxsize=16)
def _on_device(weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the weights, checked, as a tensor that is made once: a GPU would wait for each copy from the host."""
    check_box_weights(weights)
    with torch.inference_mode(False):
        return torch.tensor(weights, dtype=dtype, device=device)


def deltas_of_classes(deltas: Tensor, labels: Tensor) -> Tensor:
    """Return the deltas (..., 4) of each label's class.

    Args:
        deltas: (..., K*4), class by class; those of one box for all classes, (..., 4), are returned as they are.
        labels: (...); for one that is no class the deltas are those of some class.
    """
    if deltas.shape[-1] == 4:
        return deltas
    by_class = deltas.unflatten(-1, (-1, 4))  # (..., K, 4)
    places = labels.clamp(0, by_class.shape[-2] - 1)[..., None, None].expand(*labels.shape, 1, 4)
    return by_class.gather(-2, places).squeeze(-2)
