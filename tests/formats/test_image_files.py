"""Names of images that lead out of their folder are refused unless that is allowed."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from focal_det.errors import InputError
from focal_det.formats.coco import read_coco
from focal_det.formats.image_files import MIRRORED, TURNED, leads_outside, orientation

OUTSIDE = [
    *("/etc/passwd", "../a.jpg", "a/../../b.jpg", "a/..", "..", "a/b/../c\n/../d.jpg"),
    *("\\\\host\\share\\a.jpg", "..\\a.jpg", "a\\..\\..\\b.jpg", "C:\\a.jpg", "c:/a.jpg", "\\a.jpg"),
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside(name):
    assert leads_outside(name)


@pytest.mark.parametrize("name", ["a.jpg", "a/b.jpg", "..a.jpg", "a..", "a/...jpg", "12:30.jpg", "a\\b.jpg", "./a", ""])
def test_inside(name):
    assert not leads_outside(name)


def test_a_file_that_leads_outside_is_read_only_where_allowed(tmp_path):
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "out.png"), np.zeros((20, 30, 3), np.uint8))
    image = {"id": 7, "file_name": "../out.png", "width": 30, "height": 20}
    box = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "a"}]}))
    with pytest.raises(InputError) as caught:
        read_coco(path, tmp_path / "images")
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: 1 of 1 file_names lead out of the folder of images: '../out.png' (image id=7)")
    assert "--allow-outside-images" in problem
    assert read_coco(path, tmp_path / "images", allow_outside=True).coco["images"] == [image]


def test_a_nul_is_never_allowed(tmp_path):
    image = {"id": 7, "file_name": "a\0.png", "width": 30, "height": 20}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [image], "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    with pytest.raises(InputError, match=r"1 file_names hold a NUL.*'a\\x00.png' \(image id=7\)"):
        read_coco(path, tmp_path, allow_outside=True)


@pytest.mark.parametrize("value", [None, *range(1, 9)])
def test_the_tag_is_read(tmp_path, value):
    exif = Image.Exif()
    if value is not None:
        exif[0x0112] = value
    Image.new("RGB", (4, 2)).save(tmp_path / "x.jpg", exif=exif)
    with Image.open(tmp_path / "x.jpg") as image:
        assert orientation(image) == (value or 1)


def test_every_value_is_upright_turned_or_mirrored():
    assert sorted((1, *TURNED, *MIRRORED)) == list(range(1, 9))


def test_a_tag_that_cannot_be_read_is_upright(monkeypatch):
    image = Image.new("RGB", (4, 2))
    monkeypatch.setattr(image, "getexif", lambda: {0x0112: "up"})
    assert orientation(image) == 1
    monkeypatch.setattr(image, "getexif", lambda: 1 / 0)
    assert orientation(image) == 1
