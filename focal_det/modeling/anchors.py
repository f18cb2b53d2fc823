"""Anchors (section 4, "Anchors"): boxes of several octave scales and aspect ratios at every feature location.

Shapes
    cell anchors: (A, 4)      XYXY around (0, 0), scales outermost, ratios innermost
    anchors:      (H*W*A, 4)  XYXY in pixels of the network's input, row-major over locations, anchors last
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGEST, _MOST_SCALES = 1e6, 100  # more is a slip


def cell_anchors(base_size: float, scales_per_octave: int, aspect_ratios: Sequence[float]) -> Tensor:
    """Anchors of one location: sizes base * 2^(k/S) for k = 0..S-1, each at every aspect ratio.

    Args:
        base_size: side of the square of the same area at the first scale, in pixels, > 0.
        scales_per_octave: S, >= 1; the paper's best is 3 (Table 1c).
        aspect_ratios: height / width, each > 0; the paper's are 1:2, 1:1, 2:1.

    Returns:
        (S * len(aspect_ratios), 4) float32. Computed in double precision and rounded once.

    Raises:
        ValueError: a value that is not finite and positive, or no aspect ratio.
    """
    if not 0 < base_size <= _LARGEST:
        raise ValueError(f"base_size={base_size} must be > 0 pixels and at most {_LARGEST:g}")
    if not 1 <= scales_per_octave <= _MOST_SCALES or int(scales_per_octave) != scales_per_octave:
        raise ValueError(f"scales_per_octave={scales_per_octave} must be an integer >= 1 and at most {_MOST_SCALES}")
    if not aspect_ratios or not all(0 < ratio <= _LARGEST for ratio in aspect_ratios):
        raise ValueError(f"aspect_ratios={list(aspect_ratios)} must be one or more numbers in (0, {_LARGEST:g}]")
    boxes = []
    for k in range(int(scales_per_octave)):
        area = (base_size * 2 ** (k / scales_per_octave)) ** 2.0
        for ratio in aspect_ratios:
            width = math.sqrt(area / ratio)
            height = ratio * width
            boxes.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(boxes, dtype=torch.float32)


def grid_anchors(cells: Tensor, height: int, width: int, stride: int, offset: float) -> Tensor:
    """Place the cell anchors at every location of a feature map.

    Args:
        cells: (A, 4) cell anchors.
        height, width: of the feature map, in locations.
        stride: pixels between neighbouring locations.
        offset: of the first location from the image's corner, in strides, in [0, 1).

    Returns:
        (height * width * A, 4), on the device of the cells.
    """
    first = offset * stride
    # In double precision and rounded once, whatever the offset; a count of integers can also be exported.
    shift_x = (torch.arange(width, dtype=torch.float64, device=cells.device) * stride + first).to(cells.dtype)
    shift_y = (torch.arange(height, dtype=torch.float64, device=cells.device) * stride + first).to(cells.dtype)
    y, x = torch.meshgrid(shift_y, shift_x, indexing="ij")
    shifts = torch.stack((x, y, x, y), dim=-1)  # (H, W, 4)
    return (shifts[:, :, None, :] + cells).reshape(-1, 4)  # (H*W*A, 4)
