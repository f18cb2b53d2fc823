"""A folder or file alone is enough: what is recognised, which part is taken, and what is refused as ambiguous."""

import os
import shutil

import numpy as np
import pytest
from exported_formats import (
    CLASSES,
    OBJECTS,
    WRITERS,
    coco,
    coco_release,
    labelme,
    roboflow_coco,
    ultralytics,
    write_images,
    write_labels,
)

from focal_det.data.dataset_spec import data_source, read_sources, source_to_evaluate_on
from focal_det.errors import InputError
from focal_det.formats.coco_index import CocoIndex
from focal_det.formats.recognise import look, recognise


def read(text, use="train"):
    sets, problems = read_sources({"it": data_source(use, str(text))})
    assert problems == []
    return sets["it"]


def problem(text, use="train"):
    sets, problems = read_sources({"it": data_source(use, str(text))})
    assert sets == {}
    return "\n".join(problems)


def boxes(file):
    """By image, without folder and ending, class and box of its objects."""
    index = CocoIndex(file.coco)
    found = {image["file_name"].rpartition("/")[2].partition(".")[0]: [] for image in file.coco["images"]}
    for a in file.coco["annotations"]:
        name = index.images[a["image_id"]]["file_name"].rpartition("/")[2].partition(".")[0]
        found[name].append((index.name_of(a), *a["bbox"]))
    return found


@pytest.mark.parametrize("tool", WRITERS)
def test_the_boxes_are_the_same_whatever_the_format(tmp_path, tool):
    own = read(WRITERS[tool](tmp_path / "mine"))
    found = boxes(own.file)
    assert found.keys() == OBJECTS.keys()
    for name, things in OBJECTS.items():
        assert [thing[0] for thing in found[name]] == [thing[0] for thing in things]
        assert np.allclose([thing[1:] for thing in found[name]], [thing[1:] for thing in things], atol=1e-9)
    assert own.file.class_names == CLASSES
    assert all((image["width"], image["height"]) == (64, 48) for image in own.file.coco["images"])
    assert own.file.notes[0].startswith(f"{tmp_path / 'mine'}: took ")


def test_what_was_taken_from_where_is_said_in_one_line(tmp_path):
    folder = roboflow_coco(tmp_path / "mine")
    said = f"{folder}: took COCO's {folder}/train/_annotations.coco.json (train) with the images of {folder}/train"
    assert read(folder).file.notes == [said]


def test_the_part_follows_from_the_use(tmp_path):
    folder = roboflow_coco(tmp_path)
    for name in ("valid", "test"):
        write_images(folder / name, [name])
        (folder / name / "_annotations.coco.json").write_text(coco({name: [("cat", 1, 1, 9, 9)]}))
    assert set(boxes(read(folder).file)) == set(OBJECTS)
    assert set(boxes(read(folder, "val").file)) == {"valid"}
    shutil.rmtree(folder / "valid")
    assert set(boxes(read(folder, "val").file)) == {"test"}
    assert set(boxes(read(folder / "test").file)) == {"test"}  # a part itself is of no part
    shutil.rmtree(folder / "train")
    assert f"{folder}: has no part train, only test; name its file, or the folder of the part" in problem(folder)


def test_a_part_comes_before_what_is_of_no_part(tmp_path):
    write_images(tmp_path / "images")
    for name, row in (("all", "a.png,1,2,3,4,cat"), ("my_train", "b.png,1,2,3,4,cat"), ("my_val", "c.png,1,2,3,4,cat")):
        (tmp_path / f"{name}.csv").write_text(row)
    assert [set(boxes(read(tmp_path, use).file)) for use in ("train", "val")] == [{"b"}, {"c"}]
    (tmp_path / "my_val.csv").unlink()
    assert set(boxes(read(tmp_path, "val").file)) == {"a"}


def test_the_folder_of_a_part_has_its_images(tmp_path):
    folder = coco_release(tmp_path)
    write_images(folder / "val2017")  # of the same names
    assert read(folder).image_dir == str(folder / "train2017")


def test_a_set_to_train_on_may_have_its_own_part_to_evaluate_on(tmp_path):
    source = data_source("train", str(ultralytics(tmp_path)))
    assert source_to_evaluate_on(source) is None
    yaml = tmp_path / "data.yaml"
    yaml.write_text(yaml.read_text().replace("test:", "test: images/other"))
    assert source_to_evaluate_on(source) is None
    assert f"{yaml}: test is 'images/other', which is not there" in read(tmp_path).file.notes
    write_images(tmp_path / "images" / "other", ["x"])
    assert source_to_evaluate_on(source) == source._replace(use="val")
    assert source_to_evaluate_on(data_source("train", str(tmp_path / "nowhere"))) is None


def test_several_that_may_be_meant_are_named_and_none_is_taken(tmp_path):
    folder = ultralytics(roboflow_coco(tmp_path))
    found = problem(folder)
    assert f"YOLO's {folder}/data.yaml (train), COCO's {folder}/train/_annotations.coco.json (train)" in found
    assert "several annotations may be meant" in found
    assert "name the file of one" in found
    assert len(boxes(read(folder / "data.yaml").file)) == 4


def test_of_two_formats_in_one_folder_either_can_be_named(tmp_path):
    folder = labelme(tmp_path)
    write_labels(folder, {"a": [("dog", 1, 1, 9, 9)]})
    (folder / "classes.txt").write_text("cat\ndog\n")
    assert "name the file of one (classes.txt for YOLO, any for LabelMe)" in problem(folder)
    assert boxes(read(folder / "a.json").file)["d"] == [("cat", 50.5, 40.25, 10, 6.5)]
    assert boxes(read(folder / "classes.txt").file)["d"] == []


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    folder = ultralytics(tmp_path)
    for path in (
        ".ipynb_checkpoints/data-checkpoint.yaml",
        "__MACOSX/data.yaml",
        "images/train/.ipynb_checkpoints/a.png",
    ):
        (folder / path).parent.mkdir()
        shutil.copy(folder / "data.yaml", folder / path)
    for path in ("images/train/._a.png", "labels/train/._a.txt", "._data.yaml"):
        (folder / path).write_bytes(b"\0\5\x16\7")
    own = read(folder)
    assert set(boxes(own.file)) == set(OBJECTS)
    assert len(own.file.notes) == 2  # what was taken from where
    folder = labelme(tmp_path / "labels")
    (folder / "._a.json").write_bytes(b"\0\5\x16\7")
    assert len(read(folder).file.notes) == 1


def test_a_json_file_in_utf_16_is_recognised_and_its_encoding_named(tmp_path):
    folder = coco_release(tmp_path)
    (path,) = folder.glob("annotations/instances_train*.json")
    path.write_text(path.read_text(), encoding="utf-16")
    assert f"{path}: not a text file in UTF-8" in problem(folder)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "via.json",
            '{"a.png1": {"regions": [{"region_attributes": {}}]}}',
            "via.json looks like JSON VIA's, which is not",
        ),
        (
            "x.json",
            '[{"image": "a.png", "annotations": [{"coordinates": {}}]}]',
            "JSON CreateML's, which is not read; export",
        ),
        (
            "results.json",
            '[{"image_id": 1, "bbox": [1, 1, 2, 2], "score": 0.5}]',
            "JSON of detections, not annotations",
        ),
        ("a.txt", "0 0.5 0.5 0.2 0.2\n", "a.txt looks like YOLO's: write the name of each class into a classes.txt"),
        ("export.ZIP", "PK", "it holds 1 .zip, but none of COCO's"),
        ("a.png", "", "it holds 1 .png, but none of COCO's or Label Studio's JSON"),
        (".DS_Store", "", "it is empty"),
    ],
)
def test_what_is_there_instead_of_annotations_is_said(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    assert f"{tmp_path}: no annotations were recognised there; " in problem(tmp_path)
    assert said in problem(tmp_path)
    if name == "export.ZIP":
        assert "it is an archive: unpack it, and name the folder" in problem(tmp_path / name)


def test_images_of_a_coco_file_in_several_folders_are_not_guessed(tmp_path):
    (tmp_path / "my.json").write_text(coco())
    assert "no folder has 'a.png'; name the folder of its images, by --train-json" in problem(tmp_path)
    (tmp_path / "my.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert 'neither its beginning nor its end has an image with a "file_name"; name' in problem(tmp_path)
    (tmp_path / "my.json").write_text(coco())
    write_images(tmp_path / "one")
    assert read(tmp_path).image_dir == str(tmp_path / "one")
    write_images(tmp_path / "two")
    assert f"several folders have 'a.png': {tmp_path}/one, {tmp_path}/two" in problem(tmp_path)
    assert read(f"{tmp_path}/my.json:{tmp_path}/two").image_dir == str(tmp_path / "two")
    write_images(tmp_path)
    assert read(tmp_path).image_dir == str(tmp_path)


def test_folders_that_are_hidden_or_may_not_be_listed_are_left_out(tmp_path, monkeypatch):
    for name in ("set/images", "set/.cache", "else/private"):
        write_images(tmp_path / name)
    (tmp_path / "set" / "labels").mkdir()
    (tmp_path / "set" / "labels" / "my.json").write_text(coco())

    def refusing(function):
        def listed(path="."):
            if str(path).endswith("private"):
                raise PermissionError(13, "Permission denied", str(path))
            return function(path)

        return listed

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    assert read(tmp_path / "set").image_dir == str(tmp_path / "set" / "images")
    (tmp_path / "else" / "my.json").write_text(coco())
    assert read(tmp_path / "else" / "my.json").image_dir == str(tmp_path / "set" / "images")


def test_folders_without_annotations(tmp_path):
    assert f"{tmp_path}/no: no folder or file of annotations (No such file or directory)" in problem(tmp_path / "no")
    write_images(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "some.yaml").write_text("a: 1")
    assert "no annotations were recognised there; it holds 4 .png, 1 .json, 1 .yaml, but none of" in problem(tmp_path)
    assert "File name too long" in problem("x" * 5000)
    assert "no annotations were recognised" in problem(tmp_path / "a.png")


@pytest.mark.parametrize("text", ["names: [", "nav: ["])
def test_a_damaged_yaml_is_named_where_nothing_else_is_there(tmp_path, text):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=r"data\.yaml: cannot be read as YAML"):
        look(tmp_path)


@pytest.mark.parametrize("write", [ultralytics, roboflow_coco])
def test_a_yaml_file_of_another_tool_is_passed_over(tmp_path, write):
    folder = write(tmp_path)
    expected = look(folder)
    for place in (folder, folder / "train"):
        place.mkdir(exist_ok=True)
        (place / "mkdocs.yml").write_text("theme: !!python/name:material.emoji\nnav: [")
    assert look(folder) == expected != []
    (folder / "other.yaml").write_text("names: [cat\n")  # this one may be meant
    with pytest.raises(InputError, match=r"other\.yaml: cannot be read as YAML"):
        look(folder)


def test_formats_that_say_where_their_images_are_take_no_folder(tmp_path):
    folder = ultralytics(tmp_path)
    assert "YOLO's annotations say where their images are" in problem(f"{folder}/data.yaml:{folder}/images")


def test_sets_of_several_formats_get_one_order_of_classes(tmp_path):
    only = {"x": [("dog", 1, 2, 3, 4)]}
    coco_set, yolo = roboflow_coco(tmp_path / "coco", only), tmp_path / "yolo"
    write_images(yolo, ["y"])
    write_labels(yolo, {"y": [("cat", 1, 2, 3, 4), ("dog", 5, 6, 7, 8)]})
    (yolo / "obj.names").write_text("dog\nwolf\n")  # so that 0 is a dog, and 1 a wolf
    sources = {name: data_source("train", str(path)) for name, path in (("one", coco_set), ("two", yolo))}
    sets, problems = read_sources(sources)
    assert problems == []
    assert [own.file.class_names for own in sets.values()] == [["cat", "dog"], ["dog", "wolf"]]
    assert recognise(yolo, ("train",)).format == "YOLO"
    _, problems = read_sources({"two": sources["two"]}, class_names=["dog"])
    assert problems == [f"{yolo}: class wolf is not among dog; correct these objects, or leave them out by --classes"]
    sets, _ = read_sources({"two": sources["two"]}, class_names=["ant", "wolf", "dog"])
    assert [a["category_id"] for a in sets["two"].file.coco["annotations"]] == [3, 2]


def test_a_table_that_is_named_and_not_known_says_which_columns_it_needs(tmp_path):
    (tmp_path / "a.csv").write_text("filename,cx,cy,w,h,label\n")
    said = "its first line is no header and no box: filename,cx,cy,w,h,label; write image,x1"
    assert said in problem(tmp_path / "a.csv")
