"""End a training whose evaluations have not become better for some time, as if it had reached its end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoint.checkpointer import RunCheckpointer
from ..errors import TrainingError
from ..output_layout import FINAL_CHECKPOINT, METRICS
from ..report.metrics import metrics_lines
from ..report.training_curves import Standing, standing

logger = logging.getLogger(__name__)


class StoppedEarly(BaseException):
    """The training is over before its last iteration. Not an Exception: nothing went wrong."""


class EarlyStopping(HookBase):
    """End the training on all ranks once PATIENCE evaluations in a row are not better than the best.

    The final checkpoint is written, and `StoppedEarly` raised, with the trainer as after its last iteration: what
    follows a training then follows, but for the evaluations that have just been made. It goes by metrics.json alone,
    which a resume cuts back to its checkpoint: so a killed and resumed run stops where it would have stopped. Its place
    is behind what writes that file.

    Args:
        checkpointer: of the run.
        metric: by its name in the metrics; of a loss, which has "loss" in its name, lower is better.

    Attributes:
        has_stopped: whether it has ended the training.

    Raises:
        StoppedEarly: on all ranks.
        TrainingError: on all ranks, if an evaluation did not measure the metric; it names those that it did.
    """

    def __init__(self, cfg: CfgNode, checkpointer: RunCheckpointer, metric: str) -> None:
        self.patience, self.period = cfg.MODEL.FOCAL_DET.PATIENCE, cfg.TEST.EVAL_PERIOD
        self.metric, self.checkpointer, self.metrics = metric, checkpointer, Path(cfg.OUTPUT_DIR) / METRICS
        self.has_stopped = False

    def after_step(self) -> None:
        if not self._is_evaluated():
            return
        evaluations, measured = self._read()
        if not evaluations:
            raise TrainingError(
                f"MODEL.FOCAL_DET.PATIENCE_METRIC is {self.metric!r}, which the evaluation after "
                f"{self.trainer.iter + 1} iterations did not measure; set one of "
                f"{', '.join(measured) or 'a test set that is scored'}"
            )
        found = self._standing(evaluations)
        if found is not None and found.since >= self.patience:
            self._stop(found)

    def is_over(self) -> bool:
        """Tell whether a resumed run was, or has to be, stopped early where it stands; called by all ranks."""
        found = self._standing(self._read()[0]) if self._is_evaluated() else None
        return found is not None and found.since >= self.patience

    def _standing(self, evaluations: Sequence[tuple[int, float]]) -> Standing | None:
        return standing(evaluations, is_loss="loss" in self.metric)

    def _is_evaluated(self) -> bool:
        done = self.trainer.iter + 1
        return done % self.period == 0 and done < self.trainer.max_iter

    def _stop(self, found: Standing) -> None:
        done, resumed = self.trainer.iter + 1, self.checkpointer.resumed
        had_ended = done == self.trainer.start_iter and resumed is not None and resumed.name == FINAL_CHECKPOINT
        was = "had been stopped early and is evaluated again" if had_ended else "is stopped early"
        logger.info(
            f"The training {was}, after {done} iterations: {found.sentence(self.metric)}. To train on: --resume "
            "--allow-changes MODEL.FOCAL_DET.PATIENCE 0"
        )
        if not had_ended:
            self.checkpointer.save(Path(FINAL_CHECKPOINT).stem, iteration=done - 1)
        self.trainer.iter = self.trainer.max_iter = done
        self.trainer.cfg = cfg = self.trainer.cfg.clone()  # what is evaluated at the end alone records when that is
        cfg.merge_from_list(["SOLVER.MAX_ITER", done])
        self.has_stopped = True
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
