"""A data set is known by its content, wherever it is, and a few of its images stand for all."""

import copy

import pytest

from focal_det.data.statistics import evenly_spread, fingerprint

COCO = {
    "images": [
        {"id": 7, "file_name": "b.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "a.png", "width": 20, "height": 30},
    ],
    "categories": [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4], "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 4, "bbox": [5.5, 6, 7, 8]},
        {"id": 3, "image_id": 7, "category_id": 4, "bbox": [0, 0, 9, 9]},
    ],
}


def changed(change):
    coco = copy.deepcopy(COCO)
    change(coco)
    return fingerprint(coco)


def renumber(coco):
    for image in coco["images"]:
        image["id"] *= 10
    for annotation in coco["annotations"]:
        annotation["image_id"] *= 10
        annotation["id"] += 100


def swap(coco, before, now):
    for entries, key in ((coco["images"], "id"), (coco["annotations"], "image_id")):
        for entry in entries:
            entry[key] = now if entry[key] == before else entry[key]


@pytest.mark.parametrize(
    "change",
    [
        lambda coco: coco["images"].reverse(),  # they are read by their ids
        lambda coco: coco["annotations"].sort(key=lambda a: a["image_id"]),  # those of an image stay in their order
        lambda coco: coco.update(info={"url": "elsewhere"}),
        renumber,
    ],
)
def test_what_training_does_not_see_changes_nothing(change):
    assert changed(change) == fingerprint(COCO)


@pytest.mark.parametrize(
    "change",
    [
        lambda coco: coco["images"][0].update(file_name="c.png"),
        lambda coco: coco["images"][0].update(width=41),
        lambda coco: swap(coco, 7, 1),  # now the first
        lambda coco: coco["annotations"][0].update(category_id=4),
        lambda coco: coco["annotations"][1].update(bbox=[5.25, 6, 7, 8]),
        lambda coco: coco["annotations"][0].update(iscrowd=1),
        lambda coco: coco["annotations"].reverse(),  # those of one image, too
        lambda coco: coco["annotations"].pop(),
        lambda coco: coco["images"].append({"id": 8, "file_name": "empty.png", "width": 1, "height": 1}),
    ],
)
def test_what_training_sees_changes_it(change):
    assert changed(change) != fingerprint(COCO)


def test_a_set_without_objects_has_one():
    assert len(fingerprint({**COCO, "annotations": []})) == 64


def test_they_are_evenly_spread_and_bounded():
    assert evenly_spread(list(range(10)), 4) == [0, 2, 5, 7]  # from 0 in steps of 2.5, rounded down
    assert evenly_spread([1, 2], 4) == [1, 2]
    assert evenly_spread([1, 2], 0) == evenly_spread([], 3) == []
