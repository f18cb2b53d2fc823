"""The registered anchor generator: octave anchors for every level of a pyramid, cached per feature shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from torch import Tensor, nn

from ..defaults import with_own_keys
from .anchors import cell_anchors, grid_anchors

# Multi-scale training meets some hundred padded shapes; the anchors of one take ~3 MB at 800x1344.
_MAX_CACHED_SHAPES = 32


class OctaveAnchorGenerator(nn.Module):
    """Anchors of S octave scales and several aspect ratios on each level (section 4, "Anchors").

    It has what Detectron2's architectures ask of an anchor generator: RPN and RetinaNet take it too.

    Args:
        strides: of each level, in pixels.
        base_sizes: of each level, in pixels: the side of the square anchor at the first scale. None for four strides,
            which are the paper's 32 to 512 on P3 to P7.
        scales_per_octave: S; level l has sizes base * 2^(k/S), k = 0..S-1.
        aspect_ratios: height / width.
        offset: of the first location from the image's corner, in strides, in [0, 1).

    Raises:
        ValueError: not one base size per level, or a value out of its range.
    """

    box_dim = 4  # the numbers of a box; Detectron2's name for it

    @configurable
    def __init__(
        self,
        *,
        strides: Sequence[int],
        base_sizes: Sequence[float] | None = None,
        scales_per_octave: int = 3,
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        base_sizes = [4 * stride for stride in strides] if base_sizes is None else list(base_sizes)
        if len(base_sizes) != len(strides):
            raise ValueError(
                f"{len(base_sizes)} base sizes {base_sizes} for {len(strides)} feature levels: give one for each, in "
                "MODEL.ANCHOR_GENERATOR.SIZES as [[32], [64], ...]"
            )
        if not 0 <= offset < 1:
            raise ValueError(f"anchor offset={offset} is outside [0, 1)")
        self.strides = tuple(strides)
        self.offset = offset
        for level, base_size in enumerate(base_sizes):
            cells = cell_anchors(base_size, scales_per_octave, aspect_ratios)
            self.register_buffer(f"cells{level}", cells, persistent=False)
        self._cache: OrderedDict[tuple[Any, ...], list[Tensor]] = OrderedDict()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        sizes, ratios = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
        if not all(isinstance(level, (list, tuple)) and len(level) == 1 for level in sizes):
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR.SIZES is {sizes}: OctaveAnchorGenerator takes one base size per level, "
                "such as [[32], [64], [128], [256], [512]], and makes the scales between by "
                "MODEL.FOCAL_DET.SCALES_PER_OCTAVE"
            )
        if len(ratios) != 1:
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS is {ratios}: OctaveAnchorGenerator takes one list of ratios "
                "for all levels, such as [[0.5, 1.0, 2.0]]"
            )
        return {
            "base_sizes": [level[0] for level in sizes],
            "scales_per_octave": with_own_keys(cfg).MODEL.FOCAL_DET.SCALES_PER_OCTAVE,
            "aspect_ratios": ratios[0],
            "strides": [level.stride for level in input_shape],
            "offset": cfg.MODEL.ANCHOR_GENERATOR.OFFSET,
        }

    @property
    def cell_anchors(self) -> list[Tensor]:
        """The cell anchors of each level, (A, 4) around (0, 0)."""
        return [self.get_buffer(f"cells{level}") for level in range(len(self.strides))]

    @property
    def num_cell_anchors(self) -> list[int]:
        """A of each level; RetinaNet's name for it."""
        return [len(cells) for cells in self.cell_anchors]

    @property
    def num_anchors(self) -> list[int]:
        """A of each level; RPN's name for it."""
        return self.num_cell_anchors

    def anchors(self, feature_shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return anchors (H*W*A, 4) of each level of (height, width), row-major over locations, anchors last.

        The tensors are shared between calls: do not write to them.
        """
        cells = self.cell_anchors
        key = (cells[0].device, cells[0].dtype, *feature_shapes)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        levels = [
            grid_anchors(level_cells, height, width, stride, self.offset)
            for level_cells, (height, width), stride in zip(cells, feature_shapes, self.strides, strict=True)
        ]
        self._cache[key] = levels
        if len(self._cache) > _MAX_CACHED_SHAPES:
            self._cache.popitem(last=False)
        return levels

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """Return `Boxes` of each level for features (N, C, H, W), as Detectron2's meta-architectures need them."""
        return [Boxes(level) for level in self.anchors([(f.shape[-2], f.shape[-1]) for f in features])]

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        self._cache.clear()  # the cells move to another device or dtype
        return super()._apply(fn, recurse)
