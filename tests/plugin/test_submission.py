"""What stands beside a set's detections: where it is, and without annotations the file for COCO's server."""

import json
import zipfile

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances

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


def test_a_set_with_annotations_is_scored_and_not_packed(tmp_path):
    make_shapes("shapes_val_2_64px", tmp_path)
    annotation_file, images = shapes_files("shapes_val_2_64px", tmp_path)
    register_coco_instances("scored", {}, str(annotation_file), str(images))
    DatasetCatalog.get("scored")
    evaluator = SubmissionEvaluator("scored", output_dir=str(tmp_path / "out"), algorithm="x")
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [detections()])
    assert "bbox" in evaluator.evaluate()
    assert list((tmp_path / "out").glob("*.zip")) == []
    place = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert place == {"name": "scored", "annotations": str(annotation_file), "images": str(images)}
    DatasetCatalog.remove("scored")
    MetadataCatalog.remove("scored")


def test_names_that_the_server_takes():
    name = submission_name("a/b/image_info_test-dev2017.json", "out put/ä")
    assert name == "detections_test-dev2017_out-put_results"
    assert submission_name("instances_minival2014.json", "…") == "detections_minival2014_focal-det_results"
