"""What is found, missed, mistaken and made up: small images worked out by hand."""

import time

import numpy as np
import pytest

from focal_det.evaluation.coco_scores import evaluate
from focal_det.evaluation.matching import match

CATEGORIES = [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}]  # labels: cat 0, dog 1


def truth(*rows, images=(1,)):
    """Of rows (image_id, category_id, bbox, and iscrowd if it is one)."""
    annotations = [
        {"image_id": i, "category_id": c, "bbox": box, "iscrowd": int(bool(crowd))} for i, c, box, *crowd in rows
    ]
    records = [{"id": i, "width": 500, "height": 500} for i in images]
    return {"images": records, "categories": CATEGORIES, "annotations": annotations}


def detections(*rows):
    return [{"image_id": i, "category_id": c, "bbox": box, "score": score} for i, c, box, score in rows]


A, B, C = [0, 0, 20, 20], [100, 100, 40, 40], [200, 200, 120, 120]  # small, medium, large; far apart


def test_found_confused_missed_and_false():
    annotated = truth((1, 1, A), (1, 3, B), (1, 3, C))
    found = detections((1, 1, A, 0.9), (1, 1, B, 0.8), (1, 3, [400, 0, 50, 50], 0.7))
    result = match(annotated, found, score_threshold=0.5)
    image = result.images[0]
    assert image == (1, [(0, 0)], [(1, 1)], [2], [2])
    assert image.num_errors == 3
    assert image.quality == pytest.approx(2 / (3 + 3))  # one of three objects, with one of three detections
    #                                              cat  dog  missed
    assert result.confusion.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert result.objects_by_size.tolist() == [1, 1, 1]
    assert result.missed_by_size.tolist() == [0, 0, 1]
    assert result.false_by_size.tolist() == [0, 1, 0]


def test_the_threshold_belongs_to_what_is_kept():
    found = detections((1, 1, A, 0.5), (1, 1, A, 0.4999))
    assert match(truth((1, 1, A)), found, score_threshold=0.5).confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert match(truth((1, 1, A)), found, score_threshold=0.6).images[0].missed == [0]


def test_the_best_score_takes_the_object_and_a_second_detection_is_false():
    found = detections((1, 1, A, 0.6), (1, 1, [0, 0, 20, 15], 0.9))
    assert match(truth((1, 1, A)), found, score_threshold=0).images[0] == (1, [(0, 1)], [], [], [0])


def test_a_detection_takes_what_it_overlaps_most():
    near = [0, 4, 20, 20]
    result = match(truth((1, 1, A), (1, 1, near)), detections((1, 1, near, 0.9), (1, 1, A, 0.8)), score_threshold=0)
    assert result.images[0].found == [(1, 0), (0, 1)]


def test_a_detection_whose_best_object_is_taken_takes_the_next():
    below = [0, 6, 20, 20]  # IoU with A: 14 of 26 px, .54
    result = match(
        truth((1, 1, A), (1, 1, below)), detections((1, 1, A, 0.9), (1, 1, [0, 1, 20, 20], 0.8)), score_threshold=0
    )
    assert result.images[0].found == [(0, 0), (1, 1)]  # 15 of 25 px, .6


def test_the_right_class_comes_before_a_wrong_one_with_a_higher_score():
    found = detections((1, 3, A, 0.9), (1, 1, A, 0.3))
    assert match(truth((1, 1, A)), found, score_threshold=0).images[0] == (1, [(0, 1)], [], [], [0])


def test_a_crowd_is_no_object_and_hides_detections_of_its_class_alone():
    annotated = truth((1, 1, C, True))
    inside = [210, 210, 30, 30]
    result = match(annotated, detections((1, 1, inside, 0.9), (1, 3, inside, 0.9)), score_threshold=0)
    assert result.images[0] == (1, [], [], [], [1])
    assert result.objects_by_size.sum() == 0


def test_a_crowd_of_an_unknown_category_is_ignored():
    result = match(truth((1, 1, A), (1, 99, C, True)), detections((1, 1, A, 0.9), (1, 1, C, 0.8)), score_threshold=0)
    assert result.images[0] == (1, [(0, 0)], [], [], [1])


def test_empty_images_and_other_images_boxes():
    annotated = truth((1, 1, A), (2, 3, A), images=(1, 2, 3))
    result = match(annotated, detections((2, 1, A, 0.9)), score_threshold=0)
    assert [(p.image_id, len(p.missed), len(p.confused)) for p in result.images] == [(1, 1, 0), (2, 0, 1), (3, 0, 0)]
    assert result.images[2].quality == 1


def random_set(rng, images, objects=8):
    boxes = np.hstack([rng.uniform(0, 400, (images * objects, 2)), rng.uniform(10, 90, (images * objects, 2))])
    annotated = truth(
        *((1 + i // objects, int(rng.choice([1, 3])), box.tolist()) for i, box in enumerate(boxes)),
        images=range(1, images + 1),
    )
    moved = boxes + rng.normal(0, 6, boxes.shape)
    moved[:, 2:] = np.maximum(moved[:, 2:], 2)
    found = detections(
        *((1 + i // objects, int(rng.choice([1, 3])), box.tolist(), rng.random()) for i, box in enumerate(moved))
    )
    return annotated, found


def test_recall_of_each_class_is_cocos_at_iou_50():
    annotated, found = random_set(np.random.default_rng(0), 40)
    result = match(annotated, found, score_threshold=0)
    # COCO's precision is > 0 up to the recall that is reached, here with all detections.
    precisions = evaluate(annotated, found).precisions
    for k in range(2):
        recall = result.confusion[k, k] / result.confusion[k].sum()
        assert (precisions[k] > 0).sum() == int(recall * 100) + 1


def test_5000_images_take_seconds():
    annotated, found = random_set(np.random.default_rng(0), 5000)
    start = time.process_time()
    result = match(annotated, found, score_threshold=0.05)
    assert time.process_time() - start < 15  # 1 s on an idle core
    assert result.confusion[:2].sum() == 40000
