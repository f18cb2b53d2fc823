"""What the page says about one test set."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from ..evaluation.coco import Evaluation, evaluate
from ..evaluation.explain import SIZE_WORDS, SIZES
from ..evaluation.matching import Matching, match
from .charts import Chart, Line, draw_lines
from .confusion import Confusion, make_confusion
from .examples import Examples, draw_examples
from .progress import BestScore, Metrics, best_score, course
from .run_files import EvaluatedSet, Run
from .weights import best_words, evaluated_weights

_MOST_CURVES = 12  # of classes, those with the lowest AP50
_SAME_AP = 0.05  # percent; what is printed with one digit


@dataclass(frozen=True)
class SizeRow:
    """Objects of a size, how many of them were missed, and detections of that size where there is nothing."""

    size: str
    words: str
    objects: int
    missed: int
    false: int


@dataclass(frozen=True)
class SetResult:
    """A test set's scores and errors; all None where it cannot be scored, and `problem` says why.

    best: of all evaluations during the training.
    weights, best_words: which model was evaluated, and which was better; "" if there is nothing to say.
    given_as: the user's own annotation file; "" of other sets.
    notes: what the reader must know about the figures, such as why one is nan.
    """

    name: str
    evaluated_at: str
    best: BestScore | None
    weights: str = ""
    best_words: str = ""
    given_as: str = ""
    problem: str = ""
    notes: tuple[str, ...] = ()
    evaluation: Evaluation | None = None
    curves: Chart | None = None
    confusion: Confusion | None = None
    sizes: tuple[SizeRow, ...] = ()
    examples: Examples | None = None


def score_set(found: EvaluatedSet, run: Run, *, threshold: float, images: int, max_bytes: int) -> SetResult:
    """Score and draw a test set.

    Args:
        threshold: least score of the detections behind confusions, errors and drawings.
        images: so many of the worst and of the best pictures are drawn.
        max_bytes: of the drawings.
    """
    evaluated_at = datetime.fromtimestamp(found.evaluated_at).astimezone().strftime("%Y-%m-%d %H:%M %Z")
    best = best_score(run.metrics, found.metric_prefix)
    result = SetResult(
        name=found.name,
        evaluated_at=evaluated_at,
        best=best,
        weights=evaluated_weights(found, run),
        best_words=best_words(found, best, run),
        given_as=found.given_as,
    )
    if found.annotations is None:
        return replace(result, problem=found.problem)
    try:
        evaluation = evaluate(found.annotations, found.detections)
        matching = match(found.annotations, found.detections, score_threshold=threshold)
        examples = draw_examples(
            found.annotations, found.detections, matching, found.image_dir, count=images, max_bytes=max_bytes
        )
    except (
        ArithmeticError,
        AttributeError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:  # as somebody's files may be
        problem = f"Annotations and detections do not fit together ({type(error).__name__}: {error}); evaluate again."
        return replace(result, problem=problem)
    return replace(
        result,
        notes=(*evaluation.explain(), *_other_weights(found.metric_prefix, evaluation, run.metrics)),
        evaluation=evaluation,
        curves=_precision_recall(found.name, evaluation),
        confusion=make_confusion(matching.confusion, [c.name for c in evaluation.classes]),
        sizes=_size_rows(matching),
        examples=examples,
    )


def _other_weights(prefix: str, evaluation: Evaluation, metrics: Metrics) -> list[str]:
    """A word if the detections that are there are not those of the training's last evaluation."""
    scores = course(metrics, f"{prefix}AP")
    if not scores or math.isnan(evaluation.AP) or abs(scores[-1][1] - evaluation.AP) < _SAME_AP:
        return []
    return [
        f"The detections on disk have AP {evaluation.AP:.1f}; the training's last evaluation, after "
        f"{scores[-1][0]:,} iterations, gave {scores[-1][1]:.1f}. They come from another evaluation, such as "
        "--eval-only of another checkpoint."
    ]


def _precision_recall(name: str, evaluation: Evaluation) -> Chart | None:
    """At IoU .5: the mean over all classes, and those with the lowest AP50."""
    scored = [k for k, c in enumerate(evaluation.classes) if not math.isnan(c.AP50)]
    if not scored:
        return None
    worst = sorted(scored, key=lambda k: evaluation.classes[k].AP50)[:_MOST_CURVES]
    recalls = evaluation.recalls.tolist()

    def line(label: str, precisions: np.ndarray, *, is_main: bool = False) -> Line:
        return Line(label, list(zip(recalls, precisions.tolist(), strict=True)), is_main)

    lines = [
        line(f"{evaluation.classes[k].name} ({evaluation.classes[k].AP50:.1f})", evaluation.precisions[k])
        for k in worst
    ]
    if len(scored) > 1:
        mean = evaluation.precisions[scored].mean(axis=0)
        lines.insert(0, line(f"mean of {len(scored)} classes ({evaluation.AP50:.1f})", mean, is_main=True))
    return draw_lines(f"pr {name}", lines, "recall", "precision", x_limits=(0, 1), y_limits=(0, 1.02))


def _size_rows(matching: Matching) -> tuple[SizeRow, ...]:
    counts = (matching.objects_by_size, matching.missed_by_size, matching.false_by_size)
    rows = zip(SIZES, SIZE_WORDS, *(part.tolist() for part in counts), strict=True)
    return tuple(SizeRow(*row) for row in rows)
