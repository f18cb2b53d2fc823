"""What a training costs, estimated before it is run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from detectron2.config import CfgNode

from .runs import Run

# Seconds per iteration of 16 images that Detectron2's MODEL_ZOO gives for its RetinaNet on 8 V100, by depth, at shorter
# sides of 640 to 800 px; its Faster R-CNN takes 2.23 times as long with ResNeXt-101-32x8d as with ResNet-101.
_SECONDS = {50: 0.205, 101: 0.291}
_RESNEXT = 0.638 / 0.286
_SIDES = (640, 672, 704, 736, 768, 800)
_GPUS = 8

_MINIATURE_SECONDS = 0.4  # per iteration, evaluation included


def gpu_hours(cfg: CfgNode) -> float | None:
    """Of a training on V100, by Detectron2's published times and the number of pixels; None for another depth.

    What OHEM's selection takes beside is not in it, nor is the evaluation.
    """
    seconds = _SECONDS.get(cfg.MODEL.RESNETS.DEPTH)
    if seconds is None:
        return None
    if cfg.MODEL.RESNETS.NUM_GROUPS > 1:
        seconds *= _RESNEXT
    pixels = _mean_square(cfg.INPUT.MIN_SIZE_TRAIN) / _mean_square(_SIDES)
    return float(seconds * pixels * cfg.SOLVER.IMS_PER_BATCH / 16 * cfg.SOLVER.MAX_ITER * _GPUS / 3600)


def hours_in_miniature(runs: Sequence[Run]) -> float:
    """Of some trainings of a miniature on one core of an AMD EPYC with bfloat16 instructions, as measured."""
    return _MINIATURE_SECONDS * sum(run.iterations for run in runs) / 3600


def hours_here(runs: Sequence[Run], finished: Sequence[Run]) -> float | None:
    """Of some trainings on this machine, by the seconds per iteration of finished ones; None if there are none."""
    times = [record.seconds / run.iterations for run in finished if (record := run.record) and record.seconds]
    if not times:
        return None
    return statistics.mean(times) * sum(run.iterations for run in runs) / 3600


def _mean_square(sides: Sequence[int]) -> float:
    return statistics.mean(side**2 for side in sides)
