"""COCO's scores: worked out by hand, and every figure that is nan explained."""

import math

import numpy as np
import pytest

from focal_det.evaluation.coco_scores import evaluate, looked_for, size_of

# Two images; a cat of 40 x 40 (medium) in each, a dog of 10 x 10 (small) in the first.
TRUTH = {
    "images": [{"id": 7, "width": 200, "height": 200}, {"id": 9, "width": 200, "height": 200}],
    "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"id": 0, "image_id": 7, "category_id": 2, "bbox": [0, 0, 40, 40]},
        {"id": 1, "image_id": 9, "category_id": 2, "bbox": [50, 50, 40, 40]},
        {"id": 2, "image_id": 7, "category_id": 5, "bbox": [100, 100, 10, 10]},
    ],
}


def detection(image_id, category_id, bbox, score):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


def test_scores_by_hand():
    # Cats: one of two found exactly, nothing false: precision 1 up to recall .5, which are 51 of 101 recalls.
    # The dog's box is 6 of 10 px high: IoU .6, so found at .5, .55 and .6, which are 3 of 10 thresholds.
    found = [detection(7, 2, [0, 0, 40, 40], 0.9), detection(7, 5, [100, 100, 10, 6], 0.8)]
    result = evaluate(TRUTH, found)
    cat, dog = result.classes
    assert (cat.name, cat.category_id, cat.objects, cat.detections) == ("cat", 2, 2, 1)
    assert pytest.approx((100 * 51 / 101, 100 * 51 / 101, 50)) == (cat.AP, cat.AP50, cat.AR)
    assert pytest.approx((30, 100, 30)) == (dog.AP, dog.AP50, dog.AR)
    assert pytest.approx((cat.AP + dog.AP) / 2) == result.AP
    assert pytest.approx((cat.AP50 + 0) / 2) == result.AP75
    assert (result.APs, result.APm) == pytest.approx((30, cat.AP))
    assert math.isnan(result.APl)
    assert pytest.approx(40) == result.AR
    assert result.objects_by_size == (1, 2, 0)
    assert result.precisions.shape == (2, 101)
    np.testing.assert_allclose(result.precisions[0], [1.0] * 51 + [0.0] * 50)
    assert result.explain() == ["APl is nan: the set has no large objects (area from 96^2 px on)."]


def test_the_annotation_with_id_0_counts_and_nothing_given_is_changed():
    before = {section: [dict(row) for row in rows] for section, rows in TRUTH.items()}
    found = [detection(7, 2, [0, 0, 40, 40], 0.9)]
    assert pytest.approx(50) == evaluate(TRUTH, found).classes[0].AR
    assert before == TRUTH
    assert found == [detection(7, 2, [0, 0, 40, 40], 0.9)]


def test_only_the_best_detections_of_an_image_count():
    # The right box has the lower score of two.
    found = [detection(7, 5, [0, 100, 10, 10], 0.9), detection(7, 5, [100, 100, 10, 10], 0.8)]
    assert evaluate(TRUTH, found).classes[1].AR == 100
    assert evaluate(TRUTH, found, max_detections=1).classes[1].AR == 0


def test_a_crowd_is_neither_found_nor_missed():
    crowd = {"id": 3, "image_id": 7, "category_id": 5, "bbox": [150, 150, 40, 40], "iscrowd": 1}
    truth = {**TRUTH, "annotations": [*TRUTH["annotations"], crowd]}
    found = [detection(7, 5, [100, 100, 10, 10], 0.5), detection(7, 5, [155, 155, 20, 20], 0.9)]
    dog = evaluate(truth, found).classes[1]
    assert (dog.AP, dog.AP50, dog.AR, dog.objects) == pytest.approx((100, 100, 100, 1))


def test_no_detections_at_all():
    result = evaluate(TRUTH, [])
    assert math.isnan(result.AP)
    assert math.isnan(result.AR)
    assert np.isnan(result.precisions).all()
    assert [c.objects for c in result.classes] == [2, 1]
    assert "no detections at all, of 3 objects" in result.explain()[0]


@pytest.mark.parametrize("found", [[], [detection(7, 2, [0, 0, 40, 40], 0.9)]])
def test_no_annotations_at_all(found):
    result = evaluate({**TRUTH, "annotations": []}, found)
    assert math.isnan(result.AP)
    assert result.explain() == ["Every figure is nan: the set has no annotated objects, so there is nothing to find."]


def test_a_class_without_objects_is_named_and_left_out_of_the_mean():
    truth = {**TRUTH, "annotations": TRUTH["annotations"][:2]}
    result = evaluate(truth, [detection(7, 2, [0, 0, 40, 40], 0.9)])
    assert math.isnan(result.classes[1].AP)
    assert pytest.approx(result.classes[0].AP) == result.AP
    assert "Each figure of dog is nan: the set has no objects of this class; means leave it out." in result.explain()


def test_one_class_alone():
    truth = {**TRUTH, "categories": TRUTH["categories"][1:], "annotations": TRUTH["annotations"][:2]}
    result = evaluate(truth, [detection(7, 2, [0, 0, 40, 40], 0.9), detection(9, 2, [50, 50, 40, 40], 0.9)])
    assert pytest.approx((100, 100)) == (result.AP, result.AR)
    assert [c.name for c in result.classes] == ["cat"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (detection(8, 2, [0, 0, 4, 4], 0.9), "detections of image_id 8, which the annotations don't have"),
        (detection(7, 1, [0, 0, 4, 4], 0.9), "detections of category_id 1, which the annotations don't have"),
    ],
)
def test_images_and_classes_that_are_not_annotated_are_named(found, message):
    with pytest.raises(ValueError, match=message):
        evaluate(TRUTH, [found])


def test_it_prints_nothing(capsys):
    evaluate(TRUTH, [detection(7, 2, [0, 0, 40, 40], 0.9)])
    assert capsys.readouterr() == ("", "")


def test_sizes_by_area():
    assert size_of(np.array([1, 1023.9, 1024, 9215, 9216])).tolist() == [0, 0, 1, 1, 2]


def test_of_an_lvis_file_only_classes_that_were_looked_for_count():
    images = [{**image, "neg_category_ids": [5] if image["id"] == 9 else []} for image in TRUTH["images"]]
    found = [detection(image_id, category, [0, 0, 9, 9], 0.5) for image_id in (7, 9) for category in (2, 5, 1)]
    assert looked_for(TRUTH, found) == found
    kept = looked_for({**TRUTH, "images": images}, found)
    # annotated in 7 are both classes, in 9 the cat; and the dog is known not to be in 9
    assert [(d["image_id"], d["category_id"]) for d in kept] == [(7, 2), (7, 5), (9, 2), (9, 5)]
