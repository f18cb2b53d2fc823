"""Label Studio's exports: percent to shares, turned regions, skipped tasks, and names of uploaded images."""

import json

import numpy as np
import pytest
from exported_formats import OBJECTS, label_studio, region, write_images

from focal_det.errors import InputError
from focal_det.formats.exporters.label_studio import read_label_studio


@pytest.fixture
def read(tmp_path):
    def read_tasks(*tasks):
        write_images(tmp_path, ["a"])
        (tmp_path / "x.json").write_text(json.dumps(tasks))
        return read_label_studio(tmp_path / "x.json", tmp_path)

    return read_tasks


def task(*regions, image="a.png", **more):
    return {"id": 7, "data": {"text": "hello", "img": image}, "annotations": [{"result": list(regions), **more}]}


def changed(**value):
    found = region("cat", 16, 12, 32, 6)
    return {**found, "value": found["value"] | value}


def test_a_turned_rectangle_becomes_the_upright_one_around_it(read):
    found = read(task(changed(rotation=90)))
    # 32 x 6 px from (16, 12), turned by a quarter around that corner: 6 x 32 px to the left of it, in 64 x 48
    assert np.allclose(found.images[0].things[0].box, (10 / 64, 12 / 48, 6 / 64, 32 / 48))
    assert "1 turned boxes were replaced by the upright boxes around them: task 7 region Dx_aB" in found.notes[0]


def test_polygons_become_boxes_and_other_regions_are_counted(read):
    polygon = {"type": "polygonlabels", "value": {"points": [[10, 20], [50, 40], [30, 80]], "polygonlabels": ["cat"]}}
    found = read(
        task(polygon, {"type": "choices", "value": {"choices": ["sharp"]}}, {"type": "brushlabels", "value": {}})
    )
    assert np.allclose([thing.box for thing in found.images[0].things], [(0.1, 0.2, 0.4, 0.6)])
    assert [note.partition(": ")[2] for note in found.notes] == [
        "1 polygons were replaced by their boxes: task 7 region",
        "1 regions are no boxes but of kind choices, and were left out: task 7 region",
        "1 regions are no boxes but of kind brushlabels, and were left out: task 7 region",
    ]


def test_tasks_that_were_not_labelled_are_left_out_and_of_several_annotations_the_first_is_taken(read):
    several = task(changed(), was_cancelled=True)
    several["annotations"] += [{"result": []}, {"result": [changed()]}]
    found = read({**task(), "annotations": []}, task(changed(), was_cancelled=True), several)
    assert [image.things for image in found.images] == [[]]
    assert "2 tasks have no annotation, or one that was skipped, so they were left out" in found.notes[0]
    assert "1 tasks have several annotations, of which the first was taken" in found.notes[1]


@pytest.mark.parametrize(
    "image",
    [
        *("/data/upload/1/0a1b2c3d-a.png", "s3://bucket/x/a.png", "https://example.com/x/a.png?token=1#2"),
        *("/data/local-files/?d=some/a.png", "/data/local-files/?d=some%2Fa.png", "a.png"),
    ],
)
def test_images_are_found_by_the_end_of_their_address(read, image):
    assert read(task(image=image)).images[0].file_name == "a.png"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (task(image="hello"), "1 in 1 annotations: a task names no image: task 7"),
        (
            task(changed(x="1")),
            "a rectangle needs x, y, width, height, a polygon points, in percent: task 7 region Dx_aB",
        ),
        (task(changed(x=10**400)), "a rectangle needs x, y"),
        (task(changed(rotation=None)), "a rectangle needs x, y"),
        (task(changed(points=[[1]])), "a polygon points"),
        (task(changed(points=[[1, 1], [9, 9]], rotation="x")), "a rectangle needs x, y"),
        (task(changed(rotation=float("inf"))), "a rectangle needs x, y"),
        (task(changed(rectanglelabels=[])), "a region needs a label"),
        (task(changed(image_rotation=90)), "the image was turned in Label Studio; turn the file itself"),
    ],
)
def test_wrong_tasks_are_named(read, wrong, said):
    with pytest.raises(InputError) as caught:
        read(wrong)
    assert said in str(caught.value)


def test_what_is_no_list_of_tasks_is_named(read, tmp_path):
    with pytest.raises(InputError, match="is no list of tasks; export as JSON or JSON-MIN"):
        read(3)
    (tmp_path / "x.json").write_text("[")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_label_studio(tmp_path / "x.json", tmp_path)


def test_an_image_that_several_tasks_have_is_one(tmp_path):
    path = label_studio(tmp_path) / "project-3-at-2024-05-01.json"
    path.write_text(json.dumps(json.loads(path.read_text()) * 2))
    found = read_label_studio(path, tmp_path)
    assert len(found.images) == len(OBJECTS)
    assert len(found.images[0].things) == 2 * len(OBJECTS["a"])
