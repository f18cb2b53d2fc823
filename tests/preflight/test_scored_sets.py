"""What cannot be scored is refused before the start, and the best model is chosen by a set that can."""

import importlib.util
import json

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_lvis_instances
from detectron2.structures import BoxMode

from focal_det.cli.train import parse_arguments
from focal_det.config.load import load_config
from focal_det.data.catalog import JsonDataset
from focal_det.errors import InputError
from focal_det.formats.coco import CocoFile
from focal_det.preflight.datasets import read_datasets
from focal_det.preflight.named_sets import read_named_set
from focal_det.preflight.scored_sets import ap_set, check_scoring, refusal

pytestmark = pytest.mark.detectron2


@pytest.fixture
def register():
    """Registers a set of one image without a file, under the name "mine"."""

    def make(**metadata):
        DatasetCatalog.register("mine", lambda: [{}])
        MetadataCatalog.get("mine").set(**metadata)

    yield make
    DatasetCatalog.pop("mine", None)
    MetadataCatalog.pop("mine", None)


@pytest.mark.parametrize("name", ["ade20k_sem_seg_val", "cityscapes_fine_instance_seg_val"])
def test_sets_whose_scores_need_more_than_boxes_are_refused(name):
    problem = refusal(name)
    assert problem.startswith(f'data set "{name}" cannot be evaluated on: its evaluator_type is "')
    assert problem.endswith('or register its boxes under another name with evaluator_type="coco"')
    words = ["--eval-only", "DATASETS.TEST", f"('{name}',)"]
    _, found = read_datasets(parse_arguments(words), load_config("", ["DATASETS.TEST", f"('{name}',)"]))
    assert found.errors == [problem]


@pytest.mark.parametrize("name", ["coco_2017_val", "coco_2017_val_panoptic", "voc_2007_test", "lvis_v1_val"])
def test_sets_of_boxes_are_not(name):
    assert refusal(name) is None


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", "x\n", "\udcff", "x\0", "ä" * 101])
def test_names_that_are_no_file_s_are_refused_where_files_are_named_after_them(name):
    DatasetCatalog.register(name, lambda: [{}])
    try:
        assert "cannot be evaluated on: in OUTPUT_DIR its name is that of a file and of a folder" in refusal(name)
    finally:
        DatasetCatalog.pop(name)


def test_an_lvis_set_needs_its_file(register):
    register(evaluator_type="lvis")
    assert refusal("mine") == 'data set "mine": evaluator_type "lvis" needs json_file and image_root in its metadata'


def test_a_set_to_evaluate_on_needs_the_names_of_its_classes(register):
    register()
    message = 'data set "mine": its metadata does not name its classes; add MetadataCatalog'
    with pytest.raises(InputError, match=message):
        read_named_set("mine", "val", images=False)
    remark = read_named_set("mine", "train", images=False).remark
    assert remark == "1 images, whose classes have no names, so not described"


def test_a_function_is_called_once_and_needs_an_object_to_train_on(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((48, 64, 3), np.uint8))
    record = {"file_name": str(tmp_path / "a.png"), "image_id": 1, "height": 48, "width": 64}
    box = {"bbox": [1, 2, 30, 40], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    calls = []
    for annotations, words in (([box], []), ([], ["no box to train on"]), ([{**box, "iscrowd": 1}], ["no box to"])):
        calls.clear()
        DatasetCatalog.register("mine", lambda a=annotations: calls.append(1) or [{**record, "annotations": a}])
        MetadataCatalog.get("mine").set(thing_classes=["cat"])
        try:
            overrides = ["DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)"]
            _, found = read_datasets(parse_arguments(overrides), load_config("", overrides))
        finally:
            DatasetCatalog.pop("mine")
            MetadataCatalog.pop("mine")
        assert len(calls) == 1
        assert len(found.errors) == len(words)
        assert all(start in error for start, error in zip(words, found.errors, strict=True))


@pytest.mark.parametrize("ids", [{1: 0}, {1: 0, 2: 5}, {1: 0, 2: 1, 3: 1}, [0, 1]])
def test_each_class_needs_an_id(register, ids):
    register(thing_classes=["a", "b"], thing_dataset_id_to_contiguous_id=ids)
    message = (
        r"2 thing_classes and the thing_dataset_id_to_contiguous_id .*; it must give each of the labels from 0 to 1"
    )
    with pytest.raises(InputError, match=message):
        read_named_set("mine", "val", images=False)


def test_a_text_is_no_list_of_class_names(register):
    register(thing_classes="cat")
    with pytest.raises(InputError, match="its thing_classes are 'cat', not a list of names"):
        read_named_set("mine", "val", images=False)


def federated(**changes):
    image = {"id": 1, "neg_category_ids": [2], "not_exhaustive_category_ids": []}
    categories = [{"id": 1, "name": "cat", "frequency": "f"}, {"id": 2, "name": "mug", "frequency": "r"}]
    return {"images": [image], "annotations": [], "categories": categories, **changes}


@pytest.mark.parametrize(
    ("coco", "errors"),
    [
        (federated(), []),
        (federated(images=[{"id": 1}]), ["its images lack"]),
        (federated(categories=[{"id": 1, "name": "cat"}]), ['categories: 1 are without "frequency", "r", "c" or "f"']),
    ],
)
def test_what_lvis_evaluation_needs(coco, errors):
    files = {JsonDataset("mine", "", "", "", "lvis"): CocoFile(coco, [])}
    found = check_scoring(["mine"], files, 300)
    assert found.warnings == []
    assert len(found.errors) == len(errors)
    assert all(f'data set "mine": {start}' in error for error, start in zip(found.errors, errors, strict=True))
    assert check_scoring(["other"], files, 100).warnings == []  # one that is only trained on
    assert (
        "TEST.DETECTIONS_PER_IMAGE is 299; LVIS's results are of 300" in check_scoring(["mine"], files, 299).warnings[0]
    )


def test_without_the_package_lvis_its_installation_is_named(monkeypatch):
    files = {JsonDataset("mine", "", "", "", "lvis"): CocoFile(federated(), [])}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (error,) = check_scoring(["mine"], files, 300).errors
    assert error.startswith('data set "mine": LVIS\'s evaluation needs the package lvis; install it with: ')


def test_classes_that_vocs_mean_counts_as_zero_are_named():
    annotations = [{"category_id": 1, "iscrowd": 0}, {"category_id": 2, "iscrowd": 1}]
    files = {JsonDataset("mine", "", "", "", "pascal_voc"): CocoFile(federated(annotations=annotations), [])}
    (warning,) = check_scoring(["mine"], files, 100).warnings
    assert warning.startswith('data set "mine" has no objects of class mug: Pascal VOC\'s mean AP counts that as 0')


@pytest.mark.parametrize(
    ("unscored", "name", "start"),
    [
        ((), "a", None),
        (("b",), "a", None),
        (("a",), "b", "best model: by the AP on b, since a has"),
        (("a", "b"), "a", "best model: none is kept, since no test set has annotated objects"),
    ],
)
def test_the_best_model_is_chosen_by_the_first_set_that_can_be_scored(unscored, name, start):
    cfg = load_config("", ["DATASETS.TEST", "('a', 'b')"])
    chosen, notes = ap_set(cfg, unscored)
    assert chosen == name
    assert [line[: len(start or "")] for line in notes] == ([start] if start else [])


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"id": 1}, '1 of 1 annotations are without polygons in "segmentation", which Detectron2\'s reader of LVIS'),
        ({"segmentation": [[0, 0, 1, 1]]}, "are without an id of their own, 1 of 1 annotations are without polygons"),
    ],
)
def test_what_detectron2_fails_on_in_an_lvis_file_is_named(monkeypatch, tmp_path, annotation, message):
    pytest.importorskip("lvis")
    image = federated()["images"][0] | {"width": 9, "height": 9, "coco_url": "http://a/val2017/1.jpg"}
    row = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], **annotation}
    (tmp_path / "a.json").write_text(json.dumps(federated(images=[image], annotations=[row])))
    register_lvis_instances("lvis_v1_mine", {}, str(tmp_path / "a.json"), f"{tmp_path}/")
    register_lvis_instances("lvis_v1_other", {}, str(tmp_path / "a.json"), str(tmp_path))
    try:
        with pytest.raises(InputError) as error:
            read_named_set("lvis_v1_mine", "train", images=False)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(InputError, match="reader of LVIS files needs the package lvis; install it with: "):
            read_named_set("lvis_v1_mine", "train", images=False)
        monkeypatch.undo()
        with pytest.raises(InputError, match=r"Detectron2 appends train2017/\.\.\. to image_root as it is; register"):
            read_named_set("lvis_v1_other", "train", images=False)
    finally:
        for name in ("lvis_v1_mine", "lvis_v1_other"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    assert message in str(error.value)
