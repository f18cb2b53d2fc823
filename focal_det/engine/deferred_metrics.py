"""Losses that are read from a GPU some steps at a time: to read one, the host waits until the step is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor


class DeferredMetrics:
    """For a `SimpleTrainer`, before it in the bases: every step's losses are kept on the device until they are due.

    Then they are written, and checked to be finite, one step after the other, as without it.

    Args:
        is_due: of an iteration, whether the losses are to be read after it.
        note: is told of an iteration whose losses are found to be no numbers.
    """

    iter: int

    def __init__(self, *args: Any, is_due: Callable[[int], bool], note: Callable[[int], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self._is_due, self._note = is_due, note
        self._pending: list[tuple[int, float, dict[str, Tensor]]] = []

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        losses = {prefix + name: loss.detach() for name, loss in loss_dict.items()}
        self._pending.append((self.iter if iter is None else iter, data_time, losses))
        if self._is_due(self.iter):
            self.flush_metrics()

    def flush_metrics(self) -> None:
        """Write what is kept.

        Raises:
            FloatingPointError: a loss was infinite or NaN; the message says at which iteration.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        flat = torch.stack([loss.reshape(()) for _, _, losses in pending for loss in losses.values()]).cpu()  # one wait
        for iteration, data_time, losses in pending:
            values, flat = flat.split([len(losses), len(flat) - len(losses)])
            try:
                SimpleTrainer.write_metrics(dict(zip(losses, values, strict=True)), data_time, iteration)
            except FloatingPointError as error:
                self._note(iteration)
                raise FloatingPointError(f"{error}; --resume looks at each step there, and keeps what did it") from None
