"""Estimate what trainings cost before they are run."""

from __future__ import annotations

import statistics

from detectron2.config import CfgNode

from .results import Status
from .runs import SweepPlan, changed_keys

# Seconds per iteration of 16 images that Detectron2's MODEL_ZOO gives for its RetinaNet on 8 V100, by depth, at shorter
# sides of 640 to 800 px; its Faster R-CNN takes 2.23 times as long with ResNeXt-101-32x8d as with ResNet-101.
_SECONDS = {50: 0.205, 101: 0.291}
_RESNEXT = 0.638 / 0.286
_SIDES = (640, 672, 704, 736, 768, 800)
_GPUS = 8

_MINIATURE_SECONDS = 0.4  # per iteration, evaluation included, as measured on a core with bfloat16 instructions


def gpu_hours(cfg: CfgNode) -> float | None:
    """Estimate the hours of a training on V100 by Detectron2's published times and the number of pixels.

    Neither what OHEM's selection adds nor the evaluation is included.

    Returns:
        The hours of all GPUs together; None for a depth without published times.
    """
    seconds = _SECONDS.get(cfg.MODEL.RESNETS.DEPTH)
    if seconds is None:
        return None
    if cfg.MODEL.RESNETS.NUM_GROUPS > 1:
        seconds *= _RESNEXT
    pixels, published = (statistics.mean(side**2 for side in sides) for sides in (cfg.INPUT.MIN_SIZE_TRAIN, _SIDES))
    return float(seconds * pixels / published * cfg.SOLVER.IMS_PER_BATCH / 16 * cfg.SOLVER.MAX_ITER * _GPUS / 3600)


def estimate(plan: SweepPlan) -> str:
    """Return a line on what is left to run and how long it will take."""
    missing = [run for run in plan.runs if not run.is_finished or changed_keys(run)]
    if not missing:
        return "Estimate: nothing left to run."
    iterations = sum(run.iterations for run in missing)
    finished = [(run, run.record) for run in plan.runs if run.status is Status.DONE]
    seconds = [record.seconds / run.iterations for run, record in finished if record and record.seconds]
    if seconds:
        hours = statistics.mean(seconds) * iterations / 3600
        return f"Estimate: {len(missing)} trainings, {hours:.1f} hours here, by the finished ones' time."
    configs = {run.folder: plan.configs[name] for name, runs in plan.rows.items() for run in runs.values()}
    gpu = [gpu_hours(configs[run.folder]) for run in plan.runs if not run.is_finished]
    if plan.backbones or None in gpu:
        return (
            f"Estimate: {len(missing)} trainings, {_MINIATURE_SECONDS * iterations / 3600:.1f} hours on one core of an "
            "AMD EPYC; by the finished ones' time after the first."
        )
    total, gpus = sum(hours or 0 for hours in gpu), plan.options.num_gpus
    return (
        f"Estimate: {len(missing)} trainings, {total:.0f} GPU-hours on V100, {total / gpus:.1f} hours on {gpus}, "
        "by the times that Detectron2 publishes for its RetinaNet; evaluation and OHEM's selection come on top."
    )
