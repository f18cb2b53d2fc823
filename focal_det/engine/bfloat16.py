"""Training steps in bfloat16, on GPUs and on processors alike."""

from __future__ import annotations

import time

import torch
from detectron2.engine import SimpleTrainer


class BFloat16Trainer(SimpleTrainer):
    """`SimpleTrainer` with the forward pass under autocast; bfloat16 has float32's range, so no loss is scaled."""

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
