"""Measure the losses over a test set: whether the training still learns what it will be tested on."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_context
from detectron2.utils import comm
from torch import Tensor, nn

from ..data.shared_records import build_annotated_loader, read_evaluated_records
from ..data.statistics import evenly_spread
from ..data.tile_records import counted_records
from ..distributed.cluster import unwrapped
from ..distributed.graceful_stop import stoppable
from ..distributed.heartbeat import busy
from ..modeling.normalizer import LossNormalizer
from ..modeling.retinanet import FocalRetinaNet
from ..output_layout import EMA
from .hooks import PeriodicAndFinal
from .weight_average import WeightAverage

logger = logging.getLogger(__name__)
IMAGES = 200


def validation_losses(model: FocalRetinaNet, loader: Any) -> dict[str, float]:
    """Compute a detector's losses in evaluation mode, over the images of a loader that all processes share.

    The normaliser of "global" and "ema" is the number of assigned anchors in all images; with "image" each image is
    divided by its own number and the mean taken. So neither batches nor processes nor a moving average's state affect
    it. Images without objects count. The model keeps its mode, its state and the criterion's.

    Args:
        loader: this process's share, in lists of one image each, with "instances" as in training.

    Returns:
        "val/loss_cls", "val/loss_box_reg" and their sum, "val/total_loss"; the same on every process.
    """
    criterion = model.criterion
    divisors = _KeptDivisors(criterion.normalizer.mode)
    sums: dict[str, Tensor] = {}  # on the device, which nobody waits for between two images
    with inference_context(model), torch.no_grad():
        try:
            model.criterion = copy.deepcopy(criterion)
            model.criterion.normalizer = divisors
            model.training = True  # of it alone: it returns losses, and every part works as in detection
            for batch in loader:
                with torch.autocast(model.device.type, torch.bfloat16, enabled=model.bfloat16_inference):
                    losses = model(batch)
                for name, loss in losses.items():
                    sums[name] = sums.get(name, 0.0) + loss.double()
        finally:
            model.criterion = criterion
    shares = comm.all_gather(({name: loss.item() for name, loss in sums.items()}, int(divisors.total)))
    total = max(sum(share[1] for share in shares), 1)
    names = dict.fromkeys(name for share in shares for name in share[0])
    means = {f"val/{name}": sum(share[0].get(name, 0.0) for share in shares) / total for name in names}
    return {**means, "val/total_loss": sum(means.values())}


class _KeptDivisors(LossNormalizer):
    """Stand in for the normaliser, one image at a time, and add up in `total` what to divide by in the end."""

    def __init__(self, mode: str) -> None:
        super().__init__(mode)
        self.total: int | Tensor = 0

    def forward(self, num_assigned: Tensor) -> Tensor:
        if self.mode == "image":
            self.total += len(num_assigned)
            return num_assigned.clamp(min=1).float()
        self.total += num_assigned.sum()
        return torch.ones_like(num_assigned, dtype=torch.float32)


class ValidationLoss(PeriodicAndFinal):
    """Put `validation_losses` over the first test set with objects into the metrics at every evaluation, and log them.

    At most `IMAGES` images, or tiles as in training, evenly spread, resized as for testing; on every process. The
    training is not changed by it. Those of its EMA, if it has one, have names that begin with "ema/".
    """

    def __init__(self, cfg: CfgNode, period: int, average: WeightAverage | None = None) -> None:
        super().__init__(period)
        self.cfg, self.average = cfg, average
        self._records: list[dict[str, Any]] | None = None
        self._set = ""
        self._loader: Any = None

    def act(self) -> None:
        measured = self.measure(self.trainer.model)
        if self.average:
            measured |= self.measure(self.average.model, f"{EMA}/")
        self.trainer.storage.put_scalars(**measured, smoothing_hint=False)

    def measure(self, model: nn.Module, prefix: str = "") -> dict[str, float]:
        """Return the losses by name; none, with one line in the log, where they cannot be measured."""
        model = unwrapped(model)
        is_first = self._records is None
        if self._records is None:
            with busy():  # where the parser may keep the heartbeats waiting
                self._set, self._records = self._choose()
        if not isinstance(model, FocalRetinaNet):
            reason = f"it is FocalRetinaNet's, and MODEL.META_ARCHITECTURE is {self.cfg.MODEL.META_ARCHITECTURE}"
        elif not _has_objects(self._records):
            reason = f"data set {', '.join(self.cfg.DATASETS.TEST)} has no annotated objects"
        else:
            if self._loader is None:
                self._loader = stoppable(build_annotated_loader(self.cfg, self._records))
            losses = {prefix + name: loss for name, loss in validation_losses(model, self._loader).items()}
            text = ", ".join(f"{key} {loss:.4g}" for key, loss in losses.items())
            logger.info(f"{text} over {counted_records(self._records)} of {self._set}")
            return losses
        if is_first:
            logger.info(f"No validation loss: {reason}")
        return {}

    def _choose(self) -> tuple[str, list[dict[str, Any]]]:
        """Return name and images of the first test set that has objects, or of the last."""
        for name in self.cfg.DATASETS.TEST:
            records = evenly_spread(read_evaluated_records(self.cfg, name), IMAGES)
            if _has_objects(records):
                break
        return name, records


def _has_objects(records: Sequence[dict[str, Any]]) -> bool:
    return any(record.get("annotations") for record in records)
