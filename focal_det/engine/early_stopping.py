"""End a training whose evaluations have not become better for some time, as if it had reached its end."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoint.checkpointer import RunCheckpointer
from ..errors import TrainingError
from ..output_layout import FINAL_CHECKPOINT, METRICS
from ..report.metrics import metrics_lines

logger = logging.getLogger(__name__)


class StoppedEarly(BaseException):
    """The training is over before its last iteration. Not an Exception: nothing went wrong."""


class Standing(NamedTuple):
    """The best value so far of a metric, the iteration of its evaluation, and the evaluations since."""

    best: float
    iteration: int
    since: int


class EarlyStopping(HookBase):
    """End the training on all ranks once PATIENCE evaluations in a row are not better than the best.

    The final checkpoint is written, and `StoppedEarly` raised, with the trainer as after its last iteration: what
    follows a training then follows. What it goes by is metrics.json alone, which a resume cuts back to its checkpoint:
    so a killed and resumed run stops where it would have stopped. Its place is behind what writes that file.

    Args:
        checkpointer: of the run.
        metric: by its name in the metrics; of a loss, which has "loss" in its name, lower is better.

    Raises:
        StoppedEarly: on all ranks.
        TrainingError: on all ranks, if an evaluation did not measure the metric; it names those that it did.
    """

    def __init__(self, cfg: CfgNode, checkpointer: RunCheckpointer, metric: str) -> None:
        self.patience, self.period = cfg.MODEL.FOCAL_DET.PATIENCE, cfg.TEST.EVAL_PERIOD
        self.metric, self.checkpointer, self.metrics = metric, checkpointer, Path(cfg.OUTPUT_DIR) / METRICS

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period or done >= self.trainer.max_iter:
            return
        evaluations, measured = self._read()
        if not evaluations:
            raise TrainingError(
                f"MODEL.FOCAL_DET.PATIENCE_METRIC is {self.metric!r}, which the evaluation after {done} iterations did "
                f"not measure; set one of {', '.join(measured) or 'a test set that is scored'}"
            )
        self._stop_if_over(evaluations)

    def stop_if_over(self) -> None:
        """Stop a resumed run that has been stopped early, as it would have to stop again; called by all ranks."""
        self._stop_if_over(self._read()[0])

    def _stop_if_over(self, evaluations: Sequence[tuple[int, float]]) -> None:
        found, done = standing(evaluations, is_loss="loss" in self.metric), self.trainer.iter + 1
        if found is None or found.since < self.patience:
            return
        resumed = self.checkpointer.resumed
        had_ended = done == self.trainer.start_iter and resumed is not None and resumed.name == FINAL_CHECKPOINT
        was = "had been stopped early and is evaluated again" if had_ended else "is stopped early"
        logger.info(
            f"The training {was}, after {done} iterations: {self.metric} was best after {found.iteration + 1}, "
            f"{found.best:.4g}, and not better in {found.since} evaluations since (MODEL.FOCAL_DET.PATIENCE). To train "
            "on: --resume --allow-changes MODEL.FOCAL_DET.PATIENCE 0"
        )
        if not had_ended:
            self.checkpointer.save(Path(FINAL_CHECKPOINT).stem, iteration=done - 1)
        self.trainer.iter = self.trainer.max_iter = done
        self.trainer.cfg = cfg = self.trainer.cfg.clone()  # the last evaluation records after how many steps it comes
        cfg.merge_from_list(["SOLVER.MAX_ITER", done])
        raise StoppedEarly

    def _read(self) -> tuple[list[tuple[int, float]], list[str]]:
        """Return (iteration, value) of each evaluation, and what the newest has measured; of rank 0, to all ranks."""
        evaluations: list[tuple[int, float]] = []
        measured: list[str] = []
        if comm.is_main_process() and self.metrics.is_file():
            for line in metrics_lines(self.metrics):
                if line.iteration is not None and line.iteration <= self.trainer.iter:
                    if self.metric in line.values:
                        evaluations.append((line.iteration, line.values[self.metric]))
                    measured = [name for name in line.values if "/" in name] or measured
        read: tuple[list[tuple[int, float]], list[str]] = comm.all_gather((evaluations, measured))[0]
        return read


def standing(evaluations: Sequence[tuple[int, float]], *, is_loss: bool) -> Standing | None:
    """Return how the evaluations, in order, stand; None while nothing was found: each is nan, or 0 if not of a loss."""
    found: Standing | None = None
    for iteration, value in evaluations:
        is_better = not math.isnan(value) if found is None else value < found.best if is_loss else value > found.best
        if is_better:
            found = Standing(value, iteration, 0) if is_loss or value != 0 or found else None
        elif found:
            found = found._replace(since=found.since + 1)
    return found
