"""Annotation files as people have them: completed where the format allows, refused with all problems where not."""

import json
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from focal_det.errors import InputError
from focal_det.formats.coco import check_coco, read_coco

GOOD = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 100, "height": 80},
        {"id": 9, "file_name": "b.png", "width": 100, "height": 80},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 5, "bbox": [10, 10, 20, 30], "area": 400, "iscrowd": 0},
        {"id": 2, "image_id": 9, "category_id": 2, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 1},
    ],
    "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "dog"}],
}


@pytest.fixture
def write(tmp_path):
    """Writes an annotation file beside its images; returns the arguments of read_coco."""

    def write(content):
        for name in ("a.png", "b.png"):
            cv2.imwrite(str(tmp_path / name), np.zeros((80, 100, 3), np.uint8))
        path = tmp_path / "instances.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path, tmp_path

    return write


def changed(**sections):
    return {**json.loads(json.dumps(GOOD)), **sections}


def annotations(*rows):
    return changed(annotations=[{"image_id": 7, "category_id": 5, "bbox": [1, 1, 5, 5]} | row for row in rows])


def problems(arguments):
    with pytest.raises(InputError) as caught:
        read_coco(*arguments)
    return "\n".join(caught.value.problems)


def test_a_good_file_is_kept(write):
    found = read_coco(*write(GOOD))
    assert found.coco["annotations"] == GOOD["annotations"]
    assert found.class_names == ["dog", "cat"]  # by id
    assert found.notes == []


def test_info_area_iscrowd_and_ids_are_filled_in(write):
    found = read_coco(*write(annotations({}, {"ignore": 1})))
    assert found.coco["info"] == {}
    assert found.coco["annotations"] == [
        {"id": 1, "image_id": 7, "category_id": 5, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 5, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 1},
    ]


@pytest.mark.parametrize("area", ["Infinity", "NaN", "true", "-3", "1" + "0" * 400, '"9"'])
def test_an_area_that_is_none_becomes_the_boxs(write, area):
    content = json.dumps(annotations({"area": "AREA"})).replace('"AREA"', area)
    assert read_coco(*write(content)).coco["annotations"][0]["area"] == 25


def test_an_image_under_two_ids_is_noted(write):
    image = {"file_name": "a.png", "width": 100, "height": 80}
    found = read_coco(*write(changed(images=[image | {"id": 7}, image | {"id": 9}])))
    assert "1 images have several ids, each with only some of their boxes" in found.notes[0]
    assert "('a.png'); give each image one id" in found.notes[0]


def test_repeated_annotation_ids_are_renumbered(write):
    found = read_coco(*write(annotations({"id": 3}, {"id": 3})))
    assert [a["id"] for a in found.coco["annotations"]] == [1, 2]


@pytest.mark.parametrize("bbox", [[5, 5, 0, 9], [5, 5, 9, -1], [200, 5, 9, 9], [-9, 5, 9, 9]])
def test_boxes_without_area_in_their_image_are_left_out_and_named(write, bbox):
    found = read_coco(*write(annotations({}, {"id": 77, "bbox": bbox})))
    assert len(found.coco["annotations"]) == 1
    assert found.notes[0].endswith("left out 1 boxes without area in their image:")
    assert found.notes[1] == f"  a.png annotation 77 {bbox}"


def test_no_annotations_is_a_data_set_without_objects(write):
    assert read_coco(*write(changed(annotations=[]))).coco["annotations"] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100000, "not JSON"),
        ([1], "the file holds a list"),
        ("null", "the file holds null"),
        ("9" * 5000, "not JSON"),
        (annotations({"bbox": [1, 2, 3, 10**400]}), "four numbers"),
        (annotations({"bbox": [True, True, True, True]}), "four numbers"),
        (annotations({"bbox": ["x" * 10**6, 2, 3, 4]}), "xxx... (annotations[0]): a box is four numbers"),
        (annotations({"bbox": "x" * 10**6}), "xxx..., not a list"),
        (annotations({"image_id": 10**400}), "000..., beyond an integer of 64 bits"),
        (
            changed(images=[{"id": 7, "file_name": "a.png", "width": 10**400, "height": 9}]),
            "000..., not a size in pixels",
        ),
        (
            changed(categories=[{"id": 5, "name": "a\nb"}]),
            "\"name\" of category id=5 is 'a\\nb'; a class needs a name on",
        ),
        (changed(categories=[{"id": 5, "name": "\ud800"}]), "\"name\" of category id=5 is '\\ud800'"),
        (changed(categories=[{"id": 5, "name": "\x1b[2J"}]), "\"name\" of category id=5 is '\\x1b[2J'"),
        (changed(categories=[{"id": 5, "name": " "}]), "\"name\" of category id=5 is ' '"),
        (changed(categories=[{"id": i, "name": str(i)} for i in range(100_001)]), "100001 of them, more than 100000"),
        (
            annotations(*({"category_id": i} for i in range(10, 22))),
            "category_id=10 (annotations[0]), category_id=11 (annotations[1]), category_id=12 (annotations[2]), "
            "category_id=13 (annotations[3]), category_id=14 (annotations[4]) and 7 more are not in categories [2, 5]",
        ),
        (annotations({"iscrowd": "0"}), "\"iscrowd\" is '0', not 0 or 1"),
        ({}, '"images" is missing'),
        (changed(images=[]), '"images" is empty'),
        (changed(categories=[{"id": 5}, *GOOD["categories"]]), 'categories[0]: "name" is missing'),
        (changed(categories="cat"), '"categories" is not a list'),
        (changed(images=[{"id": 7, "file_name": "a.png", "height": 80}]), 'images[0]: "width" is missing'),
        (changed(images=[{"id": [7], "file_name": "a.png", "width": 9, "height": 9}]), '"id" is [7], not an integer'),
        (changed(images=[{"id": 7, "file_name": "a.png", "width": 0, "height": 9}]), '"width" is 0'),
        (changed(annotations=[3]), "annotations[0]: is a number, not an object"),
        (annotations({"bbox": [1, 2, 3]}), "bbox=[1, 2, 3] (annotations[0]): a box is four numbers"),
        (annotations({"bbox": [1, 2, 3, "4"]}), "four numbers"),
        (annotations({"category_id": 8, "id": 12}), "category_id=8 (annotation 12) is not in categories [2, 5]"),
        (annotations({"image_id": 8}), "image_id=8 (annotations[0]) not in images"),
        (changed(categories=[{"id": 5, "name": "cat"}] * 2 + [{"id": 2, "name": "d"}]), "categories: repeated id 5"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(write, content, message):
    arguments = write(content)
    found = problems(arguments)
    assert message in found
    assert len(found) < 1000
    assert all(line.startswith(str(arguments[0])) for line in found.splitlines())


def test_repeated_class_names_are_refused(write):
    arguments = write(changed(categories=[{"id": 5, "name": "cat"}, {"id": 2, "name": "cat"}]))
    assert "categories: repeated name cat" in problems(arguments)


def test_ids_that_are_not_numbers_are_renumbered_and_a_byte_order_mark_is_no_matter(write):
    path, folder = write(annotations({"id": [1]}, {"id": {}}))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [a["id"] for a in read_coco(path, folder).coco["annotations"]] == [1, 2]


def test_boxes_that_reach_out_of_their_image_are_noted(write):
    found = read_coco(*write(annotations({}, {"id": 4, "bbox": [60, 50, 90, 70]})))
    assert len(found.coco["annotations"]) == 2
    assert "1 of 2 boxes extend beyond their image and are clipped (annotation 4)" in found.notes[0]


def test_images_are_opened_and_their_sizes_compared(write):
    path, folder = write(GOOD)
    (folder / "a.png").write_bytes(b"")
    cv2.imwrite(str(folder / "b.png"), np.zeros((70, 90, 3), np.uint8))
    found = problems((path, folder))
    assert "1 of 2 images cannot be opened or are damaged; replace them" in found
    assert "'a.png' (UnidentifiedImageError)" in found
    assert "1 of 2 images have another size than annotated; correct width and height" in found
    assert "'b.png' 90x70, not 100x80" in found


def test_an_image_turned_by_its_exif_tag_has_the_size_that_detectron2_sees(write):
    path, folder = write(changed(images=[{"id": 7, "file_name": "t.jpg", "width": 100, "height": 80}], annotations=[]))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (80, 100)).save(folder / "t.jpg", exif=exif)
    assert read_coco(path, folder).notes == []


def test_all_problems_come_at_once(write):
    path, folder = write(annotations({"category_id": 8}, {"image_id": 8}, {"bbox": [1, 2, float("inf"), 4]}))
    (folder / "b.png").unlink()
    found = problems((path, folder))
    assert found.count("\n") == 3
    assert "1 of 2 images are not in" in found
    assert "b.png" in found


def test_missing_file_and_folder_are_named(tmp_path, write):
    assert problems((tmp_path / "no.json", tmp_path)) == f"{tmp_path / 'no.json'}: no such annotation file"
    long = tmp_path / ("long/" * 1000)
    assert problems((long, tmp_path)).endswith("the annotation file cannot be read (File name too long); name another")
    assert len(problems((long, tmp_path))) < 400
    assert "/proc/self/mem: the annotation file cannot be read (Input/output error)" in problems(
        ("/proc/self/mem", tmp_path)
    )
    path, _ = write(GOOD)
    assert problems((path, long)).endswith(f": no such folder of images (for {path})")
    assert problems((path, tmp_path / "no")).startswith(f"{tmp_path / 'no'}: no such folder")


def test_pipes_are_not_waited_for(tmp_path, write):
    os.mkfifo(tmp_path / "pipe")
    path, folder = write(GOOD)
    assert "(pipe is not a regular file); name another" in problems((tmp_path / "pipe", folder))
    assert "(no is not a regular file)" in problems((folder.joinpath("no").mkdir() or folder / "no", folder))
    (folder / "a.png").unlink()
    os.mkfifo(folder / "a.png")
    found = problems((path, folder))
    assert "1 of 2 images are not regular files but folders, pipes or devices; replace them" in found
    assert found.endswith(": 'a.png'")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(write):
    path, folder = write(GOOD)
    path.chmod(0)
    assert "cannot be read (Permission denied)" in problems((path, folder))


# --- what means one thing alone is taken, changed and said ------------------------------------------------------------


def with_ids(image_ids, category_ids, references):
    images = [image | {"id": i} for image, i in zip(GOOD["images"], image_ids, strict=True)]
    categories = [c | {"id": i} for c, i in zip(GOOD["categories"], category_ids, strict=True)]
    rows = [{"image_id": i, "category_id": c, "bbox": [1, 1, 5, 5]} for i, c in references]
    return {"images": images, "annotations": rows, "categories": categories}


@pytest.mark.parametrize(
    ("content", "images", "categories", "references", "notes"),
    [
        (
            with_ids(["b7", "a9"], ["kat", "dog"], [("a9", "kat"), ("b7", "dog")]),
            [2, 1],
            [2, 1],
            [(1, 2), (2, 1)],
            [
                "images: 2 of 2 ids are no integers and were numbered from 1 to 2 in their order ('b7', 'a9')",
                "categories: 2 of 2 ids are no integers and were numbered from 1 to 2 in their order ('kat', 'dog')",
            ],
        ),
        (
            with_ids(["10", "9"], [5.0, 2.0], [("9", 5), (10, 2.0)]),
            [10, 9],
            [5, 2],
            [(9, 5), (10, 2)],
            [
                "images: 2 of 2 ids are no integers and were read as such ('10', '9')",
                "categories: 2 of 2 ids are no integers and were read as such (5.0, 2.0)",
            ],
        ),
        (
            with_ids([7, 9], [5, 2], [("9", "5"), ("a.png", "dog"), (7, 2)]),
            [7, 9],
            [5, 2],
            [(9, 5), (7, 2), (7, 2)],
            [
                "2 of 3 annotations name their image_id as text; taken as the images' ids",
                "2 of 3 annotations name their category_id as text; taken as the categories' ids",
            ],
        ),
        (with_ids([7, 2**64], [5, 2], [(2**64, 5)]), [2, 1], [5, 2], [(1, 5)], None),
    ],
)
def test_ids_that_name_things_uniquely_become_integers(write, content, images, categories, references, notes):
    path, folder = write(content)
    found = read_coco(path, folder)
    assert [image["id"] for image in found.coco["images"]] == images
    assert [category["id"] for category in found.coco["categories"]] == categories
    assert [(a["image_id"], a["category_id"]) for a in found.coco["annotations"]] == references
    assert notes is None or found.notes == [f"{path}: {note}" for note in notes]


def test_sizes_that_are_whole_become_integers(write):
    images = [GOOD["images"][0] | {"width": 100.0, "height": "80"}, GOOD["images"][1]]
    path, folder = write(changed(images=images))
    found = read_coco(path, folder)
    assert [(image["width"], image["height"]) for image in found.coco["images"]] == [(100, 80)] * 2
    what = "widths or heights that are not written as integers, and were read as such"
    assert found.notes == [f"{path}: 1 of 2 images have {what}: 'a.png'"]
    for value in ("80.5", 80.5, "\u0668\u0660", None, True):
        assert '"height" is' in problems(write(changed(images=[images[0] | {"height": value}, images[1]])))


@pytest.mark.parametrize("ids", [["a", "a"], [None, "a"], [True, "a"], [[7], "a"]])
def test_ids_that_name_nothing_uniquely_are_refused(write, ids):
    assert "images" in problems(write(with_ids(ids, [5, 2], [])))


def test_a_registered_sets_ids_stay_since_detectron2_reads_its_own_file(tmp_path):
    with pytest.raises(InputError, match="not an integer"):
        check_coco(with_ids(["x", "y"], [5, 2], []), "set", tmp_path, images=False, as_is="train")


def test_polygons_without_a_box_get_theirs_and_it_is_said(write):
    outline = [[10, 20, 40, 20, 40, 50], [5, 30, 8, 30, 8, 33.5]]
    path, folder = write(annotations({"id": 8, "segmentation": outline}, {"segmentation": [[1, 1, 2, 2, 3, 1]]}))
    content = json.loads(path.read_text())
    del content["annotations"][0]["bbox"]
    path.write_text(json.dumps(content))
    found = read_coco(path, folder)
    assert [a["bbox"] for a in found.coco["annotations"]] == [[5, 20, 35, 30], [1, 1, 5, 5]]
    assert found.notes == [f"{path}: 1 annotation without bbox got that of their segmentation: annotation 8"]
    assert all("segmentation" not in a for a in found.coco["annotations"])
    for outline in ([], [[]], [["x", 1]], {"counts": "a", "size": [1, 1]}, 3):
        content["annotations"][0]["segmentation"] = outline
        path.write_text(json.dumps(content))
        assert '"bbox" is missing' in problems((path, folder))


@pytest.mark.parametrize("name", ["animals", "cat"])
def test_a_category_above_all_others_without_objects_is_left_out(write, name):
    root = {"id": 0, "name": name, "supercategory": "none"}
    rest = [category | {"supercategory": name} for category in GOOD["categories"]]
    path, folder = write(changed(categories=[root, *rest]))
    found = read_coco(path, folder)
    assert found.class_names == ["dog", "cat"]
    what = "left out, since it is the supercategory of all others and has no box"
    assert found.notes == [f"{path}: category {name!r} (id 0) was {what}"]


def test_a_category_with_objects_or_beside_others_stays(write):
    root = {"id": 0, "name": "animals", "supercategory": "none"}
    rest = [category | {"supercategory": "animals"} for category in GOOD["categories"]]
    content = changed(categories=[root, *rest])
    content["annotations"][0]["category_id"] = 0
    assert len(read_coco(*write(content)).class_names) == 3
    assert len(read_coco(*write(changed(categories=[root, rest[0], GOOD["categories"][1]]))).class_names) == 3


@pytest.mark.parametrize(
    "name", ["\u0645\u06cc\u200c\u0634\u0648\u062f", "a\u00a0b", "\u732b", "\U0001f408", "e\u0301"]
)
def test_names_in_any_language_are_taken(write, name):
    assert name in read_coco(*write(changed(categories=[{"id": 5, "name": name}, GOOD["categories"][1]]))).class_names


@pytest.mark.parametrize("name", ["", "\u200c", "\u00a0", "a\tb", "a\u2028b", "a\x85b"])
def test_names_without_anything_to_see_or_on_two_lines_are_refused(write, name):
    assert "a class needs a name" in problems(write(changed(categories=[{"id": 5, "name": name}])))


@pytest.mark.parametrize("name", ["Dog", "dog ", "d\u200cog", "DOG", "\uff44og", "d-og"])
def test_classes_spelt_alike_are_noted_with_their_objects(write, name):
    path, folder = write(changed(categories=[{"id": 5, "name": name}, GOOD["categories"][1]]))
    found = read_coco(path, folder)
    assert found.notes[0].startswith(f"{path}: classes {name!r} (1 object) and 'dog' (1 object) differ only in case")
    assert found.class_names == ["dog", name]
    assert read_coco(*write(GOOD)).notes == []


# --- files of LVIS, and files without annotations ---------------------------------------------------------------------


def federated():
    images = [
        {**{k: v for k, v in image.items() if k != "file_name"}, "coco_url": f"http://a.b/c/{folder}/{name}"}
        for image, (folder, name) in zip(GOOD["images"], (("x", "a.png"), ("x", "b.png")), strict=True)
    ]
    fields = {"neg_category_ids": [2], "not_exhaustive_category_ids": []}
    return changed(images=[image | fields for image in images])


def test_images_of_lvis_are_named_by_their_url_and_keep_what_was_looked_for(write, tmp_path):
    arguments = write(federated())
    (tmp_path / "x").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / name).rename(tmp_path / "x" / name)
    found = read_coco(*arguments)
    assert found.is_federated
    assert [image["file_name"] for image in found.coco["images"]] == ["x/a.png", "x/b.png"]
    assert found.coco["images"][0]["neg_category_ids"] == [2]
    assert not read_coco(*write(GOOD)).is_federated


def test_without_what_lvis_says_an_image_needs_its_name(write):
    content = federated()
    del content["images"][1]["neg_category_ids"]
    assert '"file_name" is missing' in problems(write(content))


def test_a_file_without_annotations_is_taken_only_where_it_may_be(write):
    content = changed()
    del content["annotations"]
    assert '"annotations" is missing' in problems(write(content))
    found = read_coco(*write(content), may_lack_annotations=True)
    assert not found.is_annotated
    assert "annotations" not in found.contents()
    assert read_coco(*write(GOOD), may_lack_annotations=True).contents()["annotations"] == GOOD["annotations"]
