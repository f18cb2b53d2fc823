"""The same image in two sets, or twice in one, is found by content and said once with the number and names."""

import numpy as np
import pytest
from PIL import Image

from focal_det.data.duplicates import CheckedSet, duplicate_images, duplicate_warnings
from focal_det.formats import image_checks
from focal_det.formats.coco import check_coco


@pytest.fixture
def checked(tmp_path):
    """Checks a set of images, each file drawn from a seed; equal seeds are equal files."""

    def checked(name, seeds, *, is_trained_on=False, boxes=None, folder=None):
        place = tmp_path / (folder or name)
        place.mkdir(exist_ok=True)
        images, rows = [], []
        for number, (file, seed) in enumerate(seeds.items(), start=1):
            pixels = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), np.uint8)
            Image.fromarray(pixels).save(place / file, "PNG")
            images.append({"id": number, "file_name": file, "width": 64, "height": 48})
            rows.append({"image_id": number, "category_id": 1, "bbox": (boxes or {}).get(file, [1, 2, 30, 20])})
        raw = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}
        return CheckedSet(name, str(place), check_coco(raw, name, place), is_trained_on)

    return checked


def warnings(*sets):
    return duplicate_warnings(sets, duplicate_images(sets))


def test_images_of_the_test_set_that_are_trained_on_are_a_warning(checked):
    train = checked("train", {"a.png": 1, "b.png": 2, "c.png": 3}, is_trained_on=True)
    val = checked("val", {"a.png": 1, "x.png": 2, "y.png": 4})
    assert warnings(train, val) == [
        "2 of the 3 images of val are in train too, by content ('a.png', 'b.png' = 'x.png'): "
        "images memorised in training raise the scores; take them out of one of the sets"
    ]
    assert warnings(train, checked("other", {"a.png": 7})) == []
    assert warnings(train._replace(is_trained_on=False), val) == []  # two sets to test on


def test_the_same_folder_for_both_is_found_without_reading_a_file_again(checked, monkeypatch):
    seeds = {"a.png": 1, "b.png": 2}
    train, val = (checked(name, seeds, is_trained_on=name == "train", folder="both") for name in ("train", "val"))
    monkeypatch.setattr("builtins.open", None)
    (warning,) = warnings(train, val)
    assert warning.startswith("2 of the 2 images of val are in train too, by content ('a.png', 'b.png')")


def test_images_twice_in_a_set_and_those_with_other_boxes(checked):
    seeds = {"a.png": 1, "b.png": 1, "c.png": 2, "d.png": 2, "e.png": 3}
    what = "train: 2 images are there more than once, by content"
    (warning,) = warnings(checked("train", seeds, is_trained_on=True))
    assert warning == f"{what} ('a.png' = 'b.png', 'c.png' = 'd.png'): each counts as often; remove the copies"
    boxes = {"d.png": [5, 5, 9, 9]}
    (warning,) = warnings(checked("train", seeds, is_trained_on=True, boxes=boxes))
    assert warning.startswith(f"{what}, 1 of them with different boxes ('c.png' = 'd.png'): an object of one is")


def test_files_of_one_size_and_end_that_differ_are_no_copies(checked, monkeypatch):
    monkeypatch.setattr(image_checks, "_tail", lambda file: (b"IEND\xaeB`\x82", 7))
    train = checked("train", {"a.png": 1, "b.png": 2}, is_trained_on=True)
    assert len(set(train.file.marks.values())) == 1
    assert warnings(train) == []


def test_a_file_that_is_gone_is_left_to_the_training(checked, tmp_path):
    train = checked("train", {"a.png": 1, "b.png": 1}, is_trained_on=True)
    (tmp_path / "train" / "b.png").unlink()
    assert warnings(train) == []


def test_a_shared_image_with_other_boxes_is_said_and_both_are_named(checked):
    seeds = {"a.png": 1, "b.png": 2}
    train = checked("train", seeds, is_trained_on=True)
    val = checked("val", seeds, boxes={"b.png": [1, 2, 30, 22]})
    (warning,) = warnings(train, val)
    assert warning.startswith("2 of the 2 images of val are in train too, by content, 1 of them with different boxes")
    found = duplicate_images([train, val])
    assert [(one.sets, one.file_names, one.agree) for one in found] == [
        (("train", "val"), ["a.png"], True),
        (("train", "val"), ["b.png"], False),
    ]
    assert found[1].as_json() == {"sets": ["train", "val"], "file_names": ["b.png", "b.png"], "agree": False}


@pytest.mark.parametrize(
    ("box", "agree"),
    [([1.9, 2, 30, 20], True), ([1, 2, 30.9, 20], True), ([1, 2, 30, 21.5], False), ([2.5, 2, 30, 20], False)],
)
def test_boxes_agree_but_for_what_a_format_rounds(checked, box, agree):
    sets = [checked("train", {"a.png": 1, "b.png": 1}, is_trained_on=True, boxes={"b.png": box})]
    (found,) = duplicate_images(sets)
    assert found.agree == agree


def test_an_object_more_or_of_another_class_contradicts(checked):
    one = checked("train", {"a.png": 1, "b.png": 1}, is_trained_on=True)
    (row,) = (a for a in one.file.coco["annotations"] if a["image_id"] == 2)
    one.file.coco["annotations"].append(dict(row))
    assert [copies.agree for copies in duplicate_images([one])] == [False]  # twice there, once in the other
    one.file.coco["annotations"].pop()
    assert [copies.agree for copies in duplicate_images([one])] == [True]
    one.file.coco["categories"].append({"id": 2, "name": "dog"})
    row["category_id"] = 2
    assert [copies.agree for copies in duplicate_images([one])] == [False]
