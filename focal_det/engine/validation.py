"""The losses over a test set: whether the training still learns what it will be tested on."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetFromList, DatasetMapper, build_detection_test_loader
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context
from detectron2.utils import comm
from torch import Tensor, nn

from ..data.spread import evenly_spread
from ..modeling.normalizer import LossNormalizer
from ..modeling.retinanet import FocalRetinaNet
from .steps import unwrapped
from .stopping import stoppable

PICTURES = 200


def validation_losses(model: FocalRetinaNet, loader: Any) -> dict[str, float]:
    """Losses of a detector as it is used, over the pictures of a loader that all processes share.

    The normaliser of "global" and "ema" is the number of assigned anchors of all the pictures; of "image" each picture
    is divided by its own number, and the mean taken. So neither batches, nor processes, nor a moving average's state
    have a part in it. Pictures without objects count.

    Args:
        model: without a wrapper for several processes; it keeps its mode, its state and the criterion's.
        loader: of lists with one picture each, with "instances", as in training; this process's share.

    Returns:
        "val/loss_cls", "val/loss_box_reg" and their sum, "val/total_loss"; the same on every process.
    """
    criterion = model.criterion
    divisors = _KeptDivisors(criterion.normalizer.mode)
    sums: dict[str, float] = {}
    with inference_context(model), torch.no_grad():
        try:
            model.criterion = copy.deepcopy(criterion)
            model.criterion.normalizer = divisors
            model.training = True  # alone: it gives losses, and every part works as in detection
            for batch in loader:
                with torch.autocast(model.device.type, torch.bfloat16, enabled=model.bfloat16_inference):
                    losses = model(batch)
                for name, loss in losses.items():
                    sums[name] = sums.get(name, 0.0) + loss.item()
        finally:
            model.criterion = criterion
    shares = comm.all_gather((sums, divisors.total))
    total = max(sum(share[1] for share in shares), 1)
    names = dict.fromkeys(name for share in shares for name in share[0])
    means = {f"val/{name}": sum(share[0].get(name, 0.0) for share in shares) / total for name in names}
    return {**means, "val/total_loss": sum(means.values())}


class _KeptDivisors(LossNormalizer):
    """In the normaliser's place, for one picture at a time: what to divide by in the end is added up in `total`."""

    def __init__(self, mode: str) -> None:
        super().__init__(mode)
        self.total = 0

    def forward(self, num_assigned: Tensor) -> Tensor:
        if self.mode == "image":
            self.total += len(num_assigned)
            return num_assigned.clamp(min=1).float()
        self.total += int(num_assigned.sum())
        return torch.ones_like(num_assigned, dtype=torch.float32)


class ValidationLoss(HookBase):
    """Put `validation_losses` over the first test set into the metrics at every evaluation, and log them.

    At most `PICTURES` pictures, evenly spread, resized as for testing. On every process. The training goes on as it
    would without.

    Args:
        cfg: its data sets are registered.
        period: iterations, TEST.EVAL_PERIOD; 0 is at the end alone.
    """

    def __init__(self, cfg: CfgNode, period: int) -> None:
        self.cfg = cfg
        self.period = period
        self._records: list[dict[str, Any]] | None = None
        self._loader: Any = None

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if self.period > 0 and next_iter % self.period == 0 and next_iter < self.trainer.max_iter:
            self._record()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._record()

    def _record(self) -> None:
        self.trainer.storage.put_scalars(**self.measure(self.trainer.model), smoothing_hint=False)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """The losses by name; empty, with a line in the log the first time, where there are none to be had."""
        model = unwrapped(model)
        is_first = self._records is None
        if self._records is None:
            self._records = evenly_spread(DatasetCatalog.get(self.cfg.DATASETS.TEST[0]), PICTURES)
        if not isinstance(model, FocalRetinaNet) or not any(record.get("annotations") for record in self._records):
            if is_first:
                _log().info(f"No validation loss: {self._why_not(model)}")
            return {}
        self._loader = self._loader or self._build_loader(self._records)
        losses = validation_losses(model, self._loader)
        words = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
        _log().info(f"{words} over {len(self._records)} pictures of {self.cfg.DATASETS.TEST[0]}")
        return losses

    def _why_not(self, model: nn.Module) -> str:
        if isinstance(model, FocalRetinaNet):
            return f"data set {self.cfg.DATASETS.TEST[0]} has no annotated objects"
        return f"it is FocalRetinaNet's, and MODEL.META_ARCHITECTURE is {self.cfg.MODEL.META_ARCHITECTURE}"

    def _build_loader(self, records: list[dict[str, Any]]) -> Any:
        mapper = DatasetMapper(self.cfg, is_train=False)
        mapper.is_train = True  # else it leaves the annotations out; the picture is resized as for testing
        return stoppable(
            build_detection_test_loader(
                DatasetFromList(records, serialize=False), mapper=mapper, num_workers=self.cfg.DATALOADER.NUM_WORKERS
            )
        )


def _log() -> logging.Logger:
    return logging.getLogger(__name__)
