"""Two evaluations on the same test set: scores beside each other, how sure they are, where one alone is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..evaluation.coco_scores import Evaluation, evaluate, looked_for
from ..evaluation.diagnosis import Diagnosis, Interval, ap_difference, diagnose
from ..evaluation.matching import Matching, match
from .examples import PairExamples, draw_pairs
from .run_files import EvaluatedSet

_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")
_THRESHOLD = 0.5  # where the best cannot be computed


class Scores(NamedTuple):
    """A figure of both runs, in percent; nan where there is nothing to compute one from."""

    name: str
    first: float
    second: float

    @property
    def difference(self) -> float:
        """Return by how much the second is higher."""
        return self.second - self.first


class ClassPair(NamedTuple):
    """The scores of a class in both runs, and its annotated objects."""

    name: str
    objects: int
    ap: Scores
    ap50: Scores

    @property
    def is_scored(self) -> bool:
        """Whether both have an AP."""
        return not math.isnan(self.ap.difference)


class FoundBy(NamedTuple):
    """How many objects are found, of their class, by both runs, by one alone, and by neither."""

    both: int
    first: int
    second: int
    neither: int


@dataclass(frozen=True)
class SetPair:
    """A test set that both runs were evaluated on.

    figures: AP and the like; of a set with a rule of its own, that rule's first.
    interval: of the difference of AP; None if there is none to compute.
    causes: the AP50 that would be gained without each kind of error; () if it cannot be computed.
    thresholds: the least scores of both runs that count in `found` and in the drawings.
    """

    name: str
    images: int
    figures: tuple[Scores, ...]
    classes: tuple[ClassPair, ...]
    interval: Interval | None
    causes: tuple[Scores, ...]
    thresholds: tuple[float, float]
    found: FoundBy
    examples: PairExamples


def same_set(first: EvaluatedSet, second: EvaluatedSet) -> bool:
    """Return whether both were scored against the same images, classes and objects, whatever the files' names."""
    return None not in (first.annotations, second.annotations) and _content(first) == _content(second)


def compare_sets(
    first: EvaluatedSet, second: EvaluatedSet, *, threshold: float | None, images: int, max_bytes: int
) -> SetPair:
    """Compare two evaluations on the same set.

    Args:
        threshold: least score of what counts as found; None for the one with the best F1 of each run.
        images: how many are drawn where the one is better, and as many where the other is.

    Raises:
        ArithmeticError, AttributeError, LookupError, TypeError, ValueError: files that do not fit together.
    """
    runs, truth = (first, second), first.annotations or {}
    rows = [looked_for(truth, run.detections) for run in runs]
    evaluations = [evaluate(truth, each) for each in rows]
    diagnoses = [diagnose(truth, each) for each in rows]
    thresholds = [_THRESHOLD if threshold is None else threshold] * 2
    if threshold is None:
        bests = [diagnosis and diagnosis.best_threshold() for diagnosis in diagnoses]
        thresholds = [best.threshold if best else _THRESHOLD for best in bests]
    matchings = [match(truth, each, score_threshold=least) for each, least in zip(rows, thresholds, strict=True)]
    return SetPair(
        name=first.name if first.name == second.name else f"{first.name} and {second.name}",
        images=evaluations[0].images,
        figures=(*_own_figures(first, second), *(_of_both(name, evaluations) for name in _FIGURES)),
        classes=tuple(
            ClassPair(a.name, a.objects, Scores("AP", a.AP, b.AP), Scores("AP50", a.AP50, b.AP50))
            for a, b in zip(evaluations[0].classes, evaluations[1].classes, strict=True)
        ),
        interval=ap_difference(truth, *rows),
        causes=_causes(diagnoses),
        thresholds=(thresholds[0], thresholds[1]),
        found=_found_by(*matchings),
        examples=draw_pairs(
            truth,
            list(zip(rows, matchings, strict=True)),
            first.image_dir or second.image_dir,
            count=images,
            max_bytes=max_bytes,
        ),
    )


def noise_words(pair: SetPair) -> str:
    """Say how sure the difference of AP is, as far as the images go."""
    interval = pair.interval
    if interval is None:
        return "How sure the difference is cannot be computed: a run has no detections, or hotcoco is missing."
    doubt = (
        "it contains 0, so this set does not tell which run is better"
        if interval.holds_zero
        else f"it does not contain 0, so on images of this kind {'B' if interval.low > 0 else 'A'} is the better model"
    )
    few = " With so few images that is a rough figure." if pair.images < 50 else ""
    return (
        f"The AP of B minus that of A, in {interval.samples:,} draws of the {pair.images:,} images: 95 % lie in "
        f"[{interval.low:+.1f}, {interval.high:+.1f}]; {doubt}.{few}"
    )


def _content(found: EvaluatedSet) -> Any:
    coco = found.annotations or {}
    return (
        [(image.get("id"), image.get("file_name")) for image in coco["images"]],
        [(row.get("id"), row.get("name")) for row in coco["categories"]],
        [tuple(a.get(k) for k in ("image_id", "category_id", "bbox", "iscrowd")) for a in coco["annotations"]],
    )


def _of_both(name: str, evaluations: Sequence[Evaluation]) -> Scores:
    return Scores(name, getattr(evaluations[0], name), getattr(evaluations[1], name))


def _own_figures(first: EvaluatedSet, second: EvaluatedSet) -> list[Scores]:
    """Return the scores by the rule of a set that is not scored as COCO does."""
    names = [name for name in first.scores if name in second.scores] if first.rule == second.rule else []
    return [Scores(f"{name} ({first.rule})", first.scores[name], second.scores[name]) for name in names]


def _causes(diagnoses: Sequence[Diagnosis | None]) -> tuple[Scores, ...]:
    first, second = diagnoses
    if first is None or second is None:
        return ()
    return tuple(Scores(a.name, a.gain, b.gain) for a, b in zip(first.causes, second.causes, strict=True))


def _found_by(first: Matching, second: Matching) -> FoundBy:
    a, b = ({place for image in one.images for place, _ in image.found} for one in (first, second))
    return FoundBy(len(a & b), len(a - b), len(b - a), int(first.objects_by_size.sum()) - len(a | b))
