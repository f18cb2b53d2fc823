"""Convolution weights in 8 bits: a quarter of the file size. Computation stays in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LARGEST = 127  # symmetric, so that 0 stays 0
_WORTH_IT = 1024  # weights; smaller tensors stay as they are


def round_to_8_bits(model: nn.Module) -> None:
    """Round, in place, the convolutions' weights (C', C, h, w) to 255 levels of each output channel.

    The model itself is changed, so that it and its export are the same function.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() >= _WORTH_IT:
                levels, scale = _levels(module.weight)
                module.weight.copy_(levels * scale)


def _levels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers in -127..127 as floats, and their scale (C', 1, 1, 1)."""
    scale = (weight.abs().amax(dim=(1, 2, 3), keepdim=True) / _LARGEST).clamp(min=torch.finfo(weight.dtype).tiny)
    return (weight / scale).round(), scale


def store_in_8_bits(proto: Any) -> None:
    """Replace an ONNX model's rounded weights by integers and a node that multiplies them by their scale.

    Raises:
        ValueError: weights that `round_to_8_bits` has not rounded.
    """
    from onnx import helper, numpy_helper

    weights = {node.input[1] for node in proto.graph.node if node.op_type == "Conv"}
    nodes = []
    for initializer in list(proto.graph.initializer):
        name, value = initializer.name, torch.tensor(numpy_helper.to_array(initializer))
        if name not in weights or value.numel() < _WORTH_IT:
            continue
        levels, scale = _levels(value)
        if not torch.allclose(levels * scale, value, rtol=1e-6, atol=0):
            raise ValueError(f"weights {name} were not rounded to 8 bits before the export")
        proto.graph.initializer.remove(initializer)
        for array, part in ((levels.numpy().astype(np.int8), "levels"), (scale.flatten().numpy(), "scale")):
            proto.graph.initializer.append(numpy_helper.from_array(array, f"{name}.{part}"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.levels", f"{name}.scale"], [name], axis=0))
    kept = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes, *kept])  # before those that read them
