"""The same image in two sets, or twice in one, is found by content and said once with the number and names."""

import numpy as np
import pytest
from PIL import Image

from focal_det.data.duplicates import CheckedSet, duplicate_images
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


def test_images_of_the_test_set_that_are_trained_on_are_a_warning(checked):
    train = checked("train", {"a.png": 1, "b.png": 2, "c.png": 3}, is_trained_on=True)
    val = checked("val", {"a.png": 1, "x.png": 2, "y.png": 4})
    assert duplicate_images([train, val]) == [
        "2 of the 3 images of val are in train too, by content ('a.png', 'b.png' = 'x.png'): "
        "what was learnt by heart raises the scores; take them out of one of the sets"
    ]
    assert duplicate_images([train, checked("other", {"a.png": 7})]) == []
    assert duplicate_images([train._replace(is_trained_on=False), val]) == []  # two sets to test on


def test_the_same_folder_for_both_is_found_without_reading_a_file_again(checked, monkeypatch):
    seeds = {"a.png": 1, "b.png": 2}
    train, val = (checked(name, seeds, is_trained_on=name == "train", folder="both") for name in ("train", "val"))
    monkeypatch.setattr("builtins.open", None)
    (warning,) = duplicate_images([train, val])
    assert warning.startswith("2 of the 2 images of val are in train too, by content ('a.png', 'b.png')")


def test_images_twice_in_a_set_and_those_with_other_boxes(checked):
    seeds = {"a.png": 1, "b.png": 1, "c.png": 2, "d.png": 2, "e.png": 3}
    what = "train: 2 images are there more than once, by content"
    (warning,) = duplicate_images([checked("train", seeds, is_trained_on=True)])
    assert warning == f"{what} ('a.png' = 'b.png', 'c.png' = 'd.png'): each counts as often; remove the copies"
    boxes = {"d.png": [5, 5, 9, 9]}
    (warning,) = duplicate_images([checked("train", seeds, is_trained_on=True, boxes=boxes)])
    assert warning.startswith(f"{what}, 1 of them with different boxes ('c.png' = 'd.png'): an object of one is")


def test_files_of_one_size_and_end_that_differ_are_no_copies(checked, monkeypatch):
    monkeypatch.setattr(image_checks, "_tail", lambda file: (b"IEND\xaeB`\x82", 7))
    train = checked("train", {"a.png": 1, "b.png": 2}, is_trained_on=True)
    assert len(set(train.file.marks.values())) == 1
    assert duplicate_images([train]) == []


def test_a_file_that_is_gone_is_left_to_the_training(checked, tmp_path):
    train = checked("train", {"a.png": 1, "b.png": 1}, is_trained_on=True)
    (tmp_path / "train" / "b.png").unlink()
    assert duplicate_images([train]) == []
