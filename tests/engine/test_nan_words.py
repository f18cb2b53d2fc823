"""Every nan of an evaluation is explained."""

import json
import math

import pytest

from focal_det.engine.nan_words import nan_lines

NAN = math.nan
CATEGORIES = [{"id": 3, "name": "cell"}, {"id": 4, "name": "plate"}]


def box(side, category=3, **more):
    return {"category_id": category, "bbox": [0, 0, side, side], "area": side * side, **more}


def coco(*boxes):
    return {"categories": CATEGORIES, "annotations": list(boxes)}


def scores(**changed):
    return {"AP": 40.0, "AP50": 60.0, "AP75": 50.0, "APs": 1.0, "APm": 1.0, "APl": 1.0, **changed}


@pytest.mark.parametrize(
    ("found", "annotations", "lines"),
    [
        (scores(), coco(box(10)), []),
        (scores(APl=NAN), coco(box(10), box(50)), ["APl is nan: the set has no large objects (area from 96^2 px on)."]),
        (
            scores(APs=NAN, APm=NAN),
            coco(box(97), box(20, iscrowd=1)),
            [
                "APs is nan: the set has no small objects (area up to 32^2 px).",
                "APm is nan: the set has no medium objects (area of 32^2 to 96^2 px).",
            ],
        ),
        (
            scores(**{"AP-plate": NAN, "AP-cell": 1.0}),
            coco(box(10), box(50), box(100)),
            ["Each figure of plate is nan: the set has no objects of this class; means leave it out."],
        ),
        (
            dict.fromkeys(scores(), NAN),
            coco(box(10, iscrowd=1)),
            ["Every figure is nan: the set has no annotated objects, so there is nothing to find."],
        ),
        ({}, {"categories": CATEGORIES}, ["nothing is scored, since the set has no annotations"]),
    ],
)
def test_the_reason_is_in_the_annotations(tmp_path, found, annotations, lines):
    annotations["categories"] = [c for c in CATEGORIES if c["name"] == "cell" or "AP-plate" in found]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(annotations))
    assert nan_lines({"bbox": found} if found else {}, {"val": str(path)}) == [f"val: {line}" for line in lines]


def test_without_any_detection_the_threshold_is_named(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(coco(box(10))))
    (line,) = nan_lines({"bbox": dict.fromkeys(scores(), NAN)}, {"val": str(tmp_path / "a.json")})
    assert "no detections at all, of 1 object. Nothing scored above MODEL.RETINANET.SCORE_THRESH_TEST" in line


def test_an_area_that_is_not_given_is_that_of_the_box(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(coco({"category_id": 3, "bbox": [0, 0, 100, 100]})))
    lines = nan_lines({"bbox": scores(APm=NAN)}, {"val": str(tmp_path / "a.json")})
    assert "val: APm is nan: the set has no medium objects (area of 32^2 to 96^2 px)." in lines
    assert not any("APl" in line for line in lines)


def test_each_of_several_sets_has_its_lines(tmp_path):
    files = {}
    for name, content in (("a", coco(box(50), box(50, 4))), ("b", coco(box(10), box(50, 4)))):
        files[name] = str(tmp_path / f"{name}.json")
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    results = {"a": {"bbox": scores()}, "b": {"bbox": scores(APl=NAN)}}
    assert nan_lines(results, files) == ["b: APl is nan: the set has no large objects (area from 96^2 px on)."]


@pytest.mark.parametrize("content", [None, "{", "3", '{"annotations": [{}], "categories": []}'])
def test_a_file_that_cannot_be_read_ends_no_training(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    assert nan_lines({"bbox": scores(APs=NAN)}, {"val": str(path), "far": "s3://bucket/a.json"}) == []
    assert nan_lines({"bbox": scores(APs=NAN)}, {"val": str(path)}) == []
