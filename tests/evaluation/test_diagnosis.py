"""What costs AP, worked out by hand; scores and thresholds against the matching; the bootstrap against one by hand."""

import math

import numpy as np
import pytest

from focal_det.evaluation import diagnosis
from focal_det.evaluation.coco_scores import evaluate
from focal_det.evaluation.diagnosis import NUM_BINS, ap_difference, diagnose
from focal_det.evaluation.matching import match

CATEGORIES = [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}]
A, B, C = [0, 0, 20, 20], [100, 100, 40, 40], [200, 200, 120, 120]  # far apart
LOOSE = [0, 0, 20, 8]  # IoU .4 with A
FAR = [0, 0, 20, 1]  # IoU .05 with A


def truth(*rows, images=1):
    """Of rows (category_id, bbox, and whether it is a crowd), the same in each image."""
    annotations = [
        {"image_id": image, "category_id": c, "bbox": box, "iscrowd": int(bool(crowd))}
        for image in range(1, images + 1)
        for c, box, *crowd in rows
    ]
    return {"images": [{"id": i + 1} for i in range(images)], "categories": CATEGORIES, "annotations": annotations}


def found(*rows, image=1):
    return [{"image_id": image, "category_id": c, "bbox": box, "score": score} for c, box, score in rows]


def causes(annotated, detections):
    """The kinds that occur: {name: (count, gain)}."""
    return {
        cause.name: (cause.times, pytest.approx(cause.gain))
        for cause in diagnose(annotated, detections).causes
        if cause.times
    }


# COCO's AP is a mean over 101 recalls: what is found up to recall 1/2 counts at 51 of them, up to 2/3 at 67.
def test_a_wrong_class_costs_the_object_of_the_right_one():
    # the cat has AP 1, the dog 0; with the right class both have 1
    assert causes(truth((1, A), (3, B)), found((1, A, 0.9), (1, B, 0.8))) == {"wrong class": (1, 50)}


def test_a_loose_box_costs_its_object_and_precision():
    # the loose box comes first, so precision is 1/2 up to recall 1/2; moved onto the object, all is right
    assert causes(truth((1, A), (1, B)), found((1, LOOSE, 0.9), (1, B, 0.8))) == {
        "loose box": (1, 100 - 100 * 51 * 0.5 / 101)
    }


def test_wrong_class_and_loose_box_at_once_is_left_out_and_its_object_is_missed():
    # the cat's precision is 1/2, as a loose box of another class comes first; the missed dog is its class's only object
    result = causes(truth((1, B), (3, A)), found((1, LOOSE, 0.9), (1, B, 0.8)))
    assert result == {"wrong class and loose box": (1, 25), "missed": (1, 0)}


def test_a_duplicate_costs_precision():
    # right, wrong, right of two objects: precision 1 at 51 recalls and 2/3 at 50
    result = causes(truth((1, A), (1, B)), found((1, A, 0.9), (1, A, 0.8), (1, B, 0.7)))
    assert result == {"duplicate": (1, 100 * 50 / 101 / 3)}


def test_near_an_object_of_its_class_comes_before_one_of_another_class():
    assert causes(truth((1, A), (3, LOOSE)), found((1, LOOSE, 0.9))) == {"loose box": (1, 50), "missed": (1, 0)}


@pytest.mark.parametrize("box", [C, FAR])
def test_what_is_near_no_object_is_background(box):
    assert causes(truth((1, A)), found((1, box, 0.9), (1, A, 0.8))) == {"background": (1, 50)}


def test_a_missed_object_costs_recall():
    assert causes(truth((1, A), (1, B)), found((1, A, 0.8))) == {"missed": (1, 100 - 100 * 51 / 101)}


def test_all_is_right_and_a_crowd_hides_detections_of_its_class_alone():
    inside = [210, 210, 30, 30]
    annotated = truth((1, A), (1, C, True), (3, B))
    assert causes(annotated, found((1, A, 0.8), (1, inside, 0.9), (3, B, 0.7))) == {}
    # the dog's precision is 1/2: nothing is annotated there but a crowd of cats
    assert causes(annotated, found((1, A, 0.8), (3, inside, 0.9), (3, B, 0.7))) == {"background": (1, 25)}


def test_bins_hold_scores_and_what_is_right():
    result = diagnose(truth((1, A), (1, B)), found((1, A, 1.0), (1, A, 0.96), (1, C, 0.5), (1, B, 0.52)))
    assert len(result.bins) == NUM_BINS
    assert [part for part in result.bins if part.detections] == [
        (0.5, 0.55, pytest.approx(0.51), 2, 1),
        (0.95, 1.0, pytest.approx(0.98), 2, 1),
    ]
    assert math.isnan(result.bins[0].mean_score)
    # both bins have two of four detections: |.51 - .5| and |.98 - .5|
    assert result.calibration_error == pytest.approx((0.01 + 0.48) / 2)


def many(seed, images=12, number=30):
    """Drawn objects and detections; a third of the detections near an object, more of them with high scores."""
    rng = np.random.default_rng(seed)
    annotated = truth((1, A), (3, B), (1, C), (3, [200, 0, 60, 60]), images=images)
    rows = []
    for image in range(1, images + 1):
        for _ in range(number):
            near = annotated["annotations"][rng.integers(4)]
            is_near = rng.random() < 0.4
            box = np.array(near["bbox"]) * rng.uniform(0.8, 1.2, 4) if is_near else rng.uniform(1, 300, 4)
            category_id = near["category_id"] if rng.random() < 0.9 else 4 - near["category_id"]
            score = rng.uniform(0.3, 1) if is_near else rng.uniform(0, 0.6)
            rows += found((category_id, box.tolist(), score), image=image)
    return annotated, rows


def test_precision_and_recall_at_a_threshold_are_those_of_the_matching():
    annotated, rows = many(0)
    result = diagnose(annotated, rows)
    assert result.objects == 48
    at = {row.threshold: row for row in result.thresholds()}
    for threshold in (0.0, 0.35, 0.6, 0.9):
        right = sum(len(image.found) for image in match(annotated, rows, score_threshold=threshold).images)
        kept = sum(row["score"] >= threshold for row in rows)
        assert at[threshold] == (threshold, *map(pytest.approx, (right / kept, right / 48, 2 * right / (kept + 48))))
    best = result.best_threshold()
    assert best.f1 == max(row.f1 for row in at.values())
    assert 0 < best.threshold < 0.9


def test_thresholds_end_with_the_highest_score():
    assert [row.threshold for row in diagnose(truth((1, A)), found((1, A, 0.12))).thresholds()] == [0, 0.05, 0.1]


def test_scores_that_are_no_shares_have_no_bins():
    result = diagnose(truth((1, A)), found((1, A, 1.5)))
    assert result.bins == ()
    assert result.best_threshold() is None
    assert [cause.times for cause in result.causes] == [0] * 6


@pytest.mark.parametrize(
    ("annotated", "rows"),
    [(truth((1, A)), []), (truth((1, A, True)), found((1, A, 0.9))), (truth(), found((1, A, 0.9)))],
)
def test_nothing_to_explain(annotated, rows):
    assert diagnose(annotated, rows) is None


def test_without_hotcoco_there_is_none(monkeypatch):
    monkeypatch.setattr(diagnosis, "hotcoco", lambda: None)
    assert diagnose(truth((1, A)), found((1, A, 0.9))) is None
    assert ap_difference(truth((1, A)), found((1, A, 0.9)), found((1, A, 0.9))) is None


def test_the_interval_is_that_of_a_bootstrap_by_hand():
    (annotated, first), (_, second) = many(1), many(2)
    interval = ap_difference(annotated, first, second)
    assert interval == ap_difference(annotated, first, second)  # seeded
    assert interval.samples == 1000
    rng, differences = np.random.default_rng(0), []
    by_image = [[[r for r in rows if r["image_id"] == i + 1] for i in range(12)] for rows in (first, second)]
    for _ in range(300):
        drawn = rng.integers(12, size=12)
        of_sample = truth((1, A), (3, B), (1, C), (3, [200, 0, 60, 60]), images=12)
        scores = [
            evaluate(of_sample, [{**row, "image_id": k + 1} for k, i in enumerate(drawn) for row in rows[i]]).AP
            for rows in by_image
        ]
        differences.append(scores[1] - scores[0])
    low, high = np.percentile(differences, [2.5, 97.5])
    width = high - low
    assert interval.low == pytest.approx(low, abs=0.2 * width)
    assert interval.high == pytest.approx(high, abs=0.2 * width)


def test_images_that_are_all_alike_leave_no_doubt():
    annotated = truth((1, A), (3, B), images=5)
    half, all_of_them = (
        [row for image in range(1, 6) for row in found(*rows, image=image)]
        for rows in ([(1, A, 0.9)], [(1, A, 0.9), (3, B, 0.9)])
    )
    low, high, _ = ap_difference(annotated, half, all_of_them)
    assert (low, high) == (pytest.approx(50), pytest.approx(50))
    assert ap_difference(annotated, half, half).holds_zero
    assert not ap_difference(annotated, half, all_of_them).holds_zero


def test_fewer_samples_of_many_detections(monkeypatch):
    rows = found((1, A, 0.9))
    for detections, samples in ((300 * 1002, 300), (0, 200)):  # two detections, and two classes that count as 500 each
        monkeypatch.setattr(diagnosis, "_BOOTSTRAPPED", detections)
        assert ap_difference(truth((1, A)), rows, rows).samples == samples
    assert ap_difference(truth((1, A)), rows, []) is None
