"""The best model so far, which stays beside the newest."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..files import put_aside
from .checkpoint_file import contents, damage
from .checkpoints import BEST, RunCheckpointer
from .run_record import RunRecord


class KeepBest(HookBase):
    """Write model_best.pth whenever an evaluation's AP is higher than any before; on every process.

    What is best is what model_best.pth says of itself, so that no resume can forget it, whatever checkpoint it goes on
    from. To stand after the evaluation.

    Args:
        checkpointer: of the run.
        metric: the AP's name in the metrics, such as "bbox/AP".
    """

    def __init__(self, checkpointer: RunCheckpointer, metric: str) -> None:
        self.checkpointer = checkpointer
        self.metric = metric
        self.best: tuple[float, int] | None = None

    def before_train(self) -> None:
        self.recall()

    def after_step(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self.metric, (math.nan, -1))
        if iteration == self.trainer.iter:
            self.consider(value, iteration)

    def after_train(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self.metric, (math.nan, -1))
        if iteration == self.trainer.iter:
            self.consider(value, min(iteration, self.trainer.max_iter - 1))

    def recall(self) -> None:
        """Take the best so far from model_best.pth, if there is one; it may be of before this start."""
        path = Path(self.checkpointer.save_dir) / f"{BEST}.pth"
        if not comm.is_main_process() or not path.is_file():
            return
        try:
            reason = damage(path)
            held = {} if reason else contents(path)
            best = float(held["best"]["AP"]), int(held["best"]["iteration"]) + 1
            before, now = RunRecord.read(held.get("run")), self.checkpointer.record
            if before and now and not before.tested_on.is_same_as(now.tested_on):
                _log().warning(
                    f"{path} is the best on another test set, {before.tested_on.name} of "
                    f"{before.tested_on.pictures} pictures: it is now {put_aside(path)}"
                )
                return
            self.best = best
        except (LookupError, OverflowError, RuntimeError, TypeError, ValueError):
            told = f"is damaged ({reason})" if reason else "does not say what its AP was"
            _log().warning(f"{path} {told}: it is now {put_aside(path)}")

    def consider(self, ap: float, iteration: int) -> None:
        """Keep the model if it is the best.

        Args:
            ap: in points; NaN is never the best.
            iteration: the last one done, from 0.
        """
        if math.isnan(ap) or (self.best is not None and ap <= self.best[0]):
            return
        before = f", was {self.best[0]:.2f} after {self.best[1]}" if self.best else ""
        self.best = ap, iteration + 1
        path = self.checkpointer.save_best(iteration=iteration, best={"AP": ap, "iteration": iteration})
        _log().info(f"Best AP so far {ap:.2f} after {iteration + 1} iterations{before}: {path}")


def ap_name(cfg: CfgNode) -> str:
    """What the metrics call the AP of the first test set."""
    sets = cfg.DATASETS.TEST
    return f"{sets[0]}/bbox/AP" if len(sets) > 1 else "bbox/AP"


def _log() -> logging.Logger:
    return logging.getLogger(__name__)
