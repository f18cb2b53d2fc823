"""A part to evaluate on: as large as asked, the same at every start, and with no image like one of the others."""

import json

import numpy as np
import pytest
from exported_formats import ultralytics, write_images, write_labels
from PIL import Image

from focal_det.data.dataset_spec import data_source
from focal_det.data.split import check_split, descriptions, groups_alike, read_sets
from focal_det.errors import InputError

NAMES = [f"n{i:02d}" for i in range(30)]


@pytest.fixture
def folder(tmp_path):
    return ultralytics(tmp_path, {name: [("cat", 4, 6, 20, 12)] for name in NAMES})


def split(folder, share=0.2, seed=0):
    sources = {f"{use}_data": data_source(use, str(folder)) for use in ("train", "val")}
    return read_sets(sources, split=(share, seed))


def parts(folder, **how):
    sets, problems = split(folder, **how)
    assert problems == []
    return [
        {image["file_name"][-7:-4] for image in sets[name].file.coco["images"]} for name in ("train_data", "val_data")
    ]


def test_every_image_is_in_one_part_and_its_objects_with_it(folder):
    sets, _ = split(folder)
    train, val = parts(folder)
    assert (len(train), len(val)) == (24, 6)
    assert train | val == set(NAMES)
    for own in sets.values():
        assert [a["image_id"] for a in own.file.coco["annotations"]] == [i["id"] for i in own.file.coco["images"]]
    said = f"{folder}/data.yaml:train: 6 of 30 images were set aside by --split-val 0.2:0"
    assert sets["val_data"].file.notes[-1] == said
    assert sets["train_data"].file.notes == []


def test_it_is_the_same_at_every_start_and_another_by_another_seed(folder):
    assert parts(folder) == parts(folder)
    assert parts(folder, seed=1)[1] != parts(folder)[1]
    before = parts(folder)[1]
    write_images(folder / "images/train", ["new"])
    write_labels(folder / "labels/train", {"new": []})
    assert len(before & parts(folder)[1]) >= 5


def test_images_that_look_alike_stay_together(folder):
    """Four frames of one scene, each a bit brighter, smaller or compressed anew."""
    rng = np.random.default_rng(5)
    scene = Image.fromarray(rng.integers(40, 200, (6, 8, 3), np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
    for name, frame, options in (
        ("n00.png", scene, {}),
        ("n01.png", scene.resize((200, 150)), {}),
        ("n02.jpg", scene, {"quality": 30}),
        ("n03.png", scene.point(lambda value: value + 9), {}),
    ):
        (folder / f"images/train/{name[:3]}.png").unlink()
        frame.save(folder / "images/train" / name, **options)
    for seed in range(12):
        train, val = parts(folder, seed=seed)
        assert {"n00", "n01", "n02", "n03"} <= train or {"n00", "n01", "n02", "n03"} <= val
        assert len(val) == 6
    note = split(folder)[0]["val_data"].file.notes[-1]
    assert "4 images that look alike are 1 group, none in both parts" in note


def test_images_made_of_one_by_roboflow_stay_together():
    names = ["a_jpg.rf.12.jpg", "b_jpg.rf.34.jpg", "a_jpg.rf.56.jpg", "a.jpg"]
    assert groups_alike(names, [1 << 60, 7 << 30, 31 << 10, None]) == [[0, 2], [1], [3]]


def test_alike_is_whatever_is_like_one_of_them():
    # 3 bits from each to the next, and 6 or 9 between those that are not neighbours
    chain = [0b0, 0b111, 0b111111, 0b111111111]
    far = [0b1111 << 40]
    assert groups_alike(list("abcde"), chain + far) == [[0, 1, 2, 3], [4]]
    assert groups_alike(list("abc"), [None, None, 3]) == [[0], [1], [2]]


def test_an_image_that_cannot_be_read_is_alone(tmp_path):
    (tmp_path / "a.png").write_text("x")
    assert descriptions(tmp_path, ["a.png", "gone.png"]) == [None, None]


def test_where_all_look_alike_there_is_nothing_to_split(folder):
    for name in NAMES:
        Image.new("RGB", (64, 48), (9, 9, 9)).save(folder / f"images/train/{name}.png")
    sets, (problem,) = split(folder)
    assert sets == {}
    assert "30 of 30 images look alike, as frames of one video do, and --split-val 0.2 keeps such images" in problem


@pytest.mark.parametrize("value", [[0.2], [1, 0], [0, 0], [True, 0], [0.2, 0.5], [0.2, 0, 0], ["x", 0], "ab"])
def test_values_that_are_none(value):
    with pytest.raises(InputError, match=r"DATASETS\.SPLIT_VAL is .* as in \[0\.2, 0\]"):
        check_split(value)


def test_values():
    assert check_split([]) is None
    assert check_split([0.25, 7]) == (0.25, 7)


def test_images_of_two_sets_that_look_alike_stay_together(folder, tmp_path):
    other = ultralytics(tmp_path / "other", {f"m{i}": [("cat", 4, 6, 20, 12)] for i in range(10)})
    for i in range(10):
        Image.open(folder / f"images/train/n0{i}.png").save(other / f"images/train/m{9 - i}.png", optimize=True)
    sources = {
        f"{use}_{at.name}": data_source(use, f"{at}/data.yaml") for use in ("train", "val") for at in (folder, other)
    }
    for seed in range(5):
        sets, problems = read_sets(sources, split=(0.3, seed))
        assert problems == []
        tested = {
            at: {image["file_name"][-6:-4] for image in sets[f"val_{at.name}"].file.coco["images"]}
            for at in (folder, other)
        }
        assert len(tested[other]) == 3
        assert {f"0{9 - int(name[1])}" for name in tested[other]} == {n for n in tested[folder] if n < "10"}


def test_one_image_alone_cannot_be_split(tmp_path):
    alone = ultralytics(tmp_path, {"a": [("cat", 4, 6, 20, 12)]})
    said = "has 1 image to split, and --split-val 0.2 needs two: name a set to evaluate on by --val"
    assert split(alone) == ({}, [f"{alone}/data.yaml:train: {said}"])


def test_bad_images_that_were_left_out_are_told_with_the_parts(folder):
    (folder / "images/train/n07.png").write_bytes(b"no image")
    sources = {use: data_source(use, str(folder)) for use in ("train", "val")}
    sets, _ = read_sets(sources, split=(0.2, 0), skip_bad_images=1)
    note = sets["val"].file.notes[-1]
    assert "6 of 29 images were set aside" in note
    assert note.endswith("; 1 bad image left out before that, without which the parts may differ")


def test_an_image_is_left_to_train_on(folder):
    assert [len(part) for part in parts(folder, share=0.99)] == [1, 29]


def test_boxes_that_were_left_out_are_counted_in_the_part_of_their_image(folder):
    images = []
    for number, file in enumerate(sorted((folder / "images/train").iterdir())):
        width, height = Image.open(file).size
        images.append({"id": number, "file_name": file.name, "width": width, "height": height})
    boxes = [{"id": i + 1, "image_id": i, "category_id": 1, "bbox": [4, 4, 0, 9]} for i in range(len(images))]
    boxes += [{**box, "id": 100 + box["id"], "bbox": [4, 4, 5, 9]} for box in boxes]
    coco = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "coco.json").write_text(json.dumps(coco))
    sources = {use: data_source(use, f"{folder}/coco.json:{folder}/images/train") for use in ("train", "val")}
    sets, problems = read_sets(sources, split=(0.2, 0))
    assert problems == []
    assert [len(sets[use].file.of_boxes_left_out) for use in ("train", "val")] == [24, 6]
