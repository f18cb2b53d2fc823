"""The start-up check of the prior initialisation (section 3.3)."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn

from ..modeling.criterion import DenseCriterion
from ..modeling.head import logit_of


class CheckFirstLoss(HookBase):
    """Compare the first class loss with what it is if every anchor scores the prior; warn if it is far from that.

    What is expected comes from the criterion itself, given logits that are all log(pi / (1 - pi)), on the same
    objects; for that one step it takes the memory of the logits again. Both go into the metrics, as "start_cls" and
    "start_cls_of_prior". On every rank.

    Args:
        criterion: of the model that is trained, whose class subnet is as it was initialised.
        prior_prob: pi, in (0, 1).
    """

    # A subnet's first scores scatter around the prior, so their mean loss is near its loss but not equal to it.
    FACTOR = 2.0

    def __init__(self, criterion: DenseCriterion, prior_prob: float) -> None:
        self.criterion = criterion
        self.prior_prob = prior_prob

    def before_train(self) -> None:
        untouched = copy.deepcopy(self.criterion)  # its normaliser's average is that of before the step

        def compare(_: nn.Module, args: tuple[Any, ...], losses: dict[str, Tensor]) -> None:
            handle.remove()
            levels, *rest = args
            prior = logit_of(self.prior_prob)
            with torch.no_grad():
                of_prior = untouched([torch.full_like(level, prior) for level in levels], *rest)["loss_cls"].item()
            first = losses["loss_cls"].item()
            self.trainer.storage.put_scalars(start_cls=first, start_cls_of_prior=of_prior, smoothing_hint=False)
            assert untouched.num_assigned is not None
            self._report(first, of_prior, has_objects=bool(untouched.num_assigned.any()))

        handle = self.criterion.register_forward_hook(compare)

    def _report(self, first: float, of_prior: float, *, has_objects: bool) -> None:
        logger = logging.getLogger(__name__)
        message = f"first class loss {first:.4g}; MODEL.RETINANET.PRIOR_PROB {self.prior_prob} implies {of_prior:.4g}"
        if not has_objects:
            logger.info(f"{message}; not compared, since the first pictures have no objects")
        elif of_prior / self.FACTOR <= first <= of_prior * self.FACTOR:
            logger.info(message)
        else:
            logger.warning(
                f"{message}. The class scores do not start at the prior: does the head apply it, "
                "and do MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and the norms fit the backbone's weights?"
            )
