"""How a model's convolutions are computed: with frozen norms folded into them, and under autocast in which format.

Frozen norms are folded in training and at inference alike. At inference what is made of the weights, folded and in
autocast's number format, is kept between calls. P6 and P7 can be kept out of autocast.

A frozen normalisation is y = x * scale + shift per channel, so conv(x, w) * scale + shift = conv(x, w * scale) + shift:
two passes over the feature map and one over its gradient become one over the weights. The weights that are trained
and saved stay the unfolded ones, under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
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


def keep_cast_weights(module: nn.Module) -> None:
    """Let, in place, every other convolution of a module, PyTorch's and Detectron2's, keep its cast weights, too."""
    for child in module.modules():
        if type(child) is nn.Conv2d and child.padding_mode == "zeros":
            vars(child).update(norm=None, activation=None)  # which makes it a Detectron2 convolution
        elif type(child) is not Conv2d:
            continue
        child.__class__ = KeptConv2d


def bake_frozen_norms(module: nn.Module) -> None:
    """Replace, in place, every `FoldedConv2d` of a module by a plain convolution; for detectors that train no more."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FoldedConv2d):
                setattr(parent, name, child.baked())


def keep_top_in_float32(module: nn.Module) -> None:
    """Keep, in place, P6 and P7 out of autocast, if the module is on a processor.

    For a 3x3 convolution with stride 2 on a 1x1 map, which small images have at P7, PyTorch 2.15's bfloat16 kernel
    does not write the weight's gradient at the taps that meet only padding, so these hold whatever was in memory.
    P6 and P7 are few operations, so float32 costs nothing.
    """
    for name, child in module.named_modules():
        if name.endswith("top_block") and any(p.device.type == "cpu" for p in child.parameters()):
            _compute_in_float32(child)  # a top block that only pools has no parameters


def _compute_in_float32(module: nn.Module) -> None:
    forward = module.forward

    def forward_in_float32(x: Tensor) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    module.forward = forward_in_float32


class KeptConv2d(Conv2d):
    """A Detectron2 `Conv2d` that keeps the weights of an evaluation in the format that autocast would cast them to.

    Autocast does it in every call: its own cache ends with its context, and has no weights that are not trained.
    """

    # By that format: what one evaluation keeps is still there, where it was, after another in another format.
    _kept: Mapping[torch.dtype | None, tuple[tuple[Any, ...], Tensor, Tensor | None]] = MappingProxyType({})
    mode_changes = 0

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        x = F.conv2d(x, *self._weights(x.device.type), self.stride, self.padding, self.dilation, self.groups)
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)

    def train(self, mode: bool = True) -> KeptConv2d:
        """Set the mode, as of every module, and drop the weights kept for evaluation, which a graph may read."""
        self._kept = {}
        self.mode_changes += 1
        return super().train(mode)

    def _weights(self, device: str) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias; kept between calls of an evaluation while nothing has written to their sources.

        What PyTorch does not count, writing through `.data` and the step of a fused optimizer, goes unseen until the
        next `train()` or `eval()`; Detectron2's evaluation calls both.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or self.weight.is_inference():
            return self._make()
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        state = self._state()
        kept = self._kept.get(dtype)
        if kept is None or kept[0] != state:
            weight, bias = self._make()
            if dtype is not None:
                weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
            kept = (state, weight, bias)
            self._kept = {**self._kept, dtype: kept}
        return kept[1:]

    def _state(self) -> tuple[Any, ...]:
        """Return what changes with every write to what `_make` reads."""
        return _versions(self.weight) if self.bias is None else _versions(self.weight, self.bias)

    def _make(self) -> tuple[Tensor, Tensor | None]:
        return self.weight, self.bias

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": {}}


class FoldedConv2d(KeptConv2d):
    """A Detectron2 `Conv2d` with a frozen norm, as one convolution.

    The result differs from two operations by rounding: ~1e-6 of its size in float32; under autocast it is nearer to
    the exact one, since scale and weight are multiplied in float32 and rounded once.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        if type(self.norm) is not FrozenBatchNorm2d:  # somebody has put another norm there
            return Conv2d.forward(self, x)
        x = F.conv2d(x, *self._weights(x.device.type), self.stride, self.padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)

    def baked(self) -> Conv2d:
        """Return one convolution with the folded weights, without the norm; the activation stays."""
        sizes = self.in_channels, self.out_channels, self.kernel_size
        steps = self.stride, self.padding, self.dilation, self.groups
        conv = Conv2d(*sizes, *steps, activation=self.activation)
        with torch.no_grad():
            weight, bias = self._make()
        conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        return conv

    def _state(self) -> tuple[Any, ...]:
        norm = self.norm
        return (norm.eps, *_versions(self.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var))

    def _make(self) -> tuple[Tensor, Tensor]:
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # (C',)
        return self.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


def _versions(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(x for tensor in tensors for x in (tensor.data_ptr(), tensor._version))


def is_slow_channels_last(device: str, *modules: nn.Module) -> bool:
    """Tell whether GroupNorm is there: PyTorch 2.15's backward of it is 35 times slower in channels_last bfloat16."""
    return device == "cpu" and any(isinstance(m, nn.GroupNorm) for module in modules for m in module.modules())
