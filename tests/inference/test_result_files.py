"""Files of detections: read back by this project's own readers, with names that no file system minds."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from full_disk import room_for

from focal_det.formats.coco import read_coco
from focal_det.formats.exporters.csv_table import read_csv
from focal_det.formats.exporters.yolo import read_yolo
from focal_det.inference import result_files
from focal_det.inference.detections import Detections
from focal_det.inference.inputs import Frame, InputFile
from focal_det.inference.result_files import (
    CocoWriter,
    CropWriter,
    CsvWriter,
    UnwrittenError,
    YoloWriter,
    folder_names,
)

NAMES, IDS = ["traffic light", "yes", "a,b: #ü/.."], [3, 7, 2]
# In the float32 that detectors give, whose digits have to survive; the last one reaches beyond the image.
BOXES = np.array([[10.1, 5.2, 30.3, 25.4], [0, 0, 1 / 3, 2 / 3], [40, 5, 96.5, 70]], np.float32)
FOUND = Detections(BOXES, np.float32([0.9, 0.123456789, 0.1]), np.array([1, 0, 2]), tuple(NAMES), tuple(IDS))
PIXELS = np.arange(64 * 96 * 3, dtype=np.uint32).reshape(64, 96, 3).astype(np.uint8)


def frames(folder, *names):
    """An image of each name, which lies in the folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", PIXELS)[1].tobytes())
        yield Frame(InputFile(path, name), name, PIXELS)


def write(writer, given, found=FOUND):
    for frame in given:
        writer.add(frame, frame.image, found)
    return writer.close()


def clipped(boxes):
    return np.clip(boxes.astype(np.float64), 0, [96, 64, 96, 64])


def test_coco_is_an_annotation_file_also_where_the_rows_do_not_fit_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(result_files, "_IN_MEMORY", 1)
    assert write(CocoWriter(tmp_path, NAMES, IDS), frames(tmp_path, "a.png", "x/b.png")) == []
    coco = json.loads((tmp_path / "detections.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a.png", "x/b.png"]
    assert [a["id"] for a in coco["annotations"]] == list(range(1, 7))
    assert [a["category_id"] for a in coco["annotations"]] == [7, 3, 2] * 2
    assert read_coco(tmp_path / "detections.json", tmp_path).class_names == ["a,b: #ü/..", "traffic light", "yes"]


def test_csv_is_read_back_to_the_last_digit(tmp_path):
    first, second = frames(tmp_path, "a.png", 'x/"b",1.png')
    writer = CsvWriter(tmp_path)
    writer.add(first, PIXELS, FOUND)
    writer.add(second, PIXELS, FOUND[:0])
    assert list(tmp_path.glob("detections.csv")) == []  # whole or not at all
    writer.close()
    read = read_csv(tmp_path / "detections.csv", tmp_path)
    assert [image.file_name for image in read.images] == ["a.png", 'x/"b",1.png']
    assert [thing.name for thing in read.images[0].things] == [NAMES[1], NAMES[0], NAMES[2]]
    corners = np.array([thing.box for thing in read.images[0].things]) + [(0, 0, *box[:2]) for box in BOXES.tolist()]
    assert (corners.astype(np.float32) == BOXES).all()
    assert read.images[1].things == []
    rows = list(csv.DictReader((tmp_path / "detections.csv").open(encoding="utf-8")))
    assert [np.float32(row["score"]) for row in rows[:3]] == FOUND.scores.tolist()
    assert {(row["width"], row["height"]) for row in rows} == {("96", "64")}
    assert [row["class_id"] for row in rows] == ["1", "0", "2", ""]


def test_a_table_that_the_disk_has_no_room_for_is_named_and_not_left_cut(tmp_path):
    writer = CsvWriter(tmp_path)
    (tmp_path / "detections.csv").write_text("before")
    (frame,) = frames(tmp_path, "a.png")
    with room_for(20_000), pytest.raises(OSError, match="File too large") as raised:
        write(writer, [frame] * 1000)
    assert raised.value.filename == str(tmp_path / "detections.csv")
    assert writer.close() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "detections.csv"]
    assert (tmp_path / "detections.csv").read_text() == "before"


def test_csv_stays_readable_beside_a_name_that_is_not_utf8(tmp_path):
    write(CsvWriter(tmp_path), [Frame(InputFile(tmp_path / "a", "b\udcff.png"), "b\udcff.png", PIXELS)])
    assert len(read_csv(tmp_path / "detections.csv", tmp_path).images) == 1


def test_nothing_is_written_without_an_image(tmp_path):
    for writer in (CocoWriter(tmp_path, NAMES, IDS), CsvWriter(tmp_path), YoloWriter(tmp_path, NAMES)):
        assert writer.close() == []
    assert list(tmp_path.iterdir()) == []


def test_yolo_is_read_back(tmp_path):
    names = ["a.png", "a.jpg", "x/images/a.png", "x/images_/a.png", ".hidden/.b.png", "c.xyz"]
    write(YoloWriter(tmp_path / "out", NAMES), frames(tmp_path / "in", *names))
    video = InputFile(tmp_path / "clip.mp4", "clip.mp4")
    writer = YoloWriter(tmp_path / "video", NAMES)
    write(writer, [Frame(video, f"clip.mp4#{n}", PIXELS, n) for n in (0, 12)])
    for out, number in (("out", 6), ("video", 2)):
        read = read_yolo(tmp_path / out / "yolo" / "data.yaml", "train")
        assert (read.class_names, len(read.images), len(read.notes)) == (set(NAMES), number, 1)
        for image in read.images:
            assert [thing.name for thing in image.things] == [NAMES[1], NAMES[0], NAMES[2]]
            left, top, *sizes = (np.array([t.box for t in image.things]) * [96, 64, 96, 64]).T
            back = np.stack([left, top, left + sizes[0], top + sizes[1]], axis=1)
            np.testing.assert_allclose(back, clipped(BOXES), atol=1e-5)
            assert cv2.imread(str(tmp_path / out / "yolo" / image.file_name)).shape == PIXELS.shape
    images = {str(p.relative_to(tmp_path)) for p in (tmp_path / "video").rglob("*.jpg")}
    assert images == {f"video/yolo/images/clip.mp4/{n}.jpg" for n in ("000000", "000012")}
    assert (tmp_path / "out" / "yolo" / "images" / "a.png").resolve() == tmp_path / "in" / "a.png"  # not copied


def test_yolo_without_objects_is_an_empty_file_and_boxes_without_area_are_none(tmp_path):
    flat = Detections(np.float32([[100, 5, 120, 9]]), np.float32([0.5]), np.array([0]), tuple(NAMES))
    write(YoloWriter(tmp_path, NAMES), frames(tmp_path, "a.png"), flat)
    assert (tmp_path / "yolo" / "labels" / "a.txt").read_text() == ""


def test_crops_are_the_objects_under_their_class_image_number_and_score(tmp_path):
    given = [*frames(tmp_path, "a.png", "x/a.png"), Frame(InputFile(tmp_path / "v.mp4", "v.mp4"), "v.mp4#7", PIXELS, 7)]
    assert write(CropWriter(tmp_path, NAMES), given) == []
    crops = {str(p.relative_to(tmp_path / "crops")): cv2.imread(str(p)).shape for p in tmp_path.rglob("*.jpg")}
    expected = {}
    for name in ("a.png", "x/a.png", "v.mp4/000007"):
        expected |= {f"yes/{name}_001_0.90.jpg": (21, 21, 3), f"traffic light/{name}_002_0.12.jpg": (1, 1, 3)}
        expected |= {f"a_b_ _ü___/{name}_003_0.10.jpg": (59, 56, 3)}
    assert crops == expected


def test_the_number_of_crops_is_bounded_and_what_is_left_out_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(result_files, "_MOST_CROPS", 4)
    (note,) = write(CropWriter(tmp_path, NAMES), frames(tmp_path, "a.png", "b.png"))
    assert note.startswith("2 crops beyond the first 4 were not written; ")
    assert len(list(tmp_path.rglob("*.jpg"))) == 4


def test_a_crop_that_cannot_be_written_is_named_as_such(tmp_path):
    long = "b" * 250 + ".png"
    with pytest.raises(UnwrittenError, match=r"_001_0\.90\.jpg: the crop cannot be written \(File name too long\)"):
        CropWriter(tmp_path, NAMES).add(Frame(InputFile(Path(long), long), long, PIXELS), PIXELS, FOUND)


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["dog", "Dog", "dog_1"], ["dog", "Dog_1", "dog_1_2"]),
        (["../../etc", "", "...", "\udcff", "a\nb"], ["______etc", "class", "___", "_", "a_b"]),
        (["e\u0301", "\u00e9"], ["é", "é_1"]),
        (["x" * 300, "x" * 301], ["x" * 48, "x" * 48 + "_1"]),
        (["犬", "con.", "a b"], ["犬", "con_", "a b"]),
    ],
)
def test_folders_of_classes_are_safe_and_differ(names, folders):
    assert folder_names(names) == folders


def test_crops_of_a_class_that_cannot_be_written_are_counted_and_the_others_are_there(tmp_path):
    (tmp_path / "crops").mkdir()
    (tmp_path / "crops" / "yes").write_text("a file where the best object's folder must be")
    with pytest.raises(UnwrittenError, match=r"yes/a\.png_001_0\.90\.jpg: the crop cannot be written") as error:
        write(CropWriter(tmp_path, NAMES), frames(tmp_path, "a.png"), FOUND[[0, 0, 1, 2]])
    assert error.value.count == 2
    assert sorted(path.name for path in tmp_path.rglob("*.jpg")) == ["a.png_003_0.12.jpg", "a.png_004_0.10.jpg"]


def test_an_image_whose_labels_cannot_be_written_is_not_in_the_data_set_as_one_without_objects(tmp_path):
    (tmp_path / "yolo" / "labels" / "a.txt").mkdir(parents=True)
    with pytest.raises(UnwrittenError, match="the image for YOLO cannot be written"):
        write(YoloWriter(tmp_path, NAMES), frames(tmp_path, "a.png"))
    assert not list((tmp_path / "yolo" / "images").rglob("*.png"))
