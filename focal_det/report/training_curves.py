"""Read from the metrics how a training went: the course of losses, AP and lr, and the headline figures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from ..errors import counted
from ..output_layout import EMA

Course = list[tuple[int, float]]  # (iterations done, value)
Metrics = list[dict[str, float]]
_WEIGHTS = (("", ""), (f"{EMA}/", " of the EMA"))


class Standing(NamedTuple):
    """The best value so far of a metric, the iteration of its evaluation, and the evaluations since."""

    best: float
    iteration: int
    since: int

    def sentence(self, metric: str) -> str:
        """Say how it stands, of a run with early stopping by that metric."""
        return (
            f"{metric} was best after {self.iteration + 1:,} iterations, {self.best:.4g}, and not better in "
            f"{counted(self.since, 'evaluation')} since (MODEL.FOCAL_DET.PATIENCE)"
        )


class BestScore(NamedTuple):
    """The highest AP of a training, in percent, and the iterations after which it was reached."""

    ap: float
    iterations: int


def course(metrics: Metrics, name: str) -> Course:
    """Return the course of one scalar; where it is not finite there is no point."""
    done = iterations_done(metrics) or math.inf  # an evaluation at the end is logged one behind the last, or at it
    return [
        (int(min(record["iteration"] + 1, done)), float(record[name]))
        for record in metrics
        if isinstance(record.get(name), (int, float)) and math.isfinite(record[name])
    ]


def iterations_done(metrics: Metrics) -> int:
    """Return how many iterations were trained; 0 if none was logged."""
    return max((int(record["iteration"]) for record in metrics if "lr" in record), default=-1) + 1


def training_seconds(metrics: Metrics) -> float | None:
    """Sum the iterations' times, without evaluation; None if there are none.

    A logged time is the median over the iterations before it, so this is right to some percent.
    """
    times = course(metrics, "time")
    stretches = pairwise([(0, 0.0), *times])
    return sum((now - before) * seconds for (before, _), (now, seconds) in stretches) if times else None


def epochs(metrics: Metrics) -> float | None:
    """Return the passes over the training set; None if the run did not log them."""
    logged = course(metrics, "epoch")
    return logged[-1][1] if logged else None


def best_score(metrics: Metrics, prefix: str) -> BestScore | None:
    """Return the best evaluation of the test set whose scores' names begin so; None if no AP was finite."""
    scores = [BestScore(ap, iterations) for iterations, ap in course(metrics, f"{prefix}AP")]
    return max(scores, key=lambda score: score.ap, default=None)


def standing(evaluations: Iterable[tuple[int, float]], *, is_loss: bool) -> Standing | None:
    """Return how the evaluations, (iteration, value) in order, stand: of a loss the lowest is best, else the highest.

    None while nothing was found: each is nan, or 0 if not of a loss.
    """
    found: Standing | None = None
    for iteration, value in evaluations:
        is_better = not math.isnan(value) if found is None else value < found.best if is_loss else value > found.best
        if is_better:
            found = Standing(value, iteration, 0) if is_loss or value != 0 or found else None
        elif found:
            found = found._replace(since=found.since + 1)
    return found


def early_stop(metrics: Metrics, metric: str, patience: int) -> str:
    """Say in a sentence why early stopping ended the training; "" if it did not, or has not yet.

    `patience` is in evaluations, of which those before the last iteration count.
    """
    done = iterations_done(metrics)
    evaluations = [(int(m["iteration"]), m[metric]) for m in metrics if metric in m and m["iteration"] < done]
    found = standing(evaluations, is_loss="loss" in metric)
    if patience < 1 or found is None or found.since < patience or evaluations[-1][0] != done - 1:
        return ""
    return f"by early stopping: {found.sentence(metric)}"


def losses(metrics: Metrics) -> dict[str, Course]:
    """Return the losses of training and validation by the name they are logged under, the totals first.

    The averaged weights have those of validation alone.
    """
    names = {name for record in metrics for name in record}
    wanted = [name for name in names if re.fullmatch("(ema/)?(val/)?(total_loss|loss_.*)", name)]
    wanted.sort(key=lambda name: (not name.endswith("total_loss"), name.startswith(EMA), "val/" in name, name))
    return {name: course(metrics, name) for name in wanted}


def scores(metrics: Metrics, prefix: str) -> dict[str, Course]:
    """Return the courses of AP, AP50 and AP75 of a test set by their names, each beside that of the averaged weights.

    Args:
        prefix: what the names of the set's scores begin with.
    """
    both = ((f"{name}{of}", start + prefix + name) for name in ("AP", "AP50", "AP75") for start, of in _WEIGHTS)
    return {label: points for label, name in both if (points := course(metrics, name))}


def thinned(points: Course, most: int = 600) -> Course:
    """Reduce to at most so many points, by means over stretches of equal number."""
    if len(points) <= most:
        return points
    size = -(-len(points) // most)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]
