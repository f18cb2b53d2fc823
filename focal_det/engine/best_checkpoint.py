"""Keep the best model so far, and the best EMA of its weights, beside the newest."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoint.checkpointer import RunCheckpointer
from ..checkpoint.integrity import DamagedError, contents
from ..checkpoint.run_record import RunRecord
from ..files import put_aside
from ..output_layout import BEST_CHECKPOINT, BEST_EMA_CHECKPOINT, score_prefix
from .weight_average import WeightAverage

logger = logging.getLogger(__name__)


class BestCheckpointer(HookBase):
    """Write model_best.pth whenever an evaluation's AP is higher than any before; on every process.

    The file itself records how good it is, so that no resume can forget it, whichever checkpoint it starts from. The
    hook's place is after the evaluation.

    Args:
        metric: the name of the AP in the metrics, such as "bbox/AP".
        average: the EMA whose AP that is, whose weights are then kept in model_best_ema.pth instead.
    """

    def __init__(self, checkpointer: RunCheckpointer, metric: str, average: WeightAverage | None = None) -> None:
        self.checkpointer, self.metric, self.average = checkpointer, metric, average
        self.file = BEST_EMA_CHECKPOINT if average else BEST_CHECKPOINT
        self.best: tuple[float, int] | None = None

    def after_step(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self.metric, (math.nan, -1))
        if iteration == self.trainer.iter:  # else it is the AP of an earlier evaluation
            self.consider(value, min(iteration, self.trainer.max_iter - 1))  # the last evaluation counts one more

    after_train = after_step

    def before_train(self) -> None:
        """Take the best so far from its file, if there is one, as an earlier start may have left it."""
        path = Path(self.checkpointer.save_dir) / self.file
        if not comm.is_main_process() or not path.is_file():
            return
        try:
            held = contents(path, checksums=True)
            best = float(held["best"]["AP"]), int(held["best"]["iteration"]) + 1
            before, now = RunRecord.read(held.get("run")), self.checkpointer.record
            if before and now and not before.tested_on.is_same_as(now.tested_on):
                logger.warning(
                    f"{path} is the best on another test set, {before.tested_on.name} of "
                    f"{before.tested_on.images} images: it is now {put_aside(path)}"
                )
                return
            self.best = best
        except (DamagedError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            problem = f"is damaged ({error})" if isinstance(error, DamagedError) else "does not say what its AP was"
            logger.warning(f"{path} {problem}: it is now {put_aside(path)}")

    def consider(self, ap: float, iteration: int) -> None:
        """Keep the model if its AP, in points, is the best, which NaN never is; the iteration is counted from 0."""
        if math.isnan(ap) or (self.best is not None and ap <= self.best[0]):
            return
        before = f", was {self.best[0]:.2f} after {self.best[1]}" if self.best else ""
        self.best = ap, iteration + 1
        state = {"iteration": iteration, "best": {"AP": ap, "iteration": iteration}}
        if self.average:
            path = self.checkpointer.save_weights(self.file, self.average.model.state_dict(), **state)
        else:
            path = self.checkpointer.save_best(**state)
        which = " of the EMA" if self.average else ""
        logger.info(f"Best AP so far{which} {ap:.2f} after {iteration + 1} iterations{before}: {path}")


def best_of(checkpointers: Iterable[BestCheckpointer]) -> tuple[float, int] | None:
    """Return the best AP of all and the iterations after which it was reached; None before the first."""
    return max((one.best for one in checkpointers if one.best), key=lambda best: best[0], default=None)


def ap_name(cfg: CfgNode, record: RunRecord | None = None) -> str:
    """Return the name in the metrics of the AP by which models are compared; without a record the first test set's."""
    sets = cfg.DATASETS.TEST
    best_on = record.tested_on.name if record else sets[0]
    return f"{score_prefix(best_on, sets)}AP"
