"""The linear rule for another batch size: the same epochs, the same step per picture."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from detectron2.config import CfgNode

_PERIODS = ("SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD")


def scale_schedule(cfg: CfgNode, reference_batch: int, kept: Collection[str]) -> str | None:
    """Fit BASE_LR (times the ratio) and the schedule (divided by it) to SOLVER.IMS_PER_BATCH.

    Args:
        reference_batch: the images per step that the schedule was written for.
        kept: keys that stay as they are, since the user set them.

    Returns:
        What was changed, in words; None if nothing had to be.
    """
    if reference_batch == cfg.SOLVER.IMS_PER_BATCH or min(cfg.SOLVER.IMS_PER_BATCH, reference_batch) < 1:
        return None  # a batch below 1 is refused elsewhere
    ratio = cfg.SOLVER.IMS_PER_BATCH / reference_batch
    scaled: dict[str, Any] = {
        "SOLVER.BASE_LR": cfg.SOLVER.BASE_LR * ratio,
        "SOLVER.STEPS": tuple(round(step / ratio) for step in cfg.SOLVER.STEPS),
    }
    for key in _PERIODS:
        iterations = _node(cfg, key)[key.split(".")[1]]
        scaled[key] = max(1, round(iterations / ratio)) if iterations else 0  # 0 stays "never"
    changes = []
    for key, value in scaled.items():
        node, leaf = _node(cfg, key), key.split(".")[1]
        if key not in kept and node[leaf] != value:
            changes.append(f"{leaf} {node[leaf]} -> {value}")
            node[leaf] = value
    return f"batch {reference_batch} -> {cfg.SOLVER.IMS_PER_BATCH}: " + ", ".join(changes)


def _node(cfg: CfgNode, key: str) -> CfgNode:
    return cfg[key.split(".")[0]]
