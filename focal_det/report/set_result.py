"""Score and draw one test set for the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from ..evaluation.coco_arrays import hotcoco
from ..evaluation.coco_scores import SIZE_WORDS, SIZES, Evaluation, evaluate, looked_for
from ..evaluation.diagnosis import Diagnosis, diagnose
from ..evaluation.matching import match
from ..formats.coco_index import Row
from ..output_layout import BEST_CHECKPOINT, BEST_EMA_CHECKPOINT, EMA, FINAL_CHECKPOINT, TTA, periodic_checkpoint
from .charts import Chart, Line, draw_lines
from .confusion import Confusion, make_confusion
from .examples import Examples, draw_examples
from .run_files import EvaluatedSet, RunFiles
from .score_charts import calibration_words, reliability_chart, threshold_chart, threshold_words
from .training_curves import BestScore, Metrics, best_score, course

_MOST_CURVES = 12  # those of the classes with the lowest AP50
_SAME_AP = 0.05  # percent; equal when printed with one digit


@dataclass(frozen=True)
class SetResult:
    """A test set's scores and errors; all None where it cannot be scored, and `problem` says why.

    best: the best of all evaluations during the training.
    weights, better_model: which model was evaluated, and a sentence if another was better; "" if there is none.
    rule, own_scores: of a set that is not scored as COCO does; `evaluation` is COCO's measure all the same.
    costs, calibration, best_threshold: sentences about the diagnosis; "" if there is nothing to say.
    notes: what the reader must know about the figures, such as why one is nan.
    sizes: (size, its area, objects, how many of them were missed, detections of that size where there is no object).
    """

    name: str
    evaluated_at: str
    best: BestScore | None
    weights: str = ""
    better_model: str = ""
    given_as: str = ""
    problem: str = ""
    rule: str = ""
    own_scores: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    evaluation: Evaluation | None = None
    curves: Chart | None = None
    diagnosis: Diagnosis | None = None
    costs: str = ""
    calibration: str = ""
    best_threshold: str = ""
    reliability: Chart | None = None
    trade_off: Chart | None = None
    confusion: Confusion | None = None
    sizes: tuple[tuple[str, str, int, int, int], ...] = ()
    examples: Examples | None = None


def score_set(found: EvaluatedSet, run: RunFiles, *, threshold: float, images: int, max_bytes: int) -> SetResult:
    """Score a test set, and draw so many of its worst and of its best images.

    `threshold` is the lowest score of the detections that count in confusions, errors and drawings.
    """
    best = best_score(run.metrics, found.metric_prefix)
    result = SetResult(
        name=found.name,
        evaluated_at=datetime.fromtimestamp(found.evaluated_at).astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        best=best,
        weights=evaluated_weights(found, run),
        better_model=_better_model(found, best, run),
        given_as=found.given_as,
        rule=found.rule,
        own_scores=tuple(found.scores.items()),
    )
    if found.annotations is None:
        return replace(result, problem=found.problem)
    try:
        detections = looked_for(found.annotations, found.detections)
        evaluation = evaluate(found.annotations, detections)
        diagnosis = diagnose(found.annotations, detections)
        matching = match(found.annotations, detections, score_threshold=threshold)
        examples = draw_examples(
            found.annotations, detections, matching, found.image_dir, count=images, max_bytes=max_bytes
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # strangers' files
        problem = f"Annotations and detections do not fit together ({type(error).__name__}: {error}); evaluate again."
        return replace(result, problem=problem)
    by_size = (matching.objects_by_size.tolist(), matching.missed_by_size.tolist(), matching.false_by_size.tolist())
    if diagnosis is not None:
        at_best = diagnosis.best_threshold()
        result = replace(
            result,
            diagnosis=diagnosis,
            costs=_costs(diagnosis, evaluation),
            calibration=calibration_words(diagnosis),
            best_threshold=threshold_words(at_best) if at_best else "",
            reliability=reliability_chart(found.name, diagnosis),
            trade_off=threshold_chart(found.name, diagnosis),
        )
    return replace(
        result,
        notes=(
            *evaluation.explain(),
            *_undiagnosed(),
            *_left_out(found, detections),
            *_other_weights(found, evaluation, run.metrics),
            *_augmented(found, run.metrics),
        ),
        evaluation=evaluation,
        curves=_precision_recall(found.name, evaluation),
        confusion=make_confusion(matching.confusion, [c.name for c in evaluation.classes]),
        sizes=tuple(zip(SIZES, SIZE_WORDS, *by_size, strict=True)),
        examples=examples,
    )


def _costs(diagnosis: Diagnosis, evaluation: Evaluation) -> str:
    """Name the cause that costs most."""
    worst = max(diagnosis.causes, key=lambda cause: cause.gain)
    if worst.gain < _SAME_AP:
        return f"No cause costs anything that AP50, {evaluation.AP50:.1f}, would show."
    without = f"without it AP50 would be {evaluation.AP50 + worst.gain:.1f} instead of {evaluation.AP50:.1f}"
    return f"Most is lost by “{worst.name}”: {without}."


def _undiagnosed() -> list[str]:
    if hotcoco() is None:
        return [
            "What costs AP and what scores are worth is not shown: hotcoco, which computes it, cannot be used here."
        ]
    return []


def _left_out(found: EvaluatedSet, kept: Sequence[Row]) -> list[str]:
    if number := len(found.detections) - len(kept):
        return [
            f"{number:,} of {len(found.detections):,} detections are left out: they are of classes that nobody looked "
            "for in their image, which LVIS's rules leave out, too."
        ]
    return []


def _other_weights(found: EvaluatedSet, evaluation: Evaluation, metrics: Metrics) -> list[str]:
    """Return a note if the detections are not those of the training's last evaluation."""
    scores, ap = course(metrics, f"{found.metric_prefix}AP"), found.scores.get("AP", evaluation.AP)
    if not scores or math.isnan(ap) or abs(scores[-1][1] - ap) < _SAME_AP:
        return []
    return [
        f"The detections on disk have AP {ap:.1f}; the training's last evaluation, after "
        f"{scores[-1][0]:,} iterations, gave {scores[-1][1]:.1f}. They come from another evaluation, such as "
        "--eval-only of another checkpoint."
    ]


def _augmented(found: EvaluatedSet, metrics: Metrics) -> list[str]:
    """Return a note with the scores of the training's evaluation with test-time augmentation, if there was one."""
    of_one_set = found.metric_prefix == "bbox/"
    prefix = f"bbox{TTA}/" if of_one_set else f"{found.name}{TTA}/bbox/"
    courses = ((name, course(metrics, prefix + name)) for name in ("AP", "AP50", "AP75"))
    scores = ", ".join(f"{name} {points[-1][1]:.1f}" for name, points in courses if points)
    return [f"With test-time augmentation, after the training: {scores}."] if scores else []


def _precision_recall(name: str, evaluation: Evaluation) -> Chart | None:
    """Draw the curves at IoU .5: the mean over all classes, and the classes with the lowest AP50."""
    scored = [k for k, c in enumerate(evaluation.classes) if not math.isnan(c.AP50)]
    if not scored:
        return None
    worst = sorted(scored, key=lambda k: evaluation.classes[k].AP50)[:_MOST_CURVES]
    recalls, mean = evaluation.recalls.tolist(), None
    curves = [(evaluation.classes[k].name, evaluation.classes[k].AP50, evaluation.precisions[k]) for k in worst]
    if len(scored) > 1:
        mean = evaluation.precisions[scored].mean(axis=0)
        curves.insert(0, (f"mean of {len(scored)} classes", evaluation.AP50, mean))
    lines = [
        Line(f"{label} ({ap50:.1f})", list(zip(recalls, precisions.tolist(), strict=True)), precisions is mean)
        for label, ap50, precisions in curves
    ]
    return draw_lines(f"pr {name}", lines, "recall", "precision", is_share=True)


def evaluated_weights(found: EvaluatedSet, run: RunFiles) -> str:
    """Name the evaluated model, such as "model_final.pth, after 400 iterations"; "" if it was not recorded."""
    if found.iterations is None:
        return found.weights
    planned = run.config_value("SOLVER.MAX_ITER")
    is_last = isinstance(planned, int) and found.iterations >= planned
    files = [FINAL_CHECKPOINT] * is_last + [periodic_checkpoint(found.iterations - 1)]
    file = next((name for name in files if name in run.weights), None)
    when = f"after {found.iterations:,} iterations"
    return f"{file}, {when}" if file else f"the model {when}"


def _better_model(found: EvaluatedSet, best: BestScore | None, run: RunFiles) -> str:
    """Name the training's best model in a sentence; "" if it was the evaluated one or none is known."""
    better, kept, which = best, BEST_CHECKPOINT, ""
    of_average = best_score(run.metrics, f"{EMA}/{found.metric_prefix}")
    if of_average and (best is None or of_average.ap > best.ap):
        better, kept, which = of_average, BEST_EMA_CHECKPOINT, ", of the EMA of the weights"
    if better is None or found.weights == kept or (not which and found.iterations == better.iterations):
        return ""
    # the best files are chosen by the first set that was scored
    chosen_by = next((s.metric_prefix for s in run.sets if best_score(run.metrics, s.metric_prefix)), None)
    is_kept = kept in run.weights and found.metric_prefix == chosen_by
    file = f": {kept}, which predict and export take" if is_kept else ""
    return f"The training's best was AP {better.ap:.1f} after {better.iterations:,} iterations{which}{file}."
