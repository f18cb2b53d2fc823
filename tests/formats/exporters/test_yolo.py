"""YOLO's folders: where images and labels are looked for, and every wrong line named with its file."""

import pytest
from exported_formats import OBJECTS, label_studio_yolo, roboflow_yolo, ultralytics, write_images, write_labels

from focal_det.errors import InputError
from focal_det.formats.exporters.yolo import read_yaml, read_yolo

HEAD = "names: [cat, dog]\n"


def read(folder, part="train", **more):
    return read_yolo(folder / "data.yaml", part, **more)


def problem(*arguments, **more):
    with pytest.raises(InputError) as caught:
        read(*arguments, **more)
    return "\n".join(caught.value.problems)


def names(found):
    return [image.file_name for image in found.images]


def test_a_centre_and_a_size_become_a_corner_and_a_size(tmp_path):
    folder = ultralytics(tmp_path, {"a": []})
    (folder / "labels/train/a.txt").write_text("1 0.5 0.25 0.2 0.5\n\n")
    (thing,) = read(folder).images[0].things
    # from .5 - .2 / 2 and .25 - .5 / 2 on, as shares of the image's size
    assert (thing.name, thing.place, thing.box) == ("dog", "a.txt line 1", (0.4, 0.0, 0.2, 0.5))


def test_images_without_a_file_of_labels_or_with_an_empty_one_have_no_objects(tmp_path):
    folder = ultralytics(tmp_path)
    (folder / "labels/train/b.txt").unlink()
    (folder / "labels/train/z.txt").write_text("")
    found = read(folder)
    assert [len(image.things) for image in found.images] == [2, 0, 0, 1]
    said = f"{folder}/data.yaml:train: 1 "
    assert (
        said + "images have no file of labels, so they count as images without objects: images/train/b.png"
        in found.notes
    )
    assert said + "files of labels have no image among those taken, so they were left out: z.txt" in found.notes
    for path in folder.glob("labels/train/*"):
        path.unlink()
    assert f"none of 4 images has a file of labels, such as {folder}/labels/train/a.txt" in problem(folder)


def test_labels_that_end_in_txt_in_capitals_are_taken(tmp_path):
    folder = ultralytics(tmp_path)
    for path in folder.glob("labels/train/*.txt"):
        path.rename(path.with_suffix(".TXT"))
    found = read(folder)
    assert [len(image.things) for image in found.images] == [2, 1, 0, 1]
    (folder / "labels/train/z.TXT").write_text("")
    assert "1 files of labels have no image among those taken, so they were left out: z.TXT" in read(folder).notes[-1]


def test_images_that_are_not_read_are_named(tmp_path):
    folder = ultralytics(tmp_path)
    (folder / "images/train/a.png").rename(folder / "images/train/a.HEIC")
    said = f"{folder}/data.yaml:train: 1 files are HEIC and were passed over; convert them to JPEG: images/train/a.HEIC"
    assert said in read(folder).notes
    for name in "bcd":
        (folder / f"images/train/{name}.png").unlink()
    assert said in problem(folder)


def test_polygons_become_their_boxes_and_it_is_said(tmp_path):
    folder = ultralytics(tmp_path, {"a": []})
    (folder / "labels/train/a.txt").write_text("0 0.5 0.1 0.75 0.5 0.25 0.3\n")
    found = read(folder)
    assert found.images[0].things[0].box == (0.25, 0.1, 0.5, 0.4)
    assert "1 polygons were replaced by their boxes: a.txt line 1" in found.notes[-1]


def test_keypoints_are_left_out_and_it_is_said(tmp_path):
    folder = ultralytics(tmp_path, {"a": []})
    (folder / "labels/train/a.txt").write_text("0 0.5 0.5 0.5 0.25 0.4 0.4 2 0.6 0.6 1\n0 0.5 0.5 0.5 0.25\n")
    assert "lie in 0..1" in problem(folder)  # taken for a polygon
    (folder / "data.yaml").write_text("train: images/train\nkpt_shape: [2, 3]\nnames: [cat]\n")
    found = read(folder)
    assert [thing.box for thing in found.images[0].things] == [(0.25, 0.375, 0.5, 0.25)] * 2
    assert "1 lines have keypoints, which were left out: a.txt line 1" in found.notes[-1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "0 0.5 0.5 1.2 0.5",
            "shares of the image's size lie in 0..1; divide pixels by width and height: a.txt line 2 (0 0.5",
        ),
        ("0 0.5 -0.5 0.2 0.5", "lie in 0..1"),
        ("0 0.5 nan 0.2 0.5", "lie in 0..1"),
        ("0 inf 0.5 0.2 0.5", "lie in 0..1"),
        (
            "2 0.5 0.5 0.2 0.5",
            "a class is a number from 0 to 1, which the 2 names give; correct it or add its name: a.txt line 2 (2)",
        ),
        ("-1 0.5 0.5 0.2 0.5", "a class is a number from 0 to 1"),
        ("0.5 0.5 0.5 0.2 0.5", "a class is a number from 0 to 1"),
        ("nan 0.5 0.5 0.2 0.5", "a class is a number from 0 to 1"),
        ("cat 0.5 0.5 0.2 0.5", "a line has numbers alone"),
        ("0, 0.5, 0.5, 0.2, 0.5", "a line has numbers alone"),
        (
            "0 0.5 0.5 0.2",
            "a line has five columns, `class x y width height`, or an even number of polygon corners: a.txt line 2",
        ),
        ("0 0.5 0.5 0.2 0.5 0.9", "without a score: a.txt line 2 (6 columns)"),
        ("0 0.5 0.5 0.2 0.5 0.9 0.9 0.9", "five columns"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, said):
    folder = ultralytics(tmp_path, {"a": [], "b": []})
    (folder / "labels/train/a.txt").write_text(f"0 0.5 0.5 0.2 0.5\n{line}\n")
    found = problem(folder)
    assert found.startswith(f"{folder}/data.yaml:train: 1 in 2 annotations: ")
    assert said in found


def test_what_rounding_leaves_is_taken(tmp_path):
    folder = ultralytics(tmp_path, {"a": []})
    (folder / "labels/train/a.txt").write_text("1.0 0.5 0.5 1.000001 1.0\n")
    assert read(folder).images[0].things[0].name == "dog"


def test_folders_lists_and_lists_of_them(tmp_path):
    folder = ultralytics(tmp_path)
    write_images(folder / "more", ["x"])
    write_labels(folder / "more", {"x": [("cat", 1, 1, 9, 9)]})  # beside its image
    (folder / "list.txt").write_text("./images/train/d.png\nimages/train/a.png\n\n")
    yaml = folder / "data.yaml"
    yaml.write_text(HEAD + "train: [list.txt, more]\nval: list.txt\ntest: images\n")
    assert names(read(folder)) == ["images/train/d.png", "images/train/a.png", "more/x.png"]
    assert names(read(folder, "val")) == ["images/train/d.png", "images/train/a.png"]
    assert names(read(folder, "test")) == [f"images/train/{name}.png" for name in OBJECTS]  # those below it, too
    (folder / "list.txt").write_text("images/train/a.png\nimages/train/gone.png\n")
    assert f"{folder}/list.txt: 1 of its images are not there: images/train/gone.png; add them" in problem(folder)
    yaml.write_text(HEAD + f"train: {'x' * 5000}\n")
    assert "is not there, as" in problem(folder)
    yaml.write_text(HEAD + "train: [nowhere]\nval: 3\n")
    assert f"'nowhere' is not there, as {folder}/nowhere; correct it" in problem(folder)
    assert "val is 3; write the folder of its images, or a list of them" in problem(folder, "val")


def test_a_path_of_its_own_is_tried_first(tmp_path):
    folder = ultralytics(tmp_path)
    write_images(folder / "sub/images/train", ["x"])
    write_labels(folder / "sub/labels/train", {"x": []})
    (folder / "data.yaml").write_text(HEAD + "path: sub\ntrain: images/train\n")
    assert names(read(folder)) == ["sub/images/train/x.png"]


def test_images_outside_are_read_only_if_that_is_allowed(tmp_path):
    folder = roboflow_yolo(tmp_path / "mine")
    write_images(tmp_path / "other" / "images", ["x"])
    write_labels(tmp_path / "other" / "labels", {"x": []})
    for train in (f"{tmp_path}/other/images", "../other/images"):
        (folder / "data.yaml").write_text(HEAD + f"train: {train}\n")
        assert f"names images outside of its folder, {tmp_path}/other/images; move it to its images, or" in problem(
            folder
        )
        found = read(folder, allow_outside=True)
        assert (names(found), str(found.image_dir)) == (["other/images/x.png"], str(tmp_path))
    (folder / "list.txt").write_text("../other/images/x.png\n")
    (folder / "data.yaml").write_text(HEAD + "train: [list.txt, train/images]\n")
    assert "--allow-outside-images" in problem(folder)
    assert "other/images/x.png" in names(read(folder, allow_outside=True))[0]


def test_a_link_in_the_folder_is_followed(tmp_path):
    folder = ultralytics(tmp_path / "elsewhere")
    (tmp_path / "mine").mkdir()
    for name in ("images", "labels"):
        (tmp_path / "mine" / name).symlink_to(folder / name)
    (tmp_path / "mine" / "data.yaml").write_text(HEAD + "train: images/train\n")
    assert len(read(tmp_path / "mine").images) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "names: {0: cat, 2: dog}",
            "names is {0: 'cat', 2: 'dog'}; write a list, or 0: NAME, 1: NAME, ... without gaps",
        ),
        ("names: 3", "names is 3; write a list"),
        ("names: [[cat]]", "write a list"),
        ("names: []", "names no class; write one for each number from 0 on"),
        ("nc: 3\nnames: [cat, dog]", "nc is 3, but there are 2 names; correct one of them"),
        ("names: [cat, cat]", "names has cat twice"),
        ("names: [yes, no]", "names is [True, False], as yes, no, on, off, true and false are no texts in YAML; put"),
        ("names: [cat]\nkpt_shape: 17", "kpt_shape is 17; write [number of keypoints, 2 or 3]"),
    ],
)
def test_names_that_are_none(tmp_path, content, said):
    folder = ultralytics(tmp_path)
    (folder / "data.yaml").write_text(f"train: images/train\n{content}\n")
    assert said in problem(folder)


def test_numbers_are_names_too(tmp_path):
    folder = ultralytics(tmp_path)
    (folder / "data.yaml").write_text("train: images/train\nnames: {1: 8, 0: 7}\n")
    assert read(folder).declared == ("7", "8")


def test_another_yaml_is_none(tmp_path):
    (tmp_path / "data.yaml").write_text("a: 1")
    assert read_yaml(tmp_path / "data.yaml") is None
    (tmp_path / "data.yaml").write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        read_yaml(tmp_path / "data.yaml")


def test_a_file_of_labels_that_cannot_be_read_is_named(tmp_path):
    folder = label_studio_yolo(tmp_path)
    (folder / "labels/a.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"cannot be read: .*labels/a\.txt: not a text file in UTF-8"):
        read_yolo(folder, None)


def test_names_of_a_folder_are_each_there_once_but_for_blank_last_lines(tmp_path):
    folder = label_studio_yolo(tmp_path)
    (folder / "classes.txt").write_text("cat\ndog\n\n \n")
    assert read_yolo(folder, None).declared == ("cat", "dog")
    (folder / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(InputError, match=r"classes\.txt: names has cat twice"):
        read_yolo(folder, None)


def test_numbers_that_read_as_one_name_are_named(tmp_path):
    folder = ultralytics(tmp_path)
    (folder / "data.yaml").write_text("train: images/train\nnames: [1, '1']\n")
    assert "names has 1 twice" in problem(folder)


def test_images_of_one_file_of_labels_are_said(tmp_path):
    folder = ultralytics(tmp_path, {"a": []})
    (folder / "images/train/a.jpg").write_bytes((folder / "images/train/a.png").read_bytes())
    assert "1 images share their file of labels with another image: images/train/a.png" in read(folder).notes[-1]
