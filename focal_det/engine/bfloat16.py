"""Training steps in bfloat16, on GPUs and on processors alike."""

from __future__ import annotations

import time
from typing import Any

import torch
from detectron2.engine import SimpleTrainer


class BFloat16Trainer(SimpleTrainer):
    """`SimpleTrainer` with the forward pass under autocast; bfloat16 has float32's range, so no loss is scaled."""

    def __init__(self, model: torch.nn.Module, data_loader: Any, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(model, data_loader, optimizer)
        keep_top_in_float32(model)

    def run_step(self) -> None:
        """One step: data, losses, gradients, update."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, dtype=torch.bfloat16):
            losses = self.model(data)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()


def keep_top_in_float32(model: torch.nn.Module) -> None:
    """Keep P6 and P7 out of autocast, if the model is on a processor.

    Of a 3x3 convolution with stride 2 on a 1x1 map, which small pictures have at P7,
    PyTorch 2.15's bfloat16 kernel leaves the taps that meet only padding unwritten in the weight's gradient, so they
    hold whatever was in memory. They are few operations, so float32 costs nothing.
    """
    for name, module in model.named_modules():
        if name.endswith("top_block") and next(module.parameters()).device.type == "cpu":
            _compute_in_float32(module)


def _compute_in_float32(module: torch.nn.Module) -> None:
    forward = module.forward

    def forward_in_float32(x: torch.Tensor) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    module.forward = forward_in_float32
