"""Convolutions with their frozen batch normalisation folded into the weights, in training and at inference alike.

A frozen normalisation is y = x * scale + shift per channel, so conv(x, w) * scale + shift = conv(x, w * scale) + shift:
two passes over the feature map and one over its gradient become one over the weights. The weights that are trained
and saved stay the unfolded ones, under the same names.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn


def fold_frozen_norms(module: nn.Module) -> None:
    """Turn, in place, every convolution of a module that a `FrozenBatchNorm2d` follows into a `FoldedConv2d`."""
    for child in module.modules():
        if type(child) is Conv2d and type(child.norm) is FrozenBatchNorm2d and child.bias is None:
            child.__class__ = FoldedConv2d  # all else that it is and has stays, hooks and names too


def bake_frozen_norms(module: nn.Module) -> None:
    """Replace, in place, every `FoldedConv2d` of a module by a plain convolution; for detectors that train no more."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FoldedConv2d):
                setattr(parent, name, child.baked())


class FoldedConv2d(Conv2d):
    """A Detectron2 `Conv2d` with a frozen norm, as one convolution.

    The result differs from two operations by rounding: ~1e-6 of its size in float32; under autocast it is nearer to
    the exact one, since scale and weight are multiplied in float32 and rounded once.
    """

    _kept: tuple[tuple[float, ...], Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        if type(self.norm) is FrozenBatchNorm2d:
            x = F.conv2d(x, *self._folded(), self.stride, self.padding, self.dilation, self.groups)
            return x if self.activation is None else self.activation(x)
        return super().forward(x)  # somebody has put another norm there

    def baked(self) -> Conv2d:
        """Return one convolution with the folded weights, without the norm; the activation stays."""
        sizes = self.in_channels, self.out_channels, self.kernel_size
        steps = self.stride, self.padding, self.dilation, self.groups
        conv = Conv2d(*sizes, *steps, activation=self.activation)
        with torch.no_grad():
            weight, bias = self._fold()
        conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        return conv

    def train(self, mode: bool = True) -> FoldedConv2d:
        """Set the mode, as of every module, and drop the weights kept for evaluation."""
        self._kept = None
        return super().train(mode)

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias; kept between calls of an evaluation while nothing has written to their sources.

        What PyTorch does not count, writing through `.data` and the step of a fused optimizer, goes unseen until the
        next `train()` or `eval()`; Detectron2's evaluation calls both.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or self.weight.is_inference():
            return self._fold()
        sources = (self.weight, self.norm.weight, self.norm.bias, self.norm.running_mean, self.norm.running_var)
        versions = (self.norm.eps, *(x for source in sources for x in (source.data_ptr(), source._version)))
        if self._kept is None or self._kept[0] != versions:
            self._kept = (versions, *self._fold())
        return self._kept[1:]

    def _fold(self) -> tuple[Tensor, Tensor]:
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # (C',)
        return self.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": None}
