"""What readers share: images found by the names that annotations give them, sizes from headers, names of parts."""

import numpy as np
import pytest
from exported_formats import write_images
from PIL import Image

from focal_det.errors import InputError
from focal_det.formats.exporters.annotated import (
    AnnotatedImage,
    AnnotatedSet,
    Thing,
    check_annotated,
    image_size,
    joined_images,
    part_of,
    turned,
)


def test_an_image_that_is_not_there_is_named_by_the_check_of_the_images(tmp_path):
    write_images(tmp_path, "ab")
    images = [
        AnnotatedImage(f"{name}.png", [Thing("1", "cat", (0.1, 0.2, 0.5, 0.5))], are_shares=True) for name in "abc"
    ]
    found = AnnotatedSet("mine", tmp_path, images, ["a note"])
    with pytest.raises(InputError, match=r"mine: 1 of 3 images are not in .*; give their folder.*: 'c\.png'"):
        check_annotated(found, ["cat"])
    checked = check_annotated(found, ["cat"], skip_bad_images=1)
    assert np.allclose([a["bbox"] for a in checked.coco["annotations"]], [[6.4, 9.6, 32, 24]] * 2)
    assert checked.notes[0] == "a note"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (AnnotatedSet("mine", ".", [], []), "mine: there is no image; put images there"),
        (
            AnnotatedSet("mine", ".", [AnnotatedImage("a", [])], []),
            "no annotation has an object, so there are no classes",
        ),
        (AnnotatedSet("mine", ".", [AnnotatedImage("a", [])], [], ("a\nb",)), r"class 'a\nb' cannot be shown"),
    ],
)
def test_sets_that_cannot_be_checked(found, said):
    with pytest.raises(InputError) as caught:
        check_annotated(found, found.declared)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("ending", "turn", "size"), [("png", 6, (48, 64)), ("png", 1, (64, 48)), ("jpg", 6, (48, 64)), ("jpg", 3, (64, 48))]
)
def test_sizes_are_those_of_the_image_as_exif_turns_it(tmp_path, ending, turn, size):
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.new("RGB", (64, 48)).save(tmp_path / f"a.{ending}", exif=exif)
    assert image_size(tmp_path / f"a.{ending}") == size


def test_a_png_without_a_tag_is_not_decoded_for_its_size(tmp_path, monkeypatch):
    write_images(tmp_path, "a")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert image_size(tmp_path / "a.png") == (64, 48)


def test_objects_of_an_image_that_comes_several_times_are_joined():
    images = [AnnotatedImage(name, [Thing(str(n), "cat", (0, 0, 1, 1))]) for n, name in enumerate("aba")]
    joined = joined_images(images)
    assert [(image.file_name, [thing.place for thing in image.things]) for image in joined] == [
        ("a", ["0", "2"]),
        ("b", ["1"]),
    ]


def test_turning_is_clockwise_as_seen():
    assert np.allclose(turned([(3, 1)], 90, (1, 1)), [(1, 3)])
    assert np.isnan(turned([(3, 1)], float("inf"), (1, 1))).all()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *[("instances_train2017", "train"), ("train", "train"), ("Training", "train"), ("val_labels", "val")],
        *[("valid", "val"), ("validation-annotations-bbox", "val"), ("test", "test"), ("my.test.v2", "test")],
        *[(name, None) for name in ("trains", "contest", "minival", "annotations", "interval", "strain")],
    ],
)
def test_parts_are_words_of_a_name(name, part):
    assert part_of(name) == part
