"""Names of images that are written in another way than on the disk are taken for the one file that they can mean."""

import json
import unicodedata

import numpy as np
import pytest
from exported_formats import write_images
from PIL import Image

from focal_det.errors import InputError
from focal_det.formats.coco import check_coco, read_coco
from focal_det.formats.file_names import ImageFinder, resolve

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


@pytest.mark.parametrize(
    ("given", "beside", "found"),
    [
        ("a.png", "", "a.png"),
        ("a.png", "one", "one/a.png"),  # beside its annotation first
        ("../one/a.png", "labels", "one/a.png"),
        ("..\\one\\a.png", "labels", "one/a.png"),
        ("/home/me/two/b.png", "", "two/b.png"),
        ("C:\\me\\two\\b.png", "", "two/b.png"),
        ("x/b.png", "", "two/b.png"),  # the one of that name
        ("b", "", "two/b.png"),
        ("me/B.JPG", "", "two/b.png"),  # in another case, with another suffix
        ("x/d%20%D1%8F.png", "", "two/d \u044f.png"),
        ("c.png", "", "c.png"),  # in one/deep and two/deep: not guessed
        ("gone/d.png", "", "d.png"),
        ("../../etc/passwd", "", "passwd"),  # never outside
        ("", "", ""),
    ],
)
def test_an_image_is_found_by_the_end_of_its_name(tmp_path, given, beside, found):
    for folder, name in (
        (".", "a"),
        ("one", "a"),
        ("two", "b"),
        ("two", "d \u044f"),
        ("one/deep", "c"),
        ("two/deep", "c"),
    ):
        write_images(tmp_path / folder, [name])
    (tmp_path / "labels").mkdir()
    finder = ImageFinder(tmp_path)
    assert finder.find(given, tmp_path / beside) == found


def test_names_that_are_not_the_files_own_are_said_and_two_for_one_file_are_ambiguous(tmp_path):
    for name in ("one/a", "one/b"):
        write_images(tmp_path / name.partition("/")[0], [name[-1]])
    finder = ImageFinder(tmp_path)
    for own in ("a.png", "one/a.png", "one\\a.png", "./one/a.png", "../one/a.png"):
        assert finder.find(own, tmp_path / "labels") == "one/a.png"
    assert (finder.notes(), finder.ambiguous()) == ([], [])
    assert finder.find("cam1/b.png", tmp_path) == "one/b.png"
    assert finder.notes()[0].endswith("were taken for them: 'cam1/b.png' is 'one/b.png'")
    assert finder.ambiguous() == []
    assert finder.find("/data/1f-b.png", tmp_path, "b.png") == "one/b.png"
    assert finder.ambiguous() == ["'cam1/b.png', '/data/1f-b.png' ('one/b.png')"]
