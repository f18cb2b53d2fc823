"""What stands beside a set's detections: where it is, and without annotations the file for COCO's server."""

import json
import os
import shutil
import stat
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from focal_det.data.catalog import JsonDataset, register_datasets, write_checked_copy
from focal_det.data.shapes import make_shapes, shapes_files
from focal_det.engine.submission import SubmissionEvaluator, submission_name
from focal_det.engine.trainer import Trainer


@pytest.fixture
def test_dev(tmp_path):
    """A set like test-dev: pictures and categories, but no annotations."""
    make_shapes("shapes_val_2_64px", tmp_path)
    annotation_file, images = shapes_files("shapes_val_2_64px", tmp_path)
    coco = json.loads(annotation_file.read_text())
    del coco["annotations"]
    info = tmp_path / "image_info_test-dev2017.json"
    info.write_text(json.dumps(coco))
    register_coco_instances("like_test-dev", {}, str(info), str(images))
    yield "like_test-dev"
    DatasetCatalog.remove("like_test-dev")
    MetadataCatalog.remove("like_test-dev")


def detections():
    instances = Instances((64, 64))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 11.0, 22.0]]))
    instances.scores = torch.tensor([0.75])
    instances.pred_classes = torch.tensor([1])
    return {"instances": instances}


def test_a_set_without_annotations_gives_the_servers_file(tiny_cfg, tmp_path, test_dev):
    DatasetCatalog.get(test_dev)
    cfg = tiny_cfg("OUTPUT_DIR", str(tmp_path / "table1e" / "depth_50 seed1"))
    evaluator = Trainer.build_evaluator(cfg, test_dev)
    evaluator.reset()
    evaluator.process([{"image_id": 1}, {"image_id": 2}], [detections(), detections()])
    assert evaluator.evaluate() == {}
    name = "detections_test-dev2017_table1e-depth-50-seed1_results"
    archive = tmp_path / "table1e" / "depth_50 seed1" / "inference" / test_dev / f"{name}.zip"
    with zipfile.ZipFile(archive) as submission:
        assert submission.namelist() == [f"{name}.json"]
        first = json.loads(submission.read(f"{name}.json"))[0]
    assert first == {"image_id": 1, "category_id": 2, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.75}


@pytest.fixture
def register():
    """Registers generated shapes in a folder as a user's own set; returns its annotation file and pictures."""
    names = []

    def make(folder, name="scored", given_as="mine.json"):
        make_shapes("shapes_val_2_64px", folder)
        files = shapes_files("shapes_val_2_64px", folder)
        if name in names:
            remove(name)
        register_coco_instances(name, {"given_as": str(folder / given_as)}, *map(str, files))
        DatasetCatalog.get(name)
        names.append(name)
        return files

    def remove(name):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        names.remove(name)

    yield make
    for name in list(names):
        remove(name)


def evaluate(cfg, name="scored"):
    """Its scores on the first picture of the set."""
    evaluator = SubmissionEvaluator(cfg, name)
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [detections()])
    return evaluator.evaluate()


def record_of(folder):
    return json.loads((folder / "dataset.json").read_text())


def test_a_set_with_annotations_is_scored_and_not_packed(tiny_cfg, tmp_path, register):
    annotation_file, images = register(tmp_path)
    cfg = tiny_cfg("OUTPUT_DIR", str(tmp_path / "out"), "MODEL.WEIGHTS", "http://a.b/c.pth")
    assert "bbox" in evaluate(cfg)
    folder = tmp_path / "out" / "inference" / "scored"
    assert list(folder.glob("*.zip")) == []
    assert record_of(folder) == {
        "name": "scored",
        "annotations": str(annotation_file),
        "images": str(images),
        "given_as": str(tmp_path / "mine.json"),
        "iterations": None,
        "weights": "http://a.b/c.pth",
    }


def test_what_is_in_the_run_is_named_from_there(tiny_cfg, tmp_path, register, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Path("out")  # as OUTPUT_DIR is by default, relative
    (tmp_path / run).mkdir()
    (tmp_path / run / "model_final.pth").touch()
    register(tmp_path / run / "data")
    evaluate(tiny_cfg("OUTPUT_DIR", str(run), "MODEL.WEIGHTS", str(tmp_path / run / "model_final.pth")))
    record = record_of(tmp_path / "out" / "inference" / "scored")
    paths = [record[key] for key in ("annotations", "images", "given_as", "weights")]
    assert all(path.startswith("../../") for path in paths)
    folder = tmp_path / "out" / "inference" / "scored"
    assert [(folder / path).exists() for path in paths] == [True, True, False, True]


def test_in_a_training_the_iterations_are_named(tiny_cfg, tmp_path, register):
    register(tmp_path)
    cfg = tiny_cfg("OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.MAX_ITER", 20)
    for iteration, done in ((9, 10), (20, 20)):  # the hooks behind the last step see one more than there are
        with EventStorage(iteration):
            evaluate(cfg)
        record = record_of(tmp_path / "out" / "inference" / "scored")
        assert (record["iterations"], record["weights"]) == (done, None)


def test_another_file_under_the_name_of_the_trainings_goes_to_a_folder_of_its_own(tiny_cfg, tmp_path, register):
    cfg = tiny_cfg("OUTPUT_DIR", str(tmp_path / "out"))
    annotation_file, _ = register(tmp_path / "a", "val_json")
    copy = tmp_path / "out" / "annotations" / "val_json.json"
    copy.parent.mkdir(parents=True)
    shutil.copyfile(annotation_file, copy)
    evaluate(cfg, "val_json")
    of_training = tmp_path / "out" / "inference" / "val_json"
    before = {path.name: path.read_bytes() for path in of_training.iterdir()}
    other, _ = register(tmp_path / "b", "val_json", "other.json")
    other.write_text(other.read_text() + "\n")
    evaluate(cfg, "val_json")
    assert {path.name: path.read_bytes() for path in of_training.iterdir()} == before
    record = record_of(tmp_path / "out" / "inference" / "val_json-eval-only")
    assert record["name"] == "val_json-eval-only"
    assert record["given_as"] == str(tmp_path / "b" / "other.json")


def test_the_trainings_own_file_again_is_named_by_what_no_later_evaluation_overwrites(tiny_cfg, tmp_path, register):
    annotation_file, _ = register(tmp_path / "out" / "inference" / "annotations", "val_json")
    copy = tmp_path / "out" / "annotations" / "val_json.json"
    copy.parent.mkdir(parents=True)
    shutil.copyfile(annotation_file, copy)
    evaluate(tiny_cfg("OUTPUT_DIR", str(tmp_path / "out")), "val_json")
    assert record_of(tmp_path / "out" / "inference" / "val_json")["annotations"] == "../../annotations/val_json.json"


def test_a_users_own_set_is_known_by_the_file_as_given_and_its_copy_may_be_read_by_others(tmp_path):
    copy = tmp_path / "annotations" / "own.json"
    own = JsonDataset("own", "mine.json", str(tmp_path), str(copy))
    before = os.umask(0o022)
    try:
        write_checked_copy(own, SimpleNamespace(coco={"images": []}))
    finally:
        os.umask(before)
    assert (stat.S_IMODE(copy.stat().st_mode), copy.read_text()) == (0o644, '{"images": []}')
    register_datasets([], [own])
    assert MetadataCatalog.get("own").given_as == "mine.json"
    DatasetCatalog.remove("own")
    MetadataCatalog.remove("own")


def test_names_that_the_server_takes():
    name = submission_name("a/b/image_info_test-dev2017.json", "out put/ä")
    assert name == "detections_test-dev2017_out-put_results"
    assert submission_name("instances_minival2014.json", "…") == "detections_minival2014_focal-det_results"
