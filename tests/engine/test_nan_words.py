"""Every nan of an evaluation is explained."""

import json
import math

import pytest

from focal_det.engine.nan_words import nan_lines, nan_words

NAN = math.nan
CATEGORIES = [{"id": 3, "name": "cell"}, {"id": 4, "name": "plate"}]


def box(side, category=3, **more):
    return {"category_id": category, "bbox": [0, 0, side, side], "area": side * side, **more}


def coco(*boxes):
    return {"categories": CATEGORIES, "annotations": list(boxes)}


def scores(**changed):
    return {"AP": 40.0, "AP50": 60.0, "AP75": 50.0, "APs": 1.0, "APm": 1.0, "APl": 1.0, **changed}


@pytest.mark.parametrize(
    ("found", "annotations", "words"),
    [
        (scores(), coco(box(10)), None),
        (scores(APl=NAN), coco(box(10), box(50)), "APl: the set has no large objects (over 96x96 px)"),
        (
            scores(APs=NAN, APm=NAN),
            coco(box(97), box(20, iscrowd=1)),
            "APs: the set has no small objects (up to 32x32 px); "
            "APm: the set has no medium objects (32x32 to 96x96 px)",
        ),
        (scores(**{"AP-plate": NAN, "AP-cell": 1.0}), coco(box(10)), "AP-plate: the set has no plate"),
        (dict.fromkeys(scores(), NAN), coco(box(10, iscrowd=1)), "the set has no objects (crowds do not count)"),
        ({}, {"categories": CATEGORIES}, "nothing is scored, since the set has no annotations"),
    ],
)
def test_the_reason_is_in_the_annotations(found, annotations, words):
    assert nan_words(found, annotations, score_thresh=0.05) == words


def test_without_any_detection_the_threshold_is_named():
    words = nan_words(dict.fromkeys(scores(), NAN), coco(box(10)), score_thresh=0.05)
    assert words.startswith("there is no detection with a score above MODEL.RETINANET.SCORE_THRESH_TEST 0.05")


def test_an_area_that_is_not_given_is_that_of_the_box():
    bare = {"category_id": 3, "bbox": [0, 0, 100, 100]}
    assert nan_words(scores(APm=NAN), coco(bare), score_thresh=0.05).startswith("APm: the set has no medium")


def test_each_of_several_sets_has_its_line(tmp_path):
    files = {}
    for name, content in (("a", coco(box(50))), ("b", coco(box(10)))):
        files[name] = str(tmp_path / f"{name}.json")
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    results = {"a": {"bbox": scores()}, "b": {"bbox": scores(APl=NAN)}}
    assert nan_lines(results, files, score_thresh=0.05) == [
        "AP nan on b: APl: the set has no large objects (over 96x96 px)"
    ]
    alone = {"bbox": scores(APs=NAN)}
    assert nan_lines(alone, {"a": files["a"]}, score_thresh=0.05) == [
        "AP nan on a: APs: the set has no small objects (up to 32x32 px)"
    ]
