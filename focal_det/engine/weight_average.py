"""The exponential moving average (EMA) of the weights, evaluated and saved beside them; the training never reads it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..checkpoint.checkpointer import RunCheckpointer
from ..checkpoint.safe_load import check_finite
from ..divergence.check import weights_are_finite
from ..output_layout import FINAL_EMA_CHECKPOINT

logger = logging.getLogger(__name__)


class WeightAverage:
    """A copy of a model whose weights are the EMA of the model's, as a part of a checkpoint.

    Not PyTorch's `AveragedModel`, which copies its counter to the device at every update, for which a GPU is waited
    for. Every rank averages its own weights, which are those of all. Buffers, such as batch normalisation's statistics,
    are averaged as the weights that they belong to are; whole numbers among them are copied.

    Args:
        model: not wrapped, on its device; later updates are from this one or one like it.
        decay: in (0, 1), which the warm-up leads to; see `decay_after`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = copy.deepcopy(model).requires_grad_(False), decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Average the model's weights in, in place, without waiting for the device; at first copy them."""
        averaged, current = _tensors(self.model), _tensors(model)
        if self.updates == 0:
            for mean, value in zip(averaged, current, strict=True):
                mean.copy_(value)
        else:
            fractions = [pair for pair in zip(averaged, current, strict=True) if pair[0].is_floating_point()]
            average = get_ema_multi_avg_fn(decay_after(self.updates, self.decay))
            average(*map(list, zip(*fractions, strict=True)), None)
            for mean, value in zip(averaged, current, strict=True):
                if not mean.is_floating_point():
                    mean.copy_(value)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the weights under the names that the model's have, and the number of updates."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load it; raise NonFiniteWeightsError for an average that is infinite or NaN."""
        check_finite(state["model"], "the EMA's")
        self.model.load_state_dict(state["model"])
        self.updates = int(state["updates"])


def decay_after(updates: int, decay: float) -> float:
    """Return the weight of the average so far, beside 1 minus it of the newest weights.

    The warm-up is that of TensorFlow's `ExponentialMovingAverage` with `num_updates`: (1 + n) / (10 + n), with which
    the average is over about the last ninth of the training, however short, and never mostly of its first weights.
    """
    return min(decay, (1 + updates) / (10 + updates))


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return list(chain(model.parameters(), model.buffers()))


class AverageWeights(HookBase):
    """Update a `WeightAverage` after every step, and write model_final_ema.pth at the end.

    Its place is before what saves. Weights that are not finite are not averaged in where they are looked at, which is
    before every save and evaluation; where they are not, the loss of a later step ends the training before any.

    Args:
        model: whose weights are averaged, not wrapped.
        is_due: whether an iteration's numbers are looked at, see `when_due`.
    """

    def __init__(
        self, average: WeightAverage, model: nn.Module, checkpointer: RunCheckpointer, is_due: Callable[[int], bool]
    ) -> None:
        self.average, self.model, self.checkpointer, self.is_due = average, model, checkpointer, is_due

    def before_train(self) -> None:
        if self.trainer.start_iter > 0 and self.average.updates == 0:
            logger.warning(
                f"The checkpoint has no EMA: it begins with the weights after {self.trainer.start_iter} iterations"
            )
            self.average.update(self.model)

    def after_step(self) -> None:
        if self.is_due(self.trainer.iter) and not weights_are_finite(self.model):
            logger.warning(f"Weights became infinite or NaN at iteration={self.trainer.iter}; the EMA leaves them out")
            return
        self.average.update(self.model)

    def after_train(self) -> None:
        done = self.trainer.max_iter
        if self.trainer.iter + 1 >= done:
            self.checkpointer.save_weights(FINAL_EMA_CHECKPOINT, self.average.model.state_dict(), iteration=done - 1)
