"""What the page says of scores and thresholds."""

import pytest

from focal_det.evaluation.diagnosis import Diagnosis, ScoreBin
from focal_det.report.score_charts import calibration_words, reliability_chart, threshold_chart, threshold_words


def of_bins(*bins, objects=100):
    """A diagnosis with bins (low, mean score, detections, right)."""
    parts = tuple(ScoreBin(low, low + 0.05, mean, number, right) for low, mean, number, right in bins)
    return Diagnosis((), parts, 0.1, objects)


@pytest.mark.parametrize(
    ("right", "words"), [(50, "50% of them are right: the scores are too high."), (80, "about right"), (96, "too low")]
)
def test_scores_are_too_high_or_too_low(right, words):
    text = calibration_words(of_bins((0.2, 0.2, 500, 0), (0.5, 0.5, 10, 5), (0.8, 0.84, 90, right - 5)))
    assert text.startswith("The 100 detections with a score of at least 0.5 have a mean score of 0.81, and")
    assert words in text


def test_few_detections_say_nothing():
    few = of_bins((0.2, 0.2, 9, 3), (0.8, 0.84, 9, 9))
    assert calibration_words(few) == ""
    assert reliability_chart("a", few) is None
    assert threshold_chart("a", few) is not None
    assert threshold_chart("a", of_bins()) is None


def test_the_best_threshold_is_named():
    found = of_bins((0.3, 0.3, 60, 6), (0.6, 0.6, 60, 48), (0.9, 0.9, 30, 30), objects=100)
    # from .6 on 78 of 90 are right, of 100 objects: F1 is 2 * 78 / 190
    words = threshold_words(found.best_threshold())
    assert words.startswith("The best F1, 0.82, is at a least score of 0.6: 87% of what is left is right, and 78% of")


def test_curves_lead_through_the_bins_with_enough_detections():
    chart = reliability_chart("a", of_bins((0.3, 0.3, 60, 6), (0.6, 0.6, 9, 9), (0.9, 0.9, 30, 30)))
    assert [label for *_, label in chart.legend] == ["this model", "score = share that is right"]
    markers = chart.svg.count("<use")
    assert markers - reliability_chart("a", of_bins((0.3, 0.3, 60, 6))).svg.count("<use") == 1
