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
    """Replace, in place, every convolution of a module that a `FrozenBatchNorm2d` follows by a `FoldedConv2d`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is Conv2d and type(child.norm) is FrozenBatchNorm2d and child.bias is None:
                setattr(parent, name, FoldedConv2d(child))


class FoldedConv2d(nn.Module):
    """A Detectron2 `Conv2d` with a frozen norm, as one convolution; parameters and their names are the same.

    The result differs from two operations by rounding: ~1e-6 of its size in float32; under autocast it is nearer to
    the exact one, since scale and weight are multiplied in float32 and rounded once.
    """

    def __init__(self, conv: Conv2d) -> None:
        super().__init__()
        self.weight = conv.weight
        self.norm = conv.norm
        self.activation = conv.activation
        self.geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self._kept: tuple[tuple[int, ...], Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        if type(self.norm) is FrozenBatchNorm2d:
            x = F.conv2d(x, *self._folded(), *self.geometry)
        else:  # somebody has put another norm there
            x = self.norm(F.conv2d(x, self.weight, None, *self.geometry))
        return x if self.activation is None else self.activation(x)

    def train(self, mode: bool = True) -> FoldedConv2d:
        """As of every module; what is kept for evaluation is made anew."""
        self._kept = None
        return super().train(mode)

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias; kept between calls of an evaluation, as long as nothing has written to their sources.

        What is written through `.data` between two calls without an `eval()` goes unseen, since PyTorch does not count
        it; Detectron2's evaluation calls `eval()` first.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or self.weight.is_inference():
            return self._fold()
        sources = (self.weight, self.norm.weight, self.norm.bias, self.norm.running_mean, self.norm.running_var)
        versions = tuple(number for source in sources for number in (source.data_ptr(), source._version))
        if self._kept is None or self._kept[0] != versions:
            self._kept = (versions, *self._fold())
        return self._kept[1:]

    def _fold(self) -> tuple[Tensor, Tensor]:
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # (C',)
        return self.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": None}
