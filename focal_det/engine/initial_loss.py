"""Check at the start that the class scores begin at the prior (section 3.3)."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn

from ..modeling.criterion import DenseCriterion
from ..modeling.head import logit_of

logger = logging.getLogger(__name__)


class InitialLossCheck(HookBase):
    """Compare the first class loss with the loss if every anchor scores the prior; warn if they are far apart.

    The expected loss comes from the criterion itself, on the same objects, with logits that are all
    log(pi / (1 - pi)); in that one step this takes the memory of the logits again. Both go into the metrics, as
    "start_cls" and "start_cls_of_prior". On every rank, for a class subnet that is as it was initialised. A step may
    call the criterion for several parts of its batch.
    """

    # A subnet's first scores scatter around the prior, so their mean loss is near its loss and not equal to it.
    FACTOR = 2.0

    def __init__(self, criterion: DenseCriterion, prior_prob: float, parts: int = 1) -> None:
        self.criterion, self.prior_prob, self.parts = criterion, prior_prob, parts

    def before_train(self) -> None:
        untouched = copy.deepcopy(self.criterion)  # with its normaliser's average from before the step
        found: list[tuple[float, float]] = []  # of each part

        def compare(_: nn.Module, args: tuple[Any, ...], losses: dict[str, Tensor]) -> None:
            levels, *rest = args
            prior = logit_of(self.prior_prob)
            # a loss that draws, draws for the next part what it would have drawn
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                expected = untouched([torch.full_like(level, prior) for level in levels], *rest)["loss_cls"].item()
            found.append((losses["loss_cls"].item(), expected))
            if len(found) < self.parts:
                return
            handle.remove()
            first, expected = map(sum, zip(*found, strict=True))
            self.trainer.storage.put_scalars(start_cls=first, start_cls_of_prior=expected, smoothing_hint=False)
            assert self.criterion.num_assigned is not None
            self._report(first, expected, has_objects=bool(self.criterion.num_assigned.any()))

        handle = self.criterion.register_forward_hook(compare)

    def _report(self, first: float, expected: float, *, has_objects: bool) -> None:
        message = f"first class loss {first:.4g}; MODEL.RETINANET.PRIOR_PROB {self.prior_prob} implies {expected:.4g}"
        if not has_objects:
            logger.info(f"{message}; not compared, since the first images have no objects")
        elif expected / self.FACTOR <= first <= expected * self.FACTOR:
            logger.info(message)
        else:
            logger.warning(
                f"{message}. The class scores do not start at the prior: does the head apply it, "
                "and do MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and the norms fit the backbone's weights?"
            )
