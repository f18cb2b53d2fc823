"""LabelMe's files: shapes that become boxes, those that do not, and how the image of a file is found."""

import json

import pytest
from exported_formats import OBJECTS, labelme, write_images

from focal_det.errors import InputError
from focal_det.formats.exporters.labelme import read_labelme


def change(folder, name="a", **fields):
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def shape(kind, *points, label="cat"):
    return {"label": label, "points": points, "shape_type": kind}


def test_shapes_become_boxes_or_are_counted(tmp_path):
    folder = labelme(tmp_path)
    shapes = [
        shape("polygon", [3, 4], [10, 2], [5, 20]),
        shape("circle", [30, 20], [33, 24]),  # the centre, and a point at a distance of 5
        shape("rectangle", [30, 40], [10, 20]),  # drawn from the lower right corner
        shape("point", [3, 4]),
        shape("mask", [3, 4], [10, 20]),
        shape("rotation", [3, 10], [10, 3], [17, 10], [10, 17]),
    ]
    change(folder, shapes=shapes)
    found = read_labelme(folder, folder)
    boxes = [(3, 2, 7, 18), (25, 15, 10, 10), (10, 20, 20, 20), (3, 4, 7, 16), (3, 3, 14, 14)]
    assert [thing.box for thing in found.images[0].things] == boxes
    assert found.notes == [
        f"{folder}: 1 polygons were replaced by their boxes: a.json shape 1",
        f"{folder}: 1 circles were replaced by their boxes: a.json shape 2",
        f"{folder}: 1 shapes are points, which have no box, and were left out: a.json shape 4",
        f"{folder}: 1 masks were replaced by their boxes: a.json shape 5",
        f"{folder}: 1 turned rectangles were replaced by their boxes: a.json shape 6",
    ]


def test_an_image_is_found_by_its_path_or_by_the_name_of_its_file(tmp_path):
    folder = labelme(tmp_path / "labels")
    for path in (*folder.glob("*.png"),):
        path.unlink()
    write_images(tmp_path / "images")
    change(folder, "a", imagePath="..\\images\\a.png")
    change(folder, "b", imagePath="C:\\work\\before\\it\\was\\renamed.png")
    found = read_labelme(folder, tmp_path)
    assert [image.file_name for image in found.images] == [f"images/{name}.png" for name in OBJECTS]


def test_an_image_that_is_in_its_file_alone_is_named(tmp_path):
    folder = labelme(tmp_path)
    change(folder, imageData="iVBORw0KGgo=")
    assert len(read_labelme(folder, folder).images) == 4
    (folder / "a.png").unlink()
    with pytest.raises(
        InputError, match=r"1 in 4 annotations: its image is in the file alone, as imageData; .*a\.json"
    ):
        read_labelme(folder, folder)


def test_spaces_around_a_label_are_no_part_of_it(tmp_path):
    folder = labelme(tmp_path)
    change(folder, shapes=[shape("rectangle", [1, 2], [3, 4], label=" cat\n")])
    assert read_labelme(folder, folder).class_names == {"cat", "dog"}


def test_images_without_a_file_and_other_files_are_named(tmp_path):
    folder = labelme(tmp_path)
    write_images(tmp_path, ["z"])
    (tmp_path / "config.json").write_text("{}")
    notes = "\n".join(read_labelme(folder, folder).notes)
    assert "1 images have no JSON file, so they were left out: z.png" in notes
    assert 'JSON files have no "shapes", so they are not LabelMe\'s and were left out: config.json' in notes


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (
            [shape("rectangle", [1, 2])],
            '1 in 4 annotations: a shape needs "points", two or more [x, y]; draw it anew: a.json shape 1',
        ),
        ([shape("rectangle", [1, 2], ["x", 4])], 'a shape needs "points"'),
        ([{"label": "cat", "points": None}], 'a shape needs "points"'),
        ([shape("rectangle", [1, 2], [3, 4], label=" ")], 'a shape needs a "label"; add its class: a.json shape 1'),
        ([3], 'a shape needs a "label"'),
    ],
)
def test_broken_shapes_are_named(tmp_path, shapes, said):
    folder = labelme(tmp_path)
    change(folder, shapes=shapes)
    with pytest.raises(InputError) as caught:
        read_labelme(folder, folder)
    assert said in str(caught.value)


def test_what_is_no_json_is_named(tmp_path):
    folder = labelme(tmp_path)
    (folder / "b.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot be read as JSON; correct the file or remove it: b\.json"):
        read_labelme(folder, folder)
