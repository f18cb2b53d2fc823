"""Pascal VOC's folders: the same boxes as in COCO's form, and every fault named with its file."""

import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from focal_det.data.dataset_spec import SetSource, parse_source, read_sources, voc_source
from focal_det.errors import InputError
from focal_det.formats.coco import read_coco
from focal_det.formats.voc import check_voc, read_voc

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd"
CATS = {"a": [("cat", 1, 1, 100, 80)], "b": [("dog", 11, 21, 30, 60), ("cat", 5, 5, 5, 5)], "c": []}


def read(folder, split=None, **more):
    voc = read_voc(folder, split, **more)
    return check_voc(voc, sorted(voc.class_names)).coco


def problems(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return "\n".join(caught.value.problems)


def test_corners_count_from_1_and_belong_to_the_box(write_voc):
    coco = read(write_voc(CATS, train=CATS))
    # 1..100 of 100 pixels is the whole width; 11..30 are the 20 pixels from coordinate 10 on; 5..5 is one pixel.
    assert [a["bbox"] for a in coco["annotations"]] == [[0, 0, 100, 80], [10, 20, 20, 40], [4, 4, 1, 1]]
    assert [(a["id"], a["image_id"], a["category_id"]) for a in coco["annotations"]] == [
        (1, 1, 1),
        (2, 2, 2),
        (3, 2, 1),
    ]
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [(i["id"], i["file_name"], i["width"], i["height"]) for i in coco["images"]] == [
        (n + 1, f"{name}.jpg", 100, 80) for n, name in enumerate("abc")
    ]


def test_difficult_objects_are_crowds_to_coco(write_voc):
    things = [("cat", 1, 1, 9, 9, f"<difficult>{d}</difficult>") for d in (0, 1)]
    coco = read(write_voc({"a": things}, train="a"))
    assert [a["iscrowd"] for a in coco["annotations"]] == [0, 1]


def test_splits_are_taken_in_their_order_and_by_their_usual_names(write_voc):
    folder = write_voc(CATS, train="ba", val="c", test="a")
    assert [i["file_name"] for i in read(folder)["images"]] == ["b.jpg", "a.jpg"]
    assert [p.file_name for p in read_voc(folder, None, ("val", "test")).images] == ["c.jpg"]
    assert [p.file_name for p in read_voc(folder, "test").images] == ["a.jpg"]
    (folder / "ImageSets" / "Main" / "val.txt").unlink()
    assert [p.file_name for p in read_voc(folder, None, ("val", "test")).images] == ["a.jpg"]
    assert read_voc(folder, None).notes == [f"{folder}: took split train, 2 images"]


def test_without_splits_all_annotations_are_taken_and_it_is_said(write_voc):
    found = read_voc(write_voc(CATS), None)
    assert [p.annotation for p in found.images] == ["a.xml", "b.xml", "c.xml"]
    assert "so all 3 annotations were taken" in found.notes[0]


def test_annotations_beside_their_images(tmp_path, write_voc):
    folder = write_voc(CATS)
    for path in (*folder.glob("Annotations/*"), *folder.glob("JPEGImages/*")):
        path.rename(tmp_path / path.name)
    assert len(read(tmp_path)["images"]) == 3


def test_a_size_that_is_missing_comes_from_the_image_upright(write_voc):
    folder = write_voc({"a": [("cat", 1, 1, 9, 9)], "b": []})
    for name, size in (("a", ""), ("b", "<size><width>0</width><height>0</height></size>")):
        path = folder / "Annotations" / f"{name}.xml"
        path.write_text(re.sub("<size>.*</size>", size, path.read_text()))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (60, 70)).save(folder / "JPEGImages" / "b.jpg", exif=exif)
    assert [(i["width"], i["height"]) for i in read(folder)["images"]] == [(100, 80), (70, 60)]


def test_images_of_other_formats_and_names_are_found(write_voc):
    folder = write_voc({"a": [("cat", 1, 1, 9, 9)], "b": [], "c": []})
    images = folder / "JPEGImages"
    (images / "a.jpg").rename(images / "a.PNG")
    (images / "b.jpg").rename(images / "other.jpg")
    for name, given in (("b", r"C:\work\other.jpg"), ("c", "c.jpg")):
        path = folder / "Annotations" / f"{name}.xml"
        path.write_text(path.read_text().replace("<annotation>", f"<annotation><filename>{given}</filename>"))
    cv2.imwrite(str(images / "c.png"), np.zeros((80, 100, 3), np.uint8))  # beside c.jpg
    assert [i["file_name"] for i in read(folder)["images"]] == ["a.PNG", "other.jpg", "c.jpg"]


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (BOMB, "has a <!DOCTYPE>, which is refused since it may define entities; remove it: b.xml"),
        (BOMB.encode("utf-16"), "has a <!DOCTYPE>"),
        ('<!DOCTYPE x SYSTEM "file:///etc/hostname"><annotation/>', "has a <!DOCTYPE>"),
        ("<annotation>", "cannot be read as XML; correct the file or remove it: b.xml (no element found"),
        ("", "cannot be read as XML"),
        (b"\xff\xff", "cannot be read as XML"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "cannot be read as XML"),
        ("<html/>", "its first tag must be <annotation>: b.xml (<html>)"),
        ("{cat}{10}{10}{x}{20}", "a <bndbox> needs four numbers"),
        ("{cat}{10}{10}{nan}{20}", "b.xml object 1 (xmax is 'nan')"),
        ("{cat}{10}{10}{1e999}{20}", "b.xml object 1 (xmax is '1e999')"),
        ("{cat}{10}{10}{1_0}{20}", "b.xml object 1 (xmax is '1_0')"),
        ("{cat}{10}{10}{\u0661\u0662}{20}", "b.xml object 1 (xmax is '\u0661\u0662')"),
        ("{cat}{10}{10}{%s}{20}" % ("x" * 10**5), "xxx...)"),
        (
            "{a&#x85;b}{10}{10}{20}{20}",
            "a <name> that cannot be shown; a class needs a name on one line, without control",
        ),
        ("{a\nb}{10}{10}{20}{20}", "b.xml object 1 ('a\\nb')"),
        ("<annotation><object><name>x</name></object></annotation>", "xmin is '', ymin is '', xmax is '', ymax is ''"),
        ("{ }{10}{10}{20}{20}", "an object without <name>; add its class: b.xml object 1"),
        (
            "<annotation><size><width>-3</width><height>8</height></size></annotation>",
            "<size> is not in pixels; correct or remove it: b.xml (-3 x 8)",
        ),
    ],
)
def test_a_broken_annotation_is_named_with_its_fix(write_voc, xml, message):
    folder = write_voc(CATS, train=CATS)
    path = folder / "Annotations" / "b.xml"
    if isinstance(xml, str) and xml.startswith("{"):
        name, *corners = re.findall(r"(?s){(.*?)}", xml)
        whole = path.read_text()
        for corner, old, new in zip(("xmin", "ymin", "xmax", "ymax"), (11, 21, 30, 60), corners, strict=True):
            whole = whole.replace(f"<{corner}>{old}<", f"<{corner}>{new}<")
        xml = whole.replace("dog", name).replace("</bndbox>", "</bndbox>" + xml.rpartition("}")[2], 1)
    path.write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    found = problems(read, folder)
    assert message in found
    assert len(found) < 500
    assert found.startswith(f"{folder}:train: 1 in 3 annotations: ")


def test_all_faults_of_all_files_come_at_once_one_line_for_each_kind(write_voc):
    folder = write_voc({name: [("cat", 1, 1, 9, 9)] for name in "abcdef"}, train=[*"abcdef", "g"])
    for name in "ab":
        (folder / "Annotations" / f"{name}.xml").write_text("<")
    (folder / "JPEGImages" / "c.jpg").unlink()
    (folder / "JPEGImages" / "d.png").write_bytes(b"")
    found = problems(read, folder).splitlines()
    assert len(found) == 4
    assert "2 in 7 annotations: cannot be read as XML" in found[0]
    assert f"no image of that name in {folder}/JPEGImages; add it or remove the annotation: c.xml" in found[1]
    assert "several images of that name; name one in <filename>: d.xml (d.jpg, d.png)" in found[2]
    assert f"no such file in {folder}/Annotations; add it or remove its name from the split: g.xml" in found[3]


def test_what_coco_files_are_checked_for_is_named_by_the_xml_file(write_voc):
    folder = write_voc({"a": [("cat", 1, 1, 9, 9), ("cat", 50, 50, 40, 60)], "b": []}, train="ab")
    voc = read_voc(folder, None)
    notes = check_voc(voc, ["cat"]).notes
    assert f"{folder}:train: left out 1 boxes without area" in notes[1]
    assert "a.jpg annotation a.xml object 2 [49, 49, -9, 11]" in notes[2]
    cv2.imwrite(str(folder / "JPEGImages" / "b.jpg"), np.zeros((100, 80, 3), np.uint8))
    assert "'b.jpg' annotated as 100x80, but 80x100" in problems(check_voc, voc, ["cat"])


@pytest.mark.parametrize("name", ["../a", "..", "/etc/passwd", "..\\..\\a", "x/../../a"])
def test_a_split_names_images_of_its_folder_alone(write_voc, name):
    folder = write_voc(CATS, train=["b", name])
    found = problems(read_voc, folder, None)
    assert f"train.txt: {name!r} leads out of the folder; write names of images in it" in found


@pytest.mark.parametrize("name", ["sub/a", r"sub\a", "cat a", "a.txt"])
def test_a_line_of_a_split_is_not_taken_for_another_annotation(write_voc, name):
    found = problems(read_voc, write_voc(CATS, train=["b", name]), None)
    assert found.endswith(f"Annotations; add it or remove its name from the split: {name}.xml")


@pytest.mark.parametrize(
    "lines",
    [
        ["a.jpg", "b.jpg"],
        ["a.xml", "b.XML"],
        ["JPEGImages/a.jpg", "./JPEGImages/b.jpg"],
        ["/home/me/voc/JPEGImages/a.jpg", r"C:\voc\JPEGImages\b.jpg"],
        ["JPEGImages/a.jpg Annotations/a.xml", "JPEGImages/b.jpg\tAnnotations/b.xml"],
    ],
)
def test_lines_of_a_split_may_be_files(write_voc, lines):
    assert [i["file_name"] for i in read(write_voc(CATS, train=lines))["images"]] == ["a.jpg", "b.jpg"]


def test_annotations_in_folders_and_with_other_suffixes_are_taken(write_voc):
    folder = write_voc(dict(CATS, d=CATS["a"]), train=["cam1/a", "b", "d"])
    for part, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (folder / part / "cam1").mkdir()
        (folder / part / f"a.{suffix}").rename(folder / part / "cam1" / f"a.{suffix}")
    (folder / "Annotations" / "b.xml").rename(folder / "Annotations" / "b.XML")
    (folder / "Annotations" / "cam2").mkdir()  # whose image is in no folder
    (folder / "Annotations" / "d.xml").rename(folder / "Annotations" / "cam2" / "d.xml")
    assert [image.file_name for image in read_voc(folder, None).images][:2] == ["cam1/a.jpg", "b.jpg"]
    (folder / "ImageSets" / "Main" / "train.txt").unlink()
    found = read_voc(folder, None)
    assert [(i.annotation, i.file_name) for i in found.images] == [
        ("b.XML", "b.jpg"),
        ("c.xml", "c.jpg"),
        ("cam1/a.xml", "cam1/a.jpg"),
        ("cam2/d.xml", "d.jpg"),
    ]
    assert "so all 4 annotations were taken" in found.notes[0]


def test_images_without_annotation_are_named_where_no_split_chooses(write_voc):
    folder = write_voc(CATS)
    (folder / "Annotations" / "b.xml").unlink()
    what = "1 images have no annotation and were not taken; one without an object needs an empty annotation: b.jpg"
    assert read_voc(folder, None).notes[1] == f"{folder}: {what}"


def test_lists_of_classes_alone_are_a_split_together(write_voc):
    folder = write_voc(CATS, cat_train=["a.jpg 1", "b.jpg -1"], dog_train=["b.jpg 1", "c.jpg -1"], dog_val=["c.jpg 1"])
    found = read_voc(folder, None)
    assert [image.file_name for image in found.images] == ["a.jpg", "b.jpg", "c.jpg"]
    main = folder / "ImageSets" / "Main"
    of = f"from {main}/cat_train.txt and the lists of 1 other classes"
    assert found.notes == [f"{folder}: took split train {of}, 3 images"]
    assert [image.file_name for image in read_voc(folder, None, ("val", "test")).images] == ["c.jpg"]
    assert [image.file_name for image in read_voc(folder, "val").images] == ["c.jpg"]


@pytest.mark.parametrize(("place", "ending"), [(".", ".txt"), (".", "_list.txt"), ("ImageSets", ".txt")])
def test_lists_in_other_places_are_used(write_voc, place, ending):
    folder = write_voc(CATS)
    (folder / place / f"train{ending}").write_text("b\n")
    (folder / place / f"val{ending}").write_text("c\n")
    (folder / "label_list.txt").write_text("cat\ndog\n")
    assert [image.file_name for image in read_voc(folder, None).images] == ["b.jpg"]
    found = read_voc(folder, None, ("val", "test"))
    assert [image.file_name for image in found.images] == ["c.jpg"]
    assert found.notes == [f"{folder}: took split val from {folder / place / f'val{ending}'}, 1 images"]


@pytest.mark.parametrize("name", ["annotations", "annots", "deep/xmls"])
def test_annotations_and_images_in_folders_of_any_name(write_voc, name):
    folder = write_voc(CATS)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "Annotations").rename(folder / name)
    (folder / "JPEGImages").rename(folder / "images")
    found = read_voc(folder, None)
    assert [image.file_name for image in found.images] == ["images/a.jpg", "images/b.jpg", "images/c.jpg"]
    assert found.notes[0] == f"{folder}: took annotations from {name.split('/')[0]}/ and images from images"
    (folder / "ImageSets" / "Main" / "train.txt").write_text("images/b.jpg\n")
    assert [image.file_name for image in read_voc(folder, None).images] == ["images/b.jpg"]


def test_corners_that_are_exchanged_everywhere_are_named_with_their_files(write_voc):
    folder = write_voc(
        {name: [("cat", 50, 10, 20, 60)] for name in "ab"} | {"c": [("cat", 20, 10, 50, 60)]}, train="abc"
    )
    found = problems(check_voc, read_voc(folder, None), ["cat"])
    assert "2 of 3 boxes have xmax < xmin or ymax < ymin" in found
    assert "(annotation a.xml object 1, annotation b.xml object 1); exchange the two corners" in found


def test_the_folder_of_vocs_names_may_be_one_below(tmp_path, write_voc):
    write_voc(CATS, folder="kit/VOC2007", train="b")
    found = read_voc(tmp_path / "kit", None)
    assert found.notes == [f"{tmp_path}/kit/VOC2007: took split train, 1 images"]


def test_annotations_in_several_folders_are_not_guessed(write_voc):
    folder = write_voc(CATS)
    (folder / "Annotations").rename(folder / "train")
    (folder / "test").mkdir()
    (folder / "train" / "c.xml").rename(folder / "test" / "c.xml")
    found = problems(read_voc, folder, None)
    assert found.endswith(f"in 2 folders; name one of them: {folder}/test, {folder}/train")


def test_difficult_is_told_in_other_words_or_taken_as_0_with_a_note(write_voc):
    values = ["Unspecified", "true", "False", "", "Unspecified"]
    things = [("cat", 1, 1, 9, 9, f"<difficult>{value}</difficult>") for value in values]
    voc = read_voc(write_voc({"a": things}, train="a"), None)
    assert [thing.difficult for thing in voc.images[0].objects] == [False, True, False, False, False]
    what = "2 in 1 annotations: <difficult> is neither 0 nor 1 and was taken as 0"
    assert f"{what}: a.xml object 1 ('Unspecified'), a.xml object 5 ('Unspecified')" in voc.notes[1]


def test_numbers_are_read_in_every_usual_form(write_voc):
    boxes = read(write_voc({"a": [("cat", "+1", "1.5", "2e1", "30.0")]}, train="a"))["annotations"]
    assert boxes[0]["bbox"] == [0, 0.5, 20, 29.5]  # x from 1 to 20, y from 1.5 to 30


@pytest.mark.parametrize("place", ["Annotations/a.xml", "JPEGImages/a.jpg", "ImageSets/Main/train.txt"])
def test_pipes_are_not_waited_for(write_voc, place):
    folder = write_voc(CATS, train=CATS)
    xml = folder / "Annotations/a.xml"
    xml.write_text(re.sub("<size>.*</size>", "", xml.read_text()))
    (folder / place).unlink()
    os.mkfifo(folder / place)
    found = problems(read_voc, folder, None)
    assert "a.jpg" in found and "IrregularFileError" in found if "jpg" in place else "is not a regular file" in found


def test_a_place_too_long_is_named():
    assert "no such folder" in problems(read_voc, "long/" * 1000, None)


def test_splits_that_cannot_be_taken(write_voc, tmp_path):
    folder = write_voc(CATS, trainval="ab", val="aa", empty=[], cat_val=["a  1", "b -1"])
    (folder / "ImageSets/Main/latin.txt").write_bytes(b"\xe4\n")
    there = f"there are empty, latin, trainval, val; name one as {folder}:SPLIT"
    assert problems(read_voc, folder, None) == f"{folder}: no split train in {folder}/ImageSets/Main; {there}"
    assert there in problems(read_voc, folder, "tset")
    assert "val.txt: repeats a; name each image once" in problems(read_voc, folder, "val")
    assert "empty.txt: names no image" in problems(read_voc, folder, "empty")
    assert "latin.txt: not a text file in UTF-8" in problems(read_voc, folder, "latin")
    assert "lists which images hold one class" in problems(read_voc, folder, "cat_val")
    whole = write_voc(CATS, folder="whole")
    assert "no split 'train' in" in problems(read_voc, whole, "train")
    assert problems(read_voc, whole, "train").endswith("leave it out to take all")


def test_folders_that_are_none(tmp_path, write_voc):
    assert "no such folder; name one that holds Annotations" in problems(read_voc, tmp_path / "no", None)
    assert "no such folder" in problems(read_voc, "", None)
    assert "has no folder Annotations" in problems(read_voc, tmp_path, None)
    (tmp_path / "Annotations").mkdir()
    assert "no annotations (*.xml)" in problems(read_voc, tmp_path, None)


def test_a_source_is_a_folder_and_its_split(tmp_path):
    (tmp_path / "a:b").mkdir()
    assert voc_source("train", "voc:val") == SetSource("train", "voc", "voc", "val")
    assert voc_source("train", "voc") == SetSource("train", "voc", "voc", None)
    assert voc_source("val", f"{tmp_path}/a:b").detail is None
    assert parse_source("val", "voc:some/where:test") == SetSource("val", "voc", "some/where", "test")
    assert parse_source("val", "coco:a.json:b") == SetSource("val", "json", "a.json", "b")
    assert parse_source("val", "coco_2017_val") is None
    assert "the folder of its images is missing" in problems(parse_source, "val", "coco:a.json")


def test_all_sets_of_a_run_number_their_classes_alike(write_voc):
    one = write_voc({"a": [("cat", 1, 1, 9, 9)]}, folder="one")
    two = write_voc({"a": [("ant", 1, 1, 9, 9)]}, folder="two")
    sources = {"train_voc": voc_source("train", str(one)), "val_voc": voc_source("val", str(two))}
    sets, found = read_sources(sources)
    assert found == []
    assert [own.file.class_names for own in sets.values()] == [["ant", "cat"]] * 2
    # only the second is wanted, but the first's classes count
    alone, _ = read_sources({"val_voc": sources["val_voc"]}, also=[sources["train_voc"]])
    assert alone["val_voc"].file.class_names == ["ant", "cat"]
    ordered, _ = read_sources(sources, class_names=["cat", "bee", "ant"])
    assert ordered["val_voc"].file.coco["annotations"][0]["category_id"] == 3
    _, found = read_sources(sources, class_names=["cat", "bee"])
    assert found == [f"{two}: class ant is not among cat, bee; correct these objects, or leave them out by --classes"]


def test_voc_takes_the_order_of_a_coco_file_that_has_its_classes(write_voc):
    folder = write_voc({"a": [("cat", 1, 1, 9, 9)]})
    images = [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}]
    coco = {"images": images, "annotations": [], "categories": [{"id": 4, "name": "dog"}, {"id": 7, "name": "cat"}]}
    (folder / "c.json").write_text(json.dumps(coco))
    json_source = SetSource("train", "json", str(folder / "c.json"), str(folder / "JPEGImages"))
    sets, found = read_sources({"train_json": json_source, "val_voc": voc_source("val", str(folder))})
    assert found == []
    assert sets["val_voc"].file.class_names == ["dog", "cat"]


def test_no_objects_at_all_have_no_classes(write_voc):
    _, found = read_sources({"train_voc": voc_source("train", str(write_voc({"a": []})))})
    assert "no annotation has an object, so there are no classes" in found[0]


@pytest.mark.skipif(not BCCD.is_dir(), reason="needs the images of BCCD")
def test_real_images_give_the_same_boxes_in_voc_and_coco_form(tmp_path):
    raw = json.loads((BCCD / "instances_test.json").read_text())
    names = {c["id"]: c["name"] for c in raw["categories"]}
    for part in ("Annotations", "ImageSets/Main"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "JPEGImages").symlink_to(BCCD / "images")
    for image in raw["images"]:
        body = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
        for annotation in raw["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
                name = f"<name>{names[annotation['category_id']]}</name>"
                body += f"<object>{name}<bndbox>{corners}</bndbox></object>"
        path = tmp_path / "Annotations" / Path(image["file_name"]).with_suffix(".xml")
        path.write_text(f"<annotation>{body}</annotation>")
    stems = "\n".join(Path(image["file_name"]).stem for image in raw["images"])
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text(stems)

    def boxes(coco):
        files = {i["id"]: i["file_name"] for i in coco["images"]}
        of = {c["id"]: c["name"] for c in coco["categories"]}
        return sorted((files[a["image_id"]], of[a["category_id"]], a["bbox"]) for a in coco["annotations"])

    coco = read(tmp_path, usual_splits=("val", "test"))
    assert boxes(coco) == boxes(read_coco(BCCD / "instances_test.json", BCCD / "images").coco)
    assert len(coco["images"]) == 72
