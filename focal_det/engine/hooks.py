"""What the trainer does beside Detectron2's hooks: log the assignment, draw."""

from __future__ import annotations

from detectron2.engine import HookBase

from ..modeling.criterion import DenseCriterion


class LogAssignment(HookBase):
    """Put the assigned anchors per image into the metrics every `period` iterations, as Detectron2's `num_pos_anchors`.

    If they are few, objects are missed.
    """

    def __init__(self, criterion: DenseCriterion, period: int = 20) -> None:
        self.criterion = criterion
        self.period = period

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0 and self.criterion.num_assigned is not None:
            assigned = self.criterion.num_assigned.float().mean().item()
            self.trainer.storage.put_scalar("num_pos_anchors", assigned, smoothing_hint=False)


class DrawDetections(HookBase):
    """Draw on the main process every `period` iterations (0: not before the end) and after the last."""

    def __init__(self, period: int) -> None:
        self.period = period

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if self.period > 0 and next_iter % self.period == 0 and next_iter < self.trainer.max_iter:
            self.trainer.draw(self.trainer.cfg, self.trainer.model)

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self.trainer.draw(self.trainer.cfg, self.trainer.model)
