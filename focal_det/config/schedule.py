"""The schedule and the batch: fitting the one to the other, and warnings where they are likely not meant.

Another batch follows the linear scaling rule: the same epochs, the same step per image.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer

from ..errors import Findings
from .layers import get_value, set_value

_PERIODS = ("SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD")
_MOST_PROCESSES, _LONGEST = 10**6, 10**12
_PAPERS_LR = 0.01 / 16  # of one image (section 4.1)
_RISKY = 4  # times the paper's lr, under which fine-tuning with frozen normalisation mostly diverges
_MANY_EPOCHS, _USUAL_EPOCHS = 500, 50  # more than the first only memorise; small sets are fitted by the second


def scale_schedule(cfg: CfgNode, reference_batch: int, kept: Collection[str]) -> str | None:
    """Fit BASE_LR (times the ratio) and the schedule (divided by it) to SOLVER.IMS_PER_BATCH.

    The schedule was written for `reference_batch` images a step; keys that are `kept` stay, since the user set them.
    Returns a message that names the changes; None where the batch is the reference.
    """
    batches = cfg.SOLVER.IMS_PER_BATCH, reference_batch
    if batches[0] == batches[1] or min(batches) < 1 or not _can_be_scaled(cfg):
        return None  # such a batch or schedule is refused elsewhere
    ratio = cfg.SOLVER.IMS_PER_BATCH / reference_batch
    scaled: dict[str, Any] = {
        "SOLVER.BASE_LR": cfg.SOLVER.BASE_LR * ratio,
        "SOLVER.STEPS": tuple(round(step / ratio) for step in cfg.SOLVER.STEPS),
    }
    for key in _PERIODS:
        iterations = get_value(cfg, key)
        scaled[key] = max(1, round(iterations / ratio)) if iterations else 0  # 0 stays "never"
    changes = []
    for key, value in scaled.items():
        before = get_value(cfg, key)
        if key not in kept and before != value:
            changes.append(f"{key.split('.')[1]} {before} -> {value}")
            set_value(cfg, key, value)
    return f"batch {reference_batch} -> {cfg.SOLVER.IMS_PER_BATCH}: " + ", ".join(changes)


def _can_be_scaled(cfg: CfgNode) -> bool:
    """Tell whether batch and schedule are numbers that can be multiplied; others are refused for themselves."""
    whole = [cfg.SOLVER.IMS_PER_BATCH, *cfg.SOLVER.STEPS, *(get_value(cfg, key) for key in _PERIODS)]
    return all(-_LONGEST <= number <= _LONGEST and number == int(number) for number in whole)


def scale_to_processes(cfg: CfgNode, world_size: int) -> tuple[CfgNode, Findings]:
    """Return the configuration as Detectron2 scales it by SOLVER.REFERENCE_WORLD_SIZE, and a message that says so.

    The images of a process stay what they are on that number of processes, and lr and schedule follow the batch. The
    new configuration is for `world_size`, so that it is not scaled again when it is read.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if not 1 <= reference <= _MOST_PROCESSES or reference == world_size or not _can_be_scaled(cfg):
        return cfg, Findings()
    if cfg.SOLVER.IMS_PER_BATCH % reference:
        batch = f"SOLVER.IMS_PER_BATCH, {cfg.SOLVER.IMS_PER_BATCH}"
        return cfg, Findings([f"SOLVER.REFERENCE_WORLD_SIZE is {reference}; it must divide {batch}, or be 0"])
    scaled = DefaultTrainer.auto_scale_workers(cfg, world_size)
    for key in ("SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"):  # what was done now and then still is
        set_value(scaled, key, max(get_value(scaled, key), min(1, get_value(cfg, key))))
    changes = [
        f"{key.split('.')[1]} {before} -> {after}"
        for key in ("SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR", "SOLVER.STEPS", *_PERIODS)
        if (before := get_value(cfg, key)) != (after := get_value(scaled, key))
    ]
    message = f"SOLVER.REFERENCE_WORLD_SIZE {reference} -> {world_size} processes: {', '.join(changes)}"
    return scaled, Findings(notes=[message])


def check_schedule(cfg: CfgNode) -> Findings:
    """Warn of steps that never happen, a warm-up that never ends, a learning rate that is likely to diverge.

    An early stopping that cannot come is an error.
    """
    solver, warnings = cfg.SOLVER, []
    longest = solver.MAX_ITER
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and solver.STEPS and longest >= 1:
        late = [step for step in solver.STEPS if step >= longest]
        steps, fix = f"SOLVER.STEPS is {tuple(solver.STEPS)}", f"set SOLVER.STEPS to fit, such as {_steps(longest)}"
        if late:
            never = f"the lr never drops at {', '.join(map(str, late))}"
            warnings.append(f"{steps}, but SOLVER.MAX_ITER {longest}: {never}; {fix}")
        elif 2 * max(solver.STEPS) < longest:
            early = f"the last drop of the lr comes before half of SOLVER.MAX_ITER {longest}"
            warnings.append(f"{steps}: {early}; {fix}")
    if 1 <= longest <= solver.WARMUP_ITERS:
        warnings.append(
            f"SOLVER.WARMUP_ITERS is {solver.WARMUP_ITERS}, but SOLVER.MAX_ITER {longest}: the lr never reaches "
            f"SOLVER.BASE_LR; set SOLVER.WARMUP_ITERS to {longest // 10} or so"
        )
    if 1 <= solver.IMS_PER_BATCH <= _LONGEST and cfg.MODEL.RESNETS.NORM == "FrozenBN":
        times = solver.BASE_LR / solver.IMS_PER_BATCH / _PAPERS_LR
        if times > _RISKY:
            warnings.append(
                f"SOLVER.BASE_LR is {solver.BASE_LR} for SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH}: {times:.0f} "
                "times the paper's lr for each image, with frozen normalisation in the backbone, which is likely to "
                f"diverge; the paper's is SOLVER.BASE_LR {_PAPERS_LR * solver.IMS_PER_BATCH:.2g}"
            )
    return Findings(_patience_errors(cfg), warnings)


def _patience_errors(cfg: CfgNode) -> list[str]:
    """Refuse a PATIENCE that needs more evaluations than come before the end: one for the best, and its own."""
    patience, period, longest = cfg.MODEL.FOCAL_DET.PATIENCE, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER
    if min(patience, period, longest) < 1 or (longest - 1) // period > patience:
        return []
    evaluations, shorter = (longest - 1) // period, (longest - 1) // (patience + 1)
    fixes = [f"TEST.EVAL_PERIOD to {shorter} or less"] if shorter else []
    fixes += [f"PATIENCE to {evaluations - 1} or less"] if evaluations > 1 else []
    return [
        f"MODEL.FOCAL_DET.PATIENCE is {patience}, so that a training stops after {patience + 1} evaluations or more, "
        f"and TEST.EVAL_PERIOD {period} makes {evaluations} before SOLVER.MAX_ITER {longest}: it never stops; set "
        f"{', or '.join([*fixes, 'PATIENCE to 0'])}"
    ]


def epoch_warnings(cfg: CfgNode, images: int | None) -> list[str]:
    """Warn of a schedule that was written for a much larger data set; the images of an epoch may not be known."""
    solver = cfg.SOLVER
    epochs = solver.MAX_ITER * solver.IMS_PER_BATCH / images if images else 0
    if epochs <= _MANY_EPOCHS:
        return []
    fitting = max(1, _USUAL_EPOCHS * (images or 1) // solver.IMS_PER_BATCH)
    return [
        f"SOLVER.MAX_ITER is {solver.MAX_ITER}: {epochs:,.0f} epochs of {images} images, where the paper's "
        f"schedule has 12; for {_USUAL_EPOCHS} epochs add SOLVER.MAX_ITER {fitting} SOLVER.STEPS {_steps(fitting)} "
        f"SOLVER.WARMUP_ITERS {max(1, min(solver.WARMUP_ITERS, fitting // 10))}"
    ]


def _steps(longest: int) -> str:
    """Return the paper's steps, at 2/3 and 8/9 of the schedule, as an override."""
    return f'"({longest * 2 // 3}, {longest * 8 // 9})"'
