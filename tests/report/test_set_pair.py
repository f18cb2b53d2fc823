"""Two evaluations on the same set, small enough to be worked out by hand."""

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from focal_det.evaluation.diagnosis import Interval
from focal_det.report.run_files import EvaluatedSet
from focal_det.report.set_pair import FoundBy, compare_sets, noise_words, same_set

A, B = [0, 0, 20, 20], [50, 50, 40, 40]
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def truth(images=2):
    """A cat and a dog in each image."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in range(1, images + 1)],
        "categories": CATEGORIES,
        "annotations": [
            {"image_id": i, "category_id": c, "bbox": box} for i in range(1, images + 1) for c, box in ((1, A), (2, B))
        ],
    }


def evaluated(*rows, images=2, folder=None, **changes):
    """An evaluation that found rows (image_id, category_id, bbox, score)."""
    found = [{"image_id": i, "category_id": c, "bbox": box, "score": score} for i, c, box, score in rows]
    return EvaluatedSet("mine", truth(images), folder and Path(folder), found, 0.0, **changes)


FIRST = evaluated((1, 1, A, 0.9), (1, 2, B, 0.9), (2, 1, A, 0.9))  # three of four objects
SECOND = evaluated((1, 1, A, 0.4), (2, 1, A, 0.4), (2, 2, B, 0.4))  # three, one of them another


def compare(first, second, threshold=None, images=3):
    return compare_sets(first, second, threshold=threshold, images=images, max_bytes=10**6)


def test_objects_are_counted_by_who_found_them():
    pair = compare(FIRST, SECOND)
    assert pair.found == FoundBy(both=2, first=1, second=1, neither=0)
    assert pair.thresholds == (0.9, 0.4)  # each at its best F1
    assert compare(FIRST, SECOND, threshold=0.5).found == FoundBy(both=0, first=3, second=0, neither=1)


def test_figures_stand_side_by_side():
    pair = compare(FIRST, evaluated((1, 1, A, 0.9), (2, 1, A, 0.9)))
    assert [c.name for c in pair.classes] == ["cat", "dog"]
    assert [c.objects for c in pair.classes] == [2, 2]
    assert pair.classes[0].ap == ("AP", pytest.approx(100), pytest.approx(100))
    assert pair.classes[1].ap.second == 0
    assert pair.classes[1].ap.difference == pytest.approx(-100 * 51 / 101)  # one of two objects: recalls up to .5
    assert pair.figures[0].difference == pytest.approx(-50 * 51 / 101)
    assert {c.name: (c.first > 0, c.second > 0) for c in pair.causes}["missed"] == (True, False)


def test_the_rules_own_scores_come_first():
    own = [evaluated((1, 1, A, 0.9), rule="LVIS", scores={"AP": ap}) for ap in (10.0, 12.5)]
    pair = compare(*own)
    assert pair.figures[0] == ("AP (LVIS)", 10.0, 12.5)
    assert compare(own[0], FIRST).figures[0].name == "AP"


def test_images_are_those_where_one_is_better(tmp_path):
    for i in (1, 2):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((100, 100, 3), 128, np.uint8))
    pair = compare(evaluated((1, 1, A, 0.9), (1, 2, B, 0.9), (2, 1, A, 0.9), folder=tmp_path), SECOND)
    assert [example.name for example in pair.examples.first] == ["1.png"]
    assert [example.name for example in pair.examples.second] == ["2.png"]
    drawn = pair.examples.first[0]
    assert len({drawn.truth, *drawn.detections}) == 3
    assert [len(errors.found) for errors in drawn.errors] == [2, 1]
    assert compare(FIRST, SECOND, images=0).examples.first == []
    assert len(compare(FIRST, SECOND).examples.unreadable) == 2


def test_sets_are_the_same_by_their_content():
    assert same_set(FIRST, SECOND)
    assert not same_set(FIRST, evaluated(images=3))
    other = evaluated()
    other.annotations["annotations"][0]["category_id"] = 2
    assert not same_set(FIRST, other)
    assert not same_set(EvaluatedSet("mine", None, None, [], 0.0), EvaluatedSet("mine", None, None, [], 0.0))


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-1, 2, "it contains 0, so this set does not tell"),
        (1, 2, "B is the better model"),
        (-2, -1, "A is the better model"),
    ],
)
def test_the_interval_in_words(low, high, words):
    pair = compare(FIRST, SECOND)
    pair = replace(pair, interval=Interval(low, high, 200))
    assert f"in 200 draws of the 2 images: 95 % lie in [{low:+.1f}, {high:+.1f}]" in noise_words(pair)
    assert words in noise_words(pair)


def test_a_run_without_detections():
    pair = compare(FIRST, evaluated())
    assert pair.interval is None
    assert pair.causes == ()
    assert math.isnan(pair.figures[0].second)
    assert not pair.classes[0].is_scored
    assert pair.found == FoundBy(0, 3, 0, 1)
