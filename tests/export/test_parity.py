"""What counts as the same detections, and what does not."""

import numpy as np

from focal_det.export.parity import BOX_TOLERANCE, SCORE_TOLERANCE, compare
from focal_det.inference.detections import Detections

IMAGE = np.zeros((40, 60, 3), np.uint8)
BOXES = np.array([[1, 2, 11, 12], [20, 5, 30, 25], [40, 1, 50, 9]], np.float32)
SCORES = np.array([0.9, 0.5, 0.2], np.float32)
CLASSES = np.array([0, 1, 0])


def detector(boxes=BOXES, scores=SCORES, classes=CLASSES):
    return lambda images: [Detections(boxes, scores, classes) for _ in images]


def problems(other, *, cut=0.05, most=100):
    return compare(detector(), other, [IMAGE], cut=cut, most=most).problems


def test_rounding_is_no_difference_and_is_told():
    other = detector(BOXES + np.float32(0.01), SCORES - np.float32(1e-4))
    parity = compare(detector(), other, [IMAGE, IMAGE], cut=0.05, most=100)
    assert parity.problems == []
    assert (parity.images, parity.detections) == (2, 6)
    np.testing.assert_allclose([parity.box_difference, parity.score_difference], [0.01, 1e-4], rtol=1e-3)


def test_another_order_of_equal_detections_is_no_difference():
    order = [2, 0, 1]
    assert problems(detector(BOXES[order], SCORES[order], CLASSES[order])) == []


def test_boxes_scores_and_classes_beyond_the_tolerance_are_differences():
    assert len(problems(detector(BOXES + np.float32(2 * BOX_TOLERANCE)))) == 1
    assert len(problems(detector(scores=SCORES + np.float32(2 * SCORE_TOLERANCE)))) == 1
    (line,) = problems(detector(classes=np.array([0, 0, 0])))
    assert line == (
        "image 1 (60x40): 2 detections that only one of them has, the best of them with score 0.500, beside 2 of both"
    )


def test_one_missing_is_a_difference_but_at_the_threshold():
    fewer = detector(BOXES[:2], SCORES[:2], CLASSES[:2])
    assert len(problems(fewer)) == 1
    assert problems(fewer, cut=0.1995) == []


def test_where_an_image_is_full_the_last_one_may_be_another():
    other = detector(BOXES + np.array([[0], [0], [5]], np.float32))
    assert len(problems(other)) == 1
    assert problems(other, most=3) == []


def test_a_full_image_of_other_detections_is_a_difference():
    other = detector(BOXES[:, [1, 0, 3, 2]] + 100, np.full(3, 0.95, np.float32), CLASSES + 1)
    assert len(problems(other, most=3)) == 1


def test_nonfinite_scores_are_a_difference():
    assert len(problems(detector(scores=np.full(3, np.nan, np.float32)))) == 1


def test_a_detection_is_matched_once():
    twice = detector(BOXES[[0, 0]], SCORES[[0, 0]], CLASSES[[0, 0]])
    once = detector(BOXES[:1], SCORES[:1], CLASSES[:1])
    assert len(compare(twice, once, [IMAGE], cut=0.05, most=100).problems) == 1


def test_nothing_found_by_both_is_the_same():
    none = detector(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert compare(none, none, [IMAGE], cut=0.05, most=100).problems == []
