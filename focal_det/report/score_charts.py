"""Words and charts about scores: how often they are right, and what each threshold keeps."""

from __future__ import annotations

from ..evaluation.diagnosis import AtThreshold, Diagnosis
from .charts import Chart, Line, draw_lines

_FEWEST = 10  # detections of a bin whose share is drawn; of fewer it means nothing
_HALF = 0.5
_CLOSE = 0.05  # a mean score that is so near the share of right detections is called right


def reliability_chart(name: str, diagnosis: Diagnosis) -> Chart | None:
    """Draw the share of detections that are right over their score; None if no bin has ten detections."""
    points = [(b.mean_score, b.right / b.detections) for b in diagnosis.bins if b.detections >= _FEWEST]
    if not points:
        return None
    lines = [Line("this model", points, True, True), Line("score = share that is right", [(0, 0), (1, 1)])]
    return draw_lines(f"reliability {name}", lines, "score", "share that is right", is_share=True)


def threshold_chart(name: str, diagnosis: Diagnosis) -> Chart | None:
    """Draw precision, recall and F1 over the least score; None if there are no bins."""
    rows = diagnosis.thresholds()
    if not rows:
        return None
    lines = [
        Line("precision", [(row.threshold, row.precision) for row in rows]),
        Line("recall", [(row.threshold, row.recall) for row in rows]),
        Line("F1", [(row.threshold, row.f1) for row in rows], is_main=True),
    ]
    return draw_lines(f"thresholds {name}", lines, "least score", "share", is_share=True)


def calibration_words(diagnosis: Diagnosis) -> str:
    """Say whether scores of .5 and more are too high or too low; "" if there are too few of them."""
    upper = [b for b in diagnosis.bins if b.low >= _HALF and b.detections]
    detections = sum(b.detections for b in upper)
    if detections < _FEWEST:
        return ""
    share = sum(b.right for b in upper) / detections
    score = sum(b.mean_score * b.detections for b in upper) / detections
    off = score - share
    verdict = "about right" if abs(off) <= _CLOSE else "too high" if off > 0 else "too low"
    return (
        f"The {detections:,} detections with a score of at least 0.5 have a mean score of {score:.2f}, and "
        f"{share:.0%} of them are right: the scores are {verdict}."
    )


def threshold_words(best: AtThreshold) -> str:
    """Say what the threshold with the best F1 keeps."""
    return (
        f"The best F1, {best.f1:.2f}, is at a least score of {best.threshold:g}: {best.precision:.0%} of what is left "
        f"is right, and {best.recall:.0%} of the objects are found. Where a false detection costs more than a missed "
        "object take a higher one, else a lower one."
    )
