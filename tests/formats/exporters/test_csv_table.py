"""CSV: columns by their names or by their order, images without objects, and every wrong line."""

import pytest
from exported_formats import open_images, plain_csv, write_images

from focal_det.errors import InputError
from focal_det.formats.exporters.csv_table import columns_of, read_csv


@pytest.mark.parametrize(
    ("line", "are_named", "are_shares"),
    [
        ("filename,width,height,class,xmin,ymin,xmax,ymax", True, False),
        ("ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded", True, True),
        ("image;x1;y1;x2;y2;label", True, False),
        ("image,xmin,ymin,xmax,ymax,label", True, False),
        ("a.jpg,1,2,3.5,4,cat", False, False),
        ("a.jpg,,,,,", False, False),
    ],
)
def test_tables_of_boxes_are_known_by_their_first_line(line, are_named, are_shares):
    columns = columns_of(line)
    assert (columns.are_named, columns.are_shares) == (are_named, are_shares)
    assert {"image", "x1", "y1", "x2", "y2", "class"} <= columns.places.keys()


@pytest.mark.parametrize(
    "line", ["", "/m/01,Cat", "a,b,c,d,e,f", "image,label", "a.jpg,1,2,3,4", "a.jpg,1,2,nan,4,cat"]
)
def test_other_tables_are_none(line):
    assert columns_of(line) is None


def test_groups_of_open_images_are_ignored_and_classes_have_their_names(tmp_path):
    path = open_images(tmp_path) / "train-annotations-bbox.csv"
    path.write_text(path.read_text().replace("0,0,0\n", "0,0,1\n", 1))
    things = read_csv(path, tmp_path).images[0].things
    assert [(thing.name, thing.is_ignored) for thing in things] == [("cat", True), ("dog", False)]
    (tmp_path / "class-descriptions-boxable.csv").unlink()
    assert read_csv(path, tmp_path).class_names == {"/m/cat", "/m/dog"}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("Image,Label,Left,Top,Width,Height\na.png,cat,1,2,30,40", None),
        ("file,x,y,w,h,width,height,class\na.png,1,2,30,40,64,48,cat", (64, 48)),
        ("file,x1,y1,x2,y2,width,height,class\na.png,1,2,31,42,64,48,cat", (64, 48)),
    ],
)
def test_width_and_height_are_the_box_s_where_it_has_no_second_corner(tmp_path, text, size):
    write_images(tmp_path, ["a"])
    (tmp_path / "x.csv").write_text(text)
    (image,) = read_csv(tmp_path / "x.csv", tmp_path).images
    assert (image.things[0].box, image.size) == ((1, 2, 30, 40), size)


def test_quotes_after_a_space_are_none_of_the_class(tmp_path):
    write_images(tmp_path, ["a"])
    (tmp_path / "x.csv").write_text('a.png, 1, 2, 5, 7, "cat, black"\n')
    (image,) = read_csv(tmp_path / "x.csv", tmp_path).images
    assert [thing.name for thing in image.things] == ["cat, black"]


def test_lines_that_repeat_a_box_are_left_out_and_named(tmp_path):
    write_images(tmp_path, ["a"])
    lines = ["a.png,1,2,5,7,cat", "a.png,1,2,5,7,dog", "a.png,1.0,2,5,7,cat", "a.png,1,2,5,7.5,cat"]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    found = read_csv(tmp_path / "x.csv", tmp_path)
    assert [thing.place for thing in found.images[0].things] == ["line 1", "line 2", "line 4"]
    said = "1 lines repeat a box of the same class and image, and were left out: line 3"
    assert found.notes == [f"{tmp_path}/x.csv: {said}"]


def test_quotes_and_other_delimiters(tmp_path):
    write_images(tmp_path, ["a"])
    (tmp_path / "x.csv").write_text('image;x1;y1;x2;y2;label\n"a.png";1;2;5;7;"cat; black"\n\n')
    (image,) = read_csv(tmp_path / "x.csv", tmp_path).images
    assert [(thing.name, thing.box, thing.place) for thing in image.things] == [("cat; black", (1, 2, 4, 5), "line 2")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            "a.png,1,2,x,4,cat",
            "1 in 5 annotations: a box needs four numbers and a class: line 6 (['a.png', '1', '2', 'x'",
        ),
        ("a.png,1,2,3,4,", "a box needs four numbers and a class"),
        ("a.png,,,3,4,cat", "a box needs four numbers and a class"),
        ("a.png,1,2", "a box needs four numbers and a class"),
        ("a.png,1,2,1e999,4,cat", "a box needs four numbers"),
        (",1,2,3,4,cat", "a line needs the name of an image: line 6"),
        ("x" * 140_000, "boxes.csv: cannot be read as CSV from line 6 on (field larger than field limit"),
    ],
)
def test_wrong_lines_are_named(tmp_path, row, said):
    path = plain_csv(tmp_path) / "boxes.csv"
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(InputError) as caught:
        read_csv(path, tmp_path)
    assert said in str(caught.value)


def test_what_is_no_table_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n")
    with pytest.raises(InputError, match=r"a\.csv: its first line is no header and no box: a,b; write image,x1,y1"):
        read_csv(tmp_path / "a.csv", tmp_path)
    (tmp_path / "a.csv").write_bytes(b"\xff")
    with pytest.raises(InputError, match="not a text file in UTF-8"):
        read_csv(tmp_path / "a.csv", tmp_path)


def test_quotes_that_do_not_end_are_named(tmp_path):
    (tmp_path / "a.csv").write_text('a.png,1,2,3,4,cat\n"a.png,1,2,3,4,cat\n' + "a.png,1,2,3,4,cat\n" * 8000)
    with pytest.raises(
        InputError, match=r"a\.csv: cannot be read as CSV from line \d+ on .*; correct that line or the"
    ):
        read_csv(tmp_path / "a.csv", tmp_path)


def test_names_of_two_images_of_which_one_is_there_are_not_joined(tmp_path):
    write_images(tmp_path, ["a"])
    (tmp_path / "x.csv").write_text("one/a.png,1,2,5,7,cat\ntwo/a.png,1,2,5,7,dog\n")
    with pytest.raises(
        InputError, match=r"several names fit one file alone; .*: 'one/a\.png', 'two/a\.png' \('a\.png'\)"
    ):
        read_csv(tmp_path / "x.csv", tmp_path)
