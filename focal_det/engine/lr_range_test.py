"""A learning-rate range test: how far the lr can be raised before the loss rises (Smith 2015, arXiv:1506.01186).

The lr grows by the same factor in each step, from far below to far above what is usual, with the run's own model, data,
batch and optimizer, and without warm-up. Where the loss falls fastest the lr teaches most; where it has risen to a
multiple of its lowest value the training diverges.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from ..checkpoint.checkpointer import RunCheckpointer
from ..checkpoint.class_rows import ClassRows
from ..data.catalog import register_datasets
from ..distributed.signals import start_workers_by_fork
from .run import Job
from .train_step import step_class
from .trainer import Trainer

_MEMORY = 0.9  # of the average that smooths the losses: about ten steps
_FIRST = 10  # steps before which the average says little


class Measurement(NamedTuple):
    """The lr of a step, its loss, and the average of the losses so far that gives the last ones most weight."""

    lr: float
    loss: float
    smoothed: float


class Suggestion(NamedTuple):
    """A learning rate and the rule that it follows from; no lr where too little was measured.

    diverged_at: the lr at which the loss was a multiple of its lowest value, if it came to that.
    """

    lr: float | None
    rule: str
    diverged_at: float | None


def range_test(job: Job, lowest: float, highest: float, iterations: int) -> Iterator[Measurement]:
    """Train with an lr that grows from `lowest` to `highest` in so many steps; yield each step's measurement.

    In one process, of a job whose files are written; nothing else is.
    """
    cfg = job.cfg
    start_workers_by_fork()
    register_datasets((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST), job.json_datasets)
    seed_all_rng(cfg.SEED)
    model = Trainer.build_model(cfg)
    rows = ClassRows.of(cfg, list(job.record.class_names) if job.record else None)
    RunCheckpointer(model, class_rows=rows).load(cfg.MODEL.WEIGHTS)
    optimizer = Trainer.build_optimizer(cfg, model)
    loader = Trainer.build_train_loader(cfg)
    step = step_class(cfg)(model, loader, optimizer, parts=cfg.MODEL.FOCAL_DET.ACCUMULATION)
    shares = [group["lr"] / cfg.SOLVER.BASE_LR for group in optimizer.param_groups]  # of biases it may be another
    lrs = np.geomspace(lowest, highest, iterations).tolist()

    def losses() -> Iterator[float]:
        with EventStorage():
            for step.iter, lr in enumerate(lrs):
                for group, share in zip(optimizer.param_groups, shares, strict=True):
                    group["lr"] = lr * share
                with suppress(FloatingPointError):  # a loss that is not finite is what the test looks for
                    step.run_step()
                yield float(sum(step.losses.values()))

    yield from smoothed(lrs, losses())


def smoothed(lrs: Sequence[float], losses: Iterator[float]) -> Iterator[Measurement]:
    """Pair each step's lr with its loss and the exponential average, corrected for its start at 0."""
    average = 0.0
    for number, (lr, loss) in enumerate(zip(lrs, losses, strict=False), 1):
        average = _MEMORY * average + (1 - _MEMORY) * loss
        yield Measurement(lr, loss, average / (1 - _MEMORY**number))


def until_it_rises(measurements: Iterator[Measurement], times: float) -> Iterator[Measurement]:
    """End after the first step whose average is not finite, or so many times the lowest one before."""
    lowest = math.inf
    for number, measured in enumerate(measurements, 1):
        yield measured
        if not math.isfinite(measured.smoothed) or (number > _FIRST and measured.smoothed > times * lowest):
            return
        lowest = min(lowest, measured.smoothed)


def suggest(measured: Sequence[Measurement], times: float) -> Suggestion:
    """Suggest an lr: a tenth of the one at which the loss diverged; else the one at which it fell fastest.

    The loss falls fastest where the average has its steepest slope over the logarithm of the lr.
    """
    if len(measured) <= _FIRST + 2:
        return Suggestion(None, f"{len(measured)} steps are too few to tell", None)
    lowest = list(itertools.accumulate((m.smoothed for m in measured), min))
    rises = [
        m.lr for m, low in zip(measured[_FIRST:], lowest[_FIRST - 1 :], strict=False) if not m.smoothed <= times * low
    ]
    if rises:
        rule = f"a tenth of {rises[0]:.3g}, at which the loss was {times:g} times its lowest value"
        return Suggestion(rises[0] / 10, rule, rises[0])
    usable = measured[_FIRST:]
    slopes = np.gradient([m.smoothed for m in usable], np.log([m.lr for m in usable]))
    steepest = usable[int(slopes.argmin())].lr
    return Suggestion(steepest, "where the loss fell fastest, since it did not rise: raise --to", None)
