"""Which images a file is calibrated and scored on: never the same."""

import json
from pathlib import Path

import pytest

from focal_det.errors import InputError
from focal_det.export.images_of_run import annotated_sets, choose_images, read_images

pytestmark = pytest.mark.detectron2


def test_training_images_that_are_not_tested_on_are_chosen(evaluated_run):
    scored, files = choose_images(evaluated_run, None, ["mine"])
    assert (scored.name, [path.name for path in scored.files]) == ("val", ["0.png", "1.png", "2.png"])
    assert [path.name for path in files] == ["3.png", "4.png", "5.png"]  # 2.png is in both sets


def test_images_of_the_test_set_are_refused(evaluated_run):
    with pytest.raises(InputError, match=r"--calibrate .*images: 3 of 6 images are in the test set, such as .*0\.png"):
        choose_images(evaluated_run, str(evaluated_run / "images"), [])
    _, files = choose_images(evaluated_run, str(evaluated_run / "images" / "[45].png"), [])
    assert [path.name for path in files] == ["4.png", "5.png"]


def test_what_is_missing_is_named_with_what_to_do(finding_run, evaluated_run, tmp_path):
    with pytest.raises(InputError, match="has no evaluation with annotations, so AP cannot be measured; evaluate it"):
        choose_images(finding_run, None, ["mine"])
    with pytest.raises(InputError, match="its training images are not found; name images by --calibrate INPUT"):
        choose_images(evaluated_run, None, ["elsewhere"])
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(InputError, match=r"--calibrate: .*a\.png: not an image"):
        list(read_images("--calibrate", [tmp_path / "a.png"]))


def test_some_images_keep_their_own_annotations(evaluated_run):
    (every,) = annotated_sets(evaluated_run)
    some = every.some(2)
    assert [image["id"] for image in some.coco["images"]] == [0, 1]
    assert {each["image_id"] for each in some.coco["annotations"]} == {0, 1}
    whole = json.loads(Path(evaluated_run, "annotations", "val.json").read_text())
    assert len(every.coco["annotations"]) == len(whole["annotations"])
