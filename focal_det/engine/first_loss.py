"""The start-up check of the prior initialisation (section 3.3)."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn

from ..modeling.criterion import DenseCriterion


class CheckFirstLoss(HookBase):
    """Compare the first class loss with what it is if every anchor scores the prior; warn if it is far from that.

    What is expected comes from the criterion itself, given logits that are all log(pi / (1 - pi)), on the same
    objects. Both go into the metrics, as "start_cls" and "start_cls_of_prior". On every rank.

    Args:
        criterion: of the model that is trained, whose class subnet is as it was initialised.
        prior_prob: pi, in (0, 1).
    """

    # A subnet's first scores scatter around the prior, so their mean loss is near its loss but not equal to it.
    _FACTOR = 2.0

    def __init__(self, criterion: DenseCriterion, prior_prob: float) -> None:
        self.criterion = criterion
        self.prior_prob = prior_prob

    def before_train(self) -> None:
        untouched = copy.deepcopy(self.criterion)  # its normaliser's average is that of before the step

        def compare(_: nn.Module, args: tuple[Any, ...], losses: dict[str, Tensor]) -> None:
            handle.remove()
            logits, *rest = args
            with torch.no_grad():
                of_prior = untouched(torch.full_like(logits, -math.log(1 / self.prior_prob - 1)), *rest)
            self._report(losses["loss_cls"].item(), of_prior["loss_cls"].item())

        handle = self.criterion.register_forward_hook(compare)

    def _report(self, first: float, of_prior: float) -> None:
        self.trainer.storage.put_scalars(start_cls=first, start_cls_of_prior=of_prior, smoothing_hint=False)
        logger = logging.getLogger(__name__)
        message = f"first class loss {first:.4g}; MODEL.RETINANET.PRIOR_PROB {self.prior_prob} implies {of_prior:.4g}"
        if of_prior / self._FACTOR <= first <= of_prior * self._FACTOR:
            logger.info(message)
        else:
            logger.warning(
                f"{message}. The class scores do not start at the prior: does the head apply it, "
                "and do MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and the norms fit the backbone's weights?"
            )
