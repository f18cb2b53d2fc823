"""The linear rule for another batch size: the same epochs, the same step per picture."""

from __future__ import annotations

from collections.abc import Collection

from detectron2.config import CfgNode

_SHRINKING = ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD")


def scale_schedule(cfg: CfgNode, reference_batch: int, kept: Collection[str]) -> str | None:
    """Fit BASE_LR (times the ratio) and the schedule (divided by it) to SOLVER.IMS_PER_BATCH.

    Args:
        reference_batch: the images per step that the schedule was written for.
        kept: keys that stay as they are, since the user set them.

    Returns:
        What was changed, in words; None if nothing had to be.
    """
    ratio = cfg.SOLVER.IMS_PER_BATCH / reference_batch
    if ratio == 1:
        return None
    before = {"BASE_LR": cfg.SOLVER.BASE_LR, "STEPS": tuple(cfg.SOLVER.STEPS)}
    before |= {key: cfg.SOLVER[key] for key in _SHRINKING}
    after = {"BASE_LR": cfg.SOLVER.BASE_LR * ratio, "STEPS": tuple(round(s / ratio) for s in cfg.SOLVER.STEPS)}
    after |= {key: max(1, round(cfg.SOLVER[key] / ratio)) if before[key] else 0 for key in _SHRINKING}
    changes = []
    for key, value in after.items():
        if f"SOLVER.{key}" not in kept:
            cfg.SOLVER[key] = value
            changes.append(f"{key} {before[key]} -> {value}")
    if "TEST.EVAL_PERIOD" not in kept:
        cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / ratio)
    return f"batch {reference_batch} -> {cfg.SOLVER.IMS_PER_BATCH}: " + ", ".join(changes)
