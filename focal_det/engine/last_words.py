"""What is to be said when a training is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

_COMPARED = 20  # iterations at the start and the end whose median loss is compared
_HIGHER = 2  # times the loss at the start, from which on the end is no noise


def scores_line(cfg: Any, latest: Mapping[str, float]) -> str:
    """AP, AP50 and AP75 of each test set, from a training's last figures."""
    sets = cfg.DATASETS.TEST
    parts = []
    for name in sets:
        prefix = f"{name}/bbox/" if len(sets) > 1 else "bbox/"
        found = [
            f"{score} {latest[prefix + score]:.1f}" for score in ("AP", "AP50", "AP75") if prefix + score in latest
        ]
        if found:
            parts.append(f"{', '.join(found)} on {name}")
    return "; ".join(parts) or "not scored"


def loss_warning(losses: Sequence[float]) -> str | None:
    """What to say of a loss that ended far above its start; None if it did not.

    Args:
        losses: of each iteration of this process.
    """
    if len(losses) < 2 * _COMPARED:
        return None
    first, last = median(losses[:_COMPARED]), median(losses[-_COMPARED:])
    if last <= _HIGHER * first:
        return None
    return (
        f"The loss ended at {last:.3g}, where it began at {first:.3g}: the training diverged. What helps: a lower "
        "SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS"
    )
