"""Records as people's functions return them: converted like Detectron2, or refused with image, place and fix."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.structures import BoxMode

from focal_det.data.records import as_coco, read_difficult, records_of, with_image_ids
from focal_det.errors import InputError

pytestmark = pytest.mark.detectron2


def box(*numbers, mode=BoxMode.XYXY_ABS, label=0, **more):
    return {"bbox": list(numbers), "bbox_mode": mode, "category_id": label, **more}


def records():
    """Two images in two folders, of 64 x 48 px."""
    size = {"height": 48, "width": 64}
    return [
        {"file_name": "data/a/1.jpg", "image_id": "one", **size, "annotations": [box(1, 2, 11, 22, iscrowd=1)]},
        {"file_name": "data/b/2.jpg", "image_id": "two", **size, "annotations": [box(1, 2, 3.5, 4), box(5, 6, 7, 8)]},
    ]


@pytest.fixture
def register():
    """Registers what a function returns under the name "mine"; removes it in the end."""

    def make(function, **metadata):
        DatasetCatalog.register("mine", function)
        MetadataCatalog.get("mine").set(**metadata)

    yield make
    DatasetCatalog.pop("mine", None)
    MetadataCatalog.pop("mine", None)


def converted(found, *, use="val", names=("cat", "dog"), ids=(0, 1), difficult=None):
    return as_coco("mine", found, names, ids, use, difficult or {})


def test_records_become_what_detectron2_makes_of_them(register):
    found = records()
    found[1]["annotations"] = [
        box(1, 2, 3, 4, mode=BoxMode.XYWH_ABS, label=1),
        box(10, 20, 30, 25, segmentation=[[10.0, 20.0, 30.0, 20.0, 30.0, 25.0]]),  # half of its box
        {"bbox": np.array([1.0, 2.0, 3.0, 5.0]), "bbox_mode": BoxMode.XYXY_ABS, "category_id": np.int64(1)},
    ]
    register(lambda: found, thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={7: 0, 3: 1})
    expected = convert_to_coco_dict("mine")
    result = converted(found, ids=(7, 3))
    ours = with_image_ids(result.coco, result.image_ids)
    assert ours["categories"] == expected["categories"]
    for ours_row, row in zip(ours["annotations"], expected["annotations"], strict=True):
        area = ours_row["area"] or ours_row["bbox"][2] * ours_row["bbox"][3]
        assert (area, ours_row["iscrowd"]) == (row["area"], row["iscrowd"])
        assert all(ours_row[key] == row[key] for key in ("image_id", "category_id", "bbox"))
    assert [image["id"] for image in ours["images"]] == ["one", "two"]
    assert json.dumps(ours)


def test_names_are_relative_to_the_folder_of_all_so_that_the_set_may_be_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = converted(records())
    assert result.image_dir == tmp_path / "data"
    assert [image["file_name"] for image in result.coco["images"]] == ["a/1.jpg", "b/2.jpg"]
    assert [image["id"] for image in result.coco["images"]] == [0, 1]  # in the order of training
    absolute = [{**record, "file_name": str(tmp_path / record["file_name"])} for record in records()]
    assert converted(absolute).coco == result.coco


def change(image, annotation=None, /, **changes):
    found = records()
    part = found[image] if annotation is None else found[image]["annotations"][annotation]
    for key, value in changes.items():
        part[key] = value
        if value is None:
            del part[key]
    return found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (change(1, height=None), "1 of 2 records are without \"height\", the image's number of pixels: 'data/b/2.jpg'"),
        (change(1, width=64.5), '1 of 2 records are without "width"'),
        (change(0, file_name=None), '1 of 2 records are without "file_name", the path of the image: 0'),
        (change(1, image_id=None), '1 of 2 records are without "image_id", which evaluation needs'),
        (change(1, image_id=np.int64(3)), "an int (not NumPy's) or a str of their own: 'data/b/2.jpg'"),
        (change(1, image_id="one"), "image_id one is that of several records; give each its own"),
        (change(1, image_id=1), 'some values of "image_id" are an int, others a str; make all the same'),
        (["a.jpg", *records()], "1 of 3 records are not dicts: record 0"),
        (change(1, annotations="x"), '1 of 2 records are without "annotations", a list'),
        (
            change(1, 1, category_id=2),
            "1 of 3 annotations have a category_id that is not a class; the labels of the 2 in thing_classes are 0 to 1"
            ": annotation 1 of 'data/b/2.jpg' category_id=2",
        ),
        (change(1, 1, category_id=None), "category_id=None"),
        (change(1, 1, bbox=[1, 2, 3]), '1 of 3 annotations have a "bbox" that is not four numbers'),
        (change(1, 1, bbox=None), "annotation 1 of 'data/b/2.jpg' bbox=None"),
        (change(1, 1, bbox=["1", "2", "3", "4"]), "bbox=['1', '2', '3', '4']"),  # torch makes no tensor of either
        (change(1, 1, bbox=[10**400, 2, 3, 4]), "annotation 1 of 'data/b/2.jpg' bbox=[1000"),
        (change(1, 1, iscrowd="no"), '1 of 3 annotations have an "iscrowd" that is neither 0 nor 1'),
        (change(1, 1, iscrowd=np.array([0, 1])), "annotation 1 of 'data/b/2.jpg' iscrowd=array([0, 1])"),
        (change(1, 1, bbox_mode=None), 'annotations are without "bbox_mode", such as BoxMode.XYXY_ABS'),
        (
            change(1, 1, bbox_mode=1),
            "a bbox_mode that is not one of BoxMode's: annotation 1 of 'data/b/2.jpg' bbox_mode=",
        ),
        (
            change(1, 1, bbox_mode=BoxMode.XYXY_REL),
            "have boxes relative to the image's size, which Detectron2",
        ),
        (change(1, 1, bbox=[5, 5, 2, 2, 30], bbox_mode=BoxMode.XYWHA_ABS), "have rotated boxes; this detector finds"),
    ],
)
def test_what_would_fail_late_is_named(found, message):
    with pytest.raises(InputError) as error:
        converted(found)
    assert str(error.value).startswith('data set "mine": ')
    assert message in str(error.value)
    assert len(error.value.problems) == 1


def test_a_training_needs_annotations_and_no_ids_and_an_evaluation_the_other_way_round():
    found = [{key: value for key, value in record.items() if key != "image_id"} for record in records()]
    assert converted(found, use="train").image_ids == [0, 1]
    found = [{key: value for key, value in record.items() if key != "annotations"} for record in records()]
    assert not converted(found).is_annotated
    with pytest.raises(InputError, match='2 of 2 records are without "annotations"'):
        converted(found, use="train")


def test_a_bare_zero_is_the_mode_that_it_is_for_detectron2_and_a_damaged_mask_hurts_nobody():
    found = change(1, 1, bbox_mode=0, segmentation=[[1.0, 2.0]])
    assert converted(found).coco["annotations"][2]["bbox"] == [5, 6, 2, 2]
    assert converted(found).coco["annotations"][2]["area"] is None


def test_labels_of_any_number_s_kind_are_taken():
    for label in (1, 1.0, np.int64(1), np.float32(1)):
        assert converted(change(1, 1, category_id=label), ids=(7, 3)).coco["annotations"][2]["category_id"] == 3


def leaves():
    raise SystemExit(3)


def boom():
    raise KeyError("regions")


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(records())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (leaves, "its function raised SystemExit: 3; correct it"),
        (boom, "its function raised KeyError: 'regions'; correct it, or what it reads"),
        (lambda: [], "its function returned an empty list; return a list of one dict for each image"),
        (lambda: iter(records()), "its function returned list_iterator, not a list"),
        (Stream, "its function returned Stream, not a list"),
    ],
)
def test_a_function_that_gives_no_records_is_named(register, function, message):
    register(function)
    with pytest.raises(InputError) as error:
        records_of("mine", "val")
    assert f'data set "mine": {message}' in str(error.value)


def test_a_stream_can_be_trained_on(register):
    register(Stream)
    assert records_of("mine", "train") is None


# --- Pascal VOC's difficult objects -----------------------------------------------------------------------------------

WHOLE = "<pose>Left</pose><truncated>0</truncated><difficult>{}</difficult>"


@pytest.fixture
def voc(write_voc, register):
    """Writes and registers a folder of VOC's; returns what is read of it."""

    def make(annotations, **changes):
        folder = write_voc(annotations, test=("a", "b"))
        register_pascal_voc("mine", str(folder), "test", 2007, ["cat", "dog"])
        metadata = {**MetadataCatalog.get("mine").as_dict(), **changes}
        return read_difficult("mine", {k: v for k, v in metadata.items() if v is not None}, records_of("mine", "val"))

    yield make
    DatasetCatalog.pop("mine", None)
    MetadataCatalog.pop("mine", None)


SOUND = {"a": [("cat", 1, 1, 9, 9, WHOLE.format(1)), ("dog", 1, 1, 9, 9, WHOLE.format(0))], "b": []}


def test_difficult_objects_are_ignored_where_they_are_evaluated_on(voc):
    found = voc(SOUND)
    assert found == {"a": [True, False], "b": []}
    rows = converted(records_of("mine", "val"), difficult=found).coco["annotations"]
    assert [row["iscrowd"] for row in rows] == [1, 0]
    assert rows[0]["bbox"] == [0, 0, 9, 9]


@pytest.mark.parametrize(
    ("annotations", "changes", "message"),
    [
        (
            SOUND,
            {"year": None},
            "evaluator_type is pascal_voc, whose evaluator needs year in the metadata; register",
        ),
        (SOUND, {"year": 2010}, "year is 2010, and VOC's rules are those of 2007 or 2012"),
        (SOUND, {"split": "val"}, "val.txt cannot be read"),
        (
            {**SOUND, "b": [("cat", 1, 1, 9, 9)]},
            {},
            "1 of 2 annotations of {}/ImageSets/Main/test.txt cannot be scored: 'b.xml' (",
        ),
        (
            {**SOUND, "b": [("cat", 1.5, 1, 9, 9, WHOLE.format(0))]},
            {},
            "corners that are whole numbers, or register",
        ),
    ],
)
def test_what_vocs_evaluator_would_trip_over_is_named(tmp_path, voc, annotations, changes, message):
    with pytest.raises(InputError) as error:
        voc(annotations, **changes)
    assert message.format(tmp_path / "voc") in str(error.value)


def test_an_image_that_the_split_lacks_is_named(write_voc):
    folder = write_voc(SOUND, test=("a", "b"))
    metadata = {"dirname": str(folder), "split": "test", "year": 2012}
    with pytest.raises(InputError, match=r"test.txt lacks image 'c', which the function returns; add them, or"):
        read_difficult("mine", metadata, [{"image_id": "c"}, {"image_id": "a"}])
