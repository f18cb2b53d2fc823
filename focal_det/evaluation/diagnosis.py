"""Causes of lost AP, calibration of the scores, and the interval of a difference, by hotcoco's analyses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..formats.coco_index import Row
from .coco_arrays import accumulate, hotcoco
from .matching import MATCHED

NEAR = 0.1  # IoU from which a box is near an object
NUM_BINS = 20  # of scores, so thresholds are in steps of .05
_KINDS = {  # hotcoco's names of them
    "Cls": "wrong class",
    "Loc": "loose box",
    "Both": "wrong class and loose box",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}
_MAX_DETECTIONS = 100  # of an image and class, as in AP
_BOOTSTRAPPED = 20_000_000  # detections that are scored in all samples together, if that leaves enough samples
_PER_CLASS = 500  # a class takes as long as so many detections
_FEWEST_SAMPLES, _MOST_SAMPLES = 200, 1000


class Cause(NamedTuple):
    """A kind of error, how often it occurs, and by how much AP50, in percent, would rise if it alone were fixed.

    The kinds are TIDE's (Bolya et al. 2020, arXiv:2008.08115). A detection that is not right is of the first of these
    that applies, by its largest IoU with an object of the classes named:
        loose box: .1 to .5 with one of its class. To fix it is to move it onto the object, or if that is found, to
            leave it out.
        wrong class: .5 or more with one of another class. It gets that class, or if the object is found, is left out.
        duplicate: .5 or more with one of its class, which a higher score has found. It is left out.
        background: below .1 with every object. It is left out.
        wrong class and loose box: any other. It is left out.
    Missed is an object that is not found and that no detection of the first two kinds is near; to fix it is
    not to count it. The gains do not add up to what AP50 lacks, since one error hides another.
    """

    name: str
    times: int
    gain: float


class ScoreBin(NamedTuple):
    """The detections with scores in [low, high), of the last bin in [low, high].

    mean_score: nan if there are none.
    right: how many match an object of their class at IoU .5, one to one.
    """

    low: float
    high: float
    mean_score: float
    detections: int
    right: int


class AtThreshold(NamedTuple):
    """A least score, and precision, recall and F1 of what it keeps, at IoU .5 over all classes together, in [0, 1]."""

    threshold: float
    precision: float
    recall: float
    f1: float


class Diagnosis(NamedTuple):
    """The causes of errors, and what the scores are worth.

    bins: of scores, ascending; () if one is outside [0, 1].
    calibration_error: the expected one, the mean over detections of |score - share that is right| by bin, in [0, 1].
    objects: annotated, without crowds.
    """

    causes: tuple[Cause, ...]
    bins: tuple[ScoreBin, ...]
    calibration_error: float
    objects: int

    def thresholds(self) -> list[AtThreshold]:
        """Return what is left at the lower end of each bin, ascending, as far as anything is left."""
        rows, kept, right = [], 0, 0
        for part in reversed(self.bins):
            kept, right = kept + part.detections, right + part.right
            if kept:
                f1 = 2 * right / (kept + self.objects)
                rows.append(AtThreshold(part.low, right / kept, right / self.objects, f1))
        return rows[::-1]

    def best_threshold(self) -> AtThreshold | None:
        """Return the one with the highest F1, the highest of equals; None if there are no bins."""
        return max(self.thresholds(), key=lambda row: (row.f1, row.threshold), default=None)


class Interval(NamedTuple):
    """A 95 % interval of a difference of AP in percent, over `samples` draws of the test set's images."""

    low: float
    high: float
    samples: int

    @property
    def holds_zero(self) -> bool:
        """Whether no difference at all lies in it."""
        return self.low <= 0 <= self.high


def diagnose(ground_truth: Mapping[str, Any], detections: Sequence[Row]) -> Diagnosis | None:
    """Sort the errors of detections by their cause and their scores by what they are worth.

    Crowds are no objects, and a detection within one of its class counts nowhere. All scores count.

    Args:
        ground_truth, detections: as of `evaluate`, which takes the same time: 2 s for 500,000 detections.

    Returns:
        None if there are no objects or no detections, or hotcoco is missing, which `accumulate` has logged.

    Raises:
        ValueError: as `evaluate`.
    """
    objects = sum(not a.get("iscrowd") for a in ground_truth["annotations"])
    if not objects or not detections or hotcoco() is None:
        return None
    evaluator = accumulate(ground_truth, detections, [_MAX_DETECTIONS])
    found = evaluator.tide_errors(pos_thr=MATCHED, bg_thr=NEAR)
    causes = tuple(Cause(_KINDS[kind], found["counts"][kind], 100 * found["delta_ap"][kind]) for kind in _KINDS)
    if not all(0 <= d["score"] <= 1 for d in detections):
        return Diagnosis(causes, (), float("nan"), objects)
    measured = evaluator.calibration(n_bins=NUM_BINS, iou_threshold=MATCHED)
    bins = tuple(
        ScoreBin(
            round(part["bin_lower"], 2),
            round(part["bin_upper"], 2),
            part["avg_confidence"] if part["count"] else float("nan"),
            part["count"],
            round(part["count"] * part["avg_accuracy"]),
        )
        for part in measured["bins"]
    )
    return Diagnosis(causes, bins, measured["ece"], objects)


def ap_difference(
    ground_truth: Mapping[str, Any], first: Sequence[Row], second: Sequence[Row], *, seed: int = 0
) -> Interval | None:
    """Return in which interval the AP of `second` less that of `first` lies, by a paired bootstrap over the images.

    Each of 1,000 samples, of 200 where there are many detections or classes, draws as many images as there are, with
    replacement, and scores both on the same ones. It tells what other images of the kind would change, and nothing of
    what another training would. Two times 500,000 detections of 80 classes take half a minute on one core.

    Returns:
        None if either has no detections, or hotcoco is missing.

    Raises:
        ValueError: as `evaluate`.
    """
    if not first or not second or hotcoco() is None:
        return None
    number = _BOOTSTRAPPED // (len(first) + len(second) + _PER_CLASS * len(ground_truth["categories"]))
    samples = min(max(number, _FEWEST_SAMPLES), _MOST_SAMPLES)
    evaluators = (accumulate(ground_truth, rows, [_MAX_DETECTIONS]) for rows in (first, second))
    package: Any = hotcoco()
    found = package.compare(*evaluators, n_bootstrap=samples, seed=seed, confidence=0.95)["ci"]["AP"]
    return Interval(100 * found["lower"], 100 * found["upper"], samples)
