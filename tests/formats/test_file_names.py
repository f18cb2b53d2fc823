"""Names of images that are written in another way than on the disk are taken for the one file that they can mean."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from focal_det.errors import InputError
from focal_det.formats.coco import check_coco, read_coco
from focal_det.formats.file_names import resolve

FILES = ["a.JPG", "sub/b.png", "c d.png", "sub/\u00fc.png", "x.jpeg"]


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def coco(names):
    images = [{"id": i, "file_name": str(name), "width": 64, "height": 48} for i, name in enumerate(names, start=1)]
    row = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}
    return {"images": images, "annotations": [row], "categories": [{"id": 1, "name": "cat"}]}


def read(folder, *names, **more):
    path = folder.parent / "a.json"
    path.write_text(json.dumps(coco(names)))
    return read_coco(path, folder, **more)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.jpg", "a.JPG"),
        ("sub\\b.png", "sub/b.png"),
        (".\\SUB\\B.png", "sub/b.png"),
        ("c%20d.png", "c d.png"),
        (unicodedata.normalize("NFD", "sub/\u00fc.png"), "sub/\u00fc.png"),
        ("x.jpg", "x.jpeg"),
        ("images/sub/b.png", "sub/b.png"),
        ("C:\\me\\images\\a.jpg", "a.JPG"),
        ("/home/me/sub/b.png", "sub/b.png"),
        ("../images/c d.png", "c d.png"),
    ],
)
def test_a_name_written_in_another_way_is_taken_and_said(folder, name, file):
    found = read(folder, name)
    assert [image["file_name"] for image in found.coco["images"]] == [file]
    (note,) = found.notes
    what = "1 of 1 file_names are written in another way than the files in the folder and were taken for them"
    assert note == f"{folder.parent}/a.json: {what}: {name!r} is {file!r}"


def test_absolute_names_in_the_folder_are_taken(folder):
    found = read(folder, *(folder / name for name in FILES))
    assert [image["file_name"] for image in found.coco["images"]] == FILES
    assert "5 of 5 file_names" in found.notes[0]


@pytest.mark.parametrize(
    "names",
    [
        ["cam1/b.png"],  # which is in another folder, sub
        ["b.png"],
        ["a.jpg", "A.jpg"],  # two for one file
        ["a.JPG", "a.jpg"],  # the file is the first's
        ["/etc/passwd"],
        ["gone.png"],
    ],
)
def test_a_name_that_no_file_alone_fits_stays_missing(folder, names):
    with pytest.raises(InputError, match=r"images are not in|lead out of the folder"):
        read(folder, *names)


def test_of_two_files_that_differ_in_case_none_is_taken(folder):
    Image.new("RGB", (64, 48)).save(folder / "A.jpg")
    with pytest.raises(InputError, match=r"are not in .*'a\.jpg'"):
        read(folder, "a.jpg")


def test_names_of_a_registered_set_stay_since_detectron2_reads_its_own_file(folder):
    for how in ({"as_is": "train"}, {"skip_bad_images": None}):
        with pytest.raises(InputError, match="are not in"):
            check_coco(coco(["a.jpg"]), "set", folder, **how)


def test_links_out_of_the_folder_are_not_searched(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (folder / "other").symlink_to(tmp_path / "other")
    Image.new("RGB", (64, 48)).save(tmp_path / "other" / "y.png")
    images = [{"file_name": "other\\y.png"}]
    assert resolve(images, [0], folder) == []
