"""CVAT's XML: boxes, turned ones and polygons, what is left out, and what is refused."""

import numpy as np
import pytest
from exported_formats import cvat_images, write_images

from focal_det.errors import InputError
from focal_det.formats.exporters.cvat import read_cvat


@pytest.fixture
def read(tmp_path):
    def read_shapes(shapes):
        write_images(tmp_path, ["a"])
        image = f'<image id="0" name="a.png" width="64" height="48">{shapes}</image>'
        (tmp_path / "a.xml").write_text(f"<annotations>{image}</annotations>")
        return read_cvat(tmp_path / "a.xml", tmp_path)

    return read_shapes


def box(**more):
    return (
        "<box "
        + " ".join(
            f'{k}="{v}"' for k, v in ({"label": "cat", "xtl": 10, "ytl": 20, "xbr": 30, "ybr": 24} | more).items()
        )
        + "/>"
    )


def test_a_turned_box_becomes_the_upright_one_around_it(read):
    found = read(box(rotation=90))
    # 20 x 4 around (20, 22), turned by a quarter: 4 x 20 around the same centre
    assert np.allclose(found.images[0].things[0].box, (18, 12, 4, 20))
    assert "1 turned boxes were replaced by the upright boxes around them: a.png box 1" in found.notes[0]


def test_polygons_become_boxes_and_other_shapes_are_counted(read):
    found = read(
        '<polygon label="cat" points="1.5,2;4,9;3,1"/><mask label="cat"/><points label="cat"/><tag label="x"/>'
    )
    assert [thing.box for thing in found.images[0].things] == [(1.5, 1, 2.5, 8)]
    assert [note.partition(": ")[2] for note in found.notes] == [
        "1 polygons were replaced by their boxes: a.png polygon 1",
        "1 shapes are neither boxes nor polygons but of kind mask, and were left out: a.png mask 2",
        "1 shapes are neither boxes nor polygons but of kind points, and were left out: a.png points 3",
    ]


def test_labels_are_classes_though_they_have_no_object(tmp_path):
    path = cvat_images(tmp_path) / "annotations.xml"
    path.write_text(path.read_text().replace("<labels>", "<labels><label><name>wolf</name></label>"))
    assert read_cvat(path, tmp_path).declared == ("wolf", "cat", "dog")


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (box(xtl="x"), "1 in 1 annotations: a box needs xtl, ytl, xbr, ybr, a polygon points: a.png box 1"),
        ('<box label="cat"/>', "a box needs xtl"),
        (box(rotation="x"), "a box needs xtl"),
        ('<polygon label="cat" points="1;2"/>', "a polygon points: a.png polygon 1"),
        (box(label=" "), "a shape needs a label: a.png box 1"),
    ],
)
def test_broken_shapes_are_named(read, shapes, said):
    with pytest.raises(InputError) as caught:
        read(shapes)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotations><track/></annotations>", "has tracks of a video; export as 'CVAT for images 1.1', with images"),
        ("<annotations/>", "has no <image>"),
        ("<annotations>", "cannot be read as XML"),
        ('<!DOCTYPE x [<!ENTITY a "aa">]><annotations>&a;</annotations>', "it has a <!DOCTYPE>, which is refused"),
        ('<?xml version="1.0" encoding="nonsense"?><annotations/>', "cannot be read as XML"),
    ],
)
def test_what_is_no_export_of_images(tmp_path, text, said):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_cvat(tmp_path / "a.xml", tmp_path)
    assert said in str(caught.value)


def test_a_rotation_that_is_no_angle_gives_a_box_that_the_checks_refuse(read):
    assert not np.isfinite(read(box(rotation="inf")).images[0].things[0].box).any()


def test_an_image_that_is_annotated_twice_is_one_and_said(read):
    found = read(box() + '</image><image id="1" name="./a.png" width="64" height="48">' + box(label="dog"))
    assert [[thing.name for thing in image.things] for image in found.images] == [["cat", "dog"]]
    assert found.notes[0].endswith("1 images are annotated several times, and their objects were joined: a.png")
