"""How the training went, from metrics.json: the course of losses, AP and lr, and the headline figures."""

from __future__ import annotations

import math
from typing import NamedTuple

Course = list[tuple[int, float]]  # (iterations done, value)
Metrics = list[dict[str, float]]


class BestScore(NamedTuple):
    """The highest AP of a training, in percent, and the iterations after which it was reached."""

    ap: float
    iterations: int


def course(metrics: Metrics, name: str) -> Course:
    """Of one scalar; where it is no finite number there is no point."""
    done = _last_iteration(metrics)
    return [
        (min(int(record["iteration"]) + 1, done), float(record[name]))
        for record in metrics
        if isinstance(record.get(name), (int, float)) and math.isfinite(record[name])
    ]


def iterations_done(metrics: Metrics) -> int:
    """Iterations that were trained; 0 if none was logged."""
    return _last_iteration(metrics) if any("lr" in record for record in metrics) else 0


def _last_iteration(metrics: Metrics) -> int:
    """The evaluation at the end is logged behind the last iteration, and that of a finished run again at it."""
    trained = [int(record["iteration"]) for record in metrics if "lr" in record]
    return max(trained or [int(record["iteration"]) for record in metrics] or [-1]) + 1


def training_seconds(metrics: Metrics) -> float | None:
    """The sum of the iterations' times, without evaluation; None if there are none.

    A logged time is the median over the iterations before it, so this is right to some percent.
    """
    times = course(metrics, "time")
    if not times:
        return None
    steps = [now - before for (before, _), (now, _) in zip([(0, 0.0), *times], times, strict=False)]
    return sum(step * seconds for step, (_, seconds) in zip(steps, times, strict=True))


def epochs(metrics: Metrics) -> float | None:
    """Passes over the training set; None if the run did not log them."""
    logged = course(metrics, "epoch")
    return logged[-1][1] if logged else None


def best_score(metrics: Metrics, prefix: str) -> BestScore | None:
    """None if no evaluation gave a number.

    Args:
        prefix: of a test set's scores.
    """
    scores = course(metrics, f"{prefix}AP")
    if not scores:
        return None
    iterations, ap = max(scores, key=lambda point: point[1])
    return BestScore(ap, iterations)


def losses(metrics: Metrics) -> dict[str, Course]:
    """Of training and validation, the totals first; by the name they are logged under."""
    wanted = []
    for name in {name for record in metrics for name in record}:
        part = name.removeprefix("val/")
        if part == "total_loss" or part.startswith("loss_"):
            wanted.append(name)
    wanted.sort(key=lambda name: (not name.endswith("total_loss"), name.startswith("val/"), name))
    return {name: course(metrics, name) for name in wanted}


def thinned(points: Course, most: int = 600) -> Course:
    """At most so many points: means over stretches of equal number."""
    if len(points) <= most:
        return points
    size = -(-len(points) // most)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]
