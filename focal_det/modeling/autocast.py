"""Which parts of a model stay in float32 under bfloat16 autocast."""

from __future__ import annotations

from typing import Any

import torch


def keep_top_in_float32(model: torch.nn.Module) -> None:
    """Keep P6 and P7 out of autocast, if the model is on a processor.

    For a 3x3 convolution with stride 2 on a 1x1 map, which small images have at P7, PyTorch 2.15's bfloat16 kernel
    does not write the weight's gradient at the taps that meet only padding, so these hold whatever was in memory.
    P6 and P7 are few operations, so float32 costs nothing.
    """
    for name, module in model.named_modules():
        if name.endswith("top_block") and any(p.device.type == "cpu" for p in module.parameters()):
            _compute_in_float32(module)  # a top block that only pools has no parameters


def _compute_in_float32(module: torch.nn.Module) -> None:
    forward = module.forward

    def forward_in_float32(x: torch.Tensor) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    module.forward = forward_in_float32
