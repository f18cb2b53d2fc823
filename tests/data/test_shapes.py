"""Generated images: reproducible, disjoint, annotated where they say, whole or not there."""

import json

import cv2
import numpy as np
import pytest

from focal_det.data import shapes
from focal_det.data.shapes import CLASSES, draw_image, make_shapes, parse_name, shapes_files


def test_an_image_depends_on_split_and_index_alone():
    first, again = draw_image("train", 5, 96), draw_image("train", 5, 96)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_splits_and_indices_give_different_images():
    images = [draw_image(split, index, 64)[0] for split in ("train", "val") for index in range(5)]
    assert len({image.tobytes() for image in images}) == 10


def test_boxes_lie_in_the_image_and_cover_small_and_large():
    sides, counts = [], []
    for index in range(200):
        image, boxes, classes = draw_image("val", index, 128)
        assert image.shape == (128, 128, 3)
        assert image.dtype == np.uint8
        assert len(boxes) == len(classes) >= 1
        assert boxes.min() >= 0
        assert boxes.max() <= 128
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        sides += (boxes[:, 2:] - boxes[:, :2]).max(axis=1).tolist()
        counts += classes.tolist()
    assert np.percentile(sides, 10) < 128 / 7
    assert np.percentile(sides, 90) > 128 / 3.5
    assert all(counts.count(label) > len(counts) / 5 for label in range(len(CLASSES)))


def test_a_box_bounds_its_object_tightly(monkeypatch):
    # on an even background, without clutter and noise, the object is what is not background
    monkeypatch.setattr(shapes, "_background", lambda rng, side: np.full((side, side, 3), 128, np.uint8))
    monkeypatch.setattr(shapes, "_draw_clutter", lambda rng, image: None)
    checked = 0
    for index in range(60):
        image, boxes, _ = draw_image("train", index, 128)
        if len(boxes) != 1:
            continue
        ys, xs = np.nonzero(np.abs(image.astype(int) - 128).max(axis=2) > 60)  # noise is ten times weaker
        found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert np.abs(found - boxes[0]).max() <= 1
        checked += 1
    assert checked >= 3


def test_a_set_is_written_in_coco_format_once(tmp_path):
    name = "shapes_val_6_64px"
    make_shapes(name, tmp_path)
    annotation_file, folder = shapes_files(name, tmp_path)
    coco = json.loads(annotation_file.read_text())
    assert [c["name"] for c in coco["categories"]] == list(CLASSES)
    assert len(coco["images"]) == 6
    assert all((folder / image["file_name"]).is_file() for image in coco["images"])
    pixels, boxes, classes = draw_image("val", 3, 64)
    assert np.array_equal(cv2.imread(str(folder / "000003.png")), pixels)
    own = [a for a in coco["annotations"] if a["image_id"] == 4]
    assert [a["category_id"] - 1 for a in own] == classes.tolist()
    assert [a["bbox"] for a in own] == [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes.tolist()]

    written = annotation_file.stat().st_mtime_ns
    make_shapes(name, tmp_path)
    assert annotation_file.stat().st_mtime_ns == written


def test_a_stopped_run_leaves_no_half_set(tmp_path, monkeypatch):
    def stop(split, index, side, *, rare):
        if index == 2:
            raise KeyboardInterrupt
        return draw_image(split, index, side, rare=rare)

    monkeypatch.setattr(shapes, "draw_image", stop)
    with pytest.raises(KeyboardInterrupt):
        make_shapes("shapes_train_4_64px", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_names_say_what_the_set_is():
    assert parse_name("shapes_train_2000_128px") == ("train", 2000, 128, False)
    assert parse_name("shapes_val_200_192px_rare") == ("val", 200, 192, True)
    assert parse_name("coco_2017_train") is None


@pytest.mark.parametrize(
    "name", ["shapes_train_0_128px", "shapes_test_5_64px", "shapes_train_5", "shapes_val_5_9px", "shapes_val_5_9999px"]
)
def test_malformed_names_are_refused_with_the_pattern_or_the_range(name):
    with pytest.raises(ValueError, match=f'data set "{name}"'):
        parse_name(name)
