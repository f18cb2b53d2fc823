"""What is written beside a set's detections, also for COCO's server, and why a score is nan."""

import json
import math
import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from focal_det.data.catalog import JsonDataset, register_datasets, write_checked_copy
from focal_det.data.shapes import make_shapes, shapes_files
from focal_det.engine.trainer import Trainer
from focal_det.evaluators.coco_evaluator import SubmissionEvaluator, nan_lines, submission_name
from focal_det.formats.coco import CocoFile

pytestmark = pytest.mark.detectron2


@pytest.fixture
def test_dev(tmp_path):
    """A set like test-dev: images and categories, but no annotations."""
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
    """Registers generated shapes in a folder as a user's own set; returns its annotation file and images."""
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
    """Its scores on the first image of the set."""
    evaluator = SubmissionEvaluator(cfg, name)
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [detections()])
    return evaluator.evaluate()


def test_the_scores_are_those_of_detectron2s_evaluator(tiny_cfg, tmp_path, register):
    register(tmp_path)
    truth = DatasetCatalog.get("scored")
    cfg = tiny_cfg("OUTPUT_DIR", str(tmp_path / "out"))
    evaluators = [SubmissionEvaluator(cfg, "scored"), COCOEvaluator("scored", tasks=("bbox",), use_fast_impl=False)]
    results = []
    for evaluator in evaluators:
        evaluator.reset()
        for record in truth:
            found = Instances((64, 64))
            boxes = torch.tensor([a["bbox"] for a in record["annotations"]], dtype=torch.float32)  # XYWH
            found.pred_boxes = Boxes(torch.cat([boxes[:, :2] + 1, boxes[:, :2] + boxes[:, 2:]], dim=1))
            found.scores = torch.linspace(0.9, 0.5, len(boxes))
            found.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]])
            evaluator.process([record], [{"instances": found}])
        results.append(evaluator.evaluate()["bbox"])
    assert 0 < results[0]["AP"] < 100
    assert results[0].items() >= {k: v for k, v in results[1].items() if not math.isnan(v)}.items()
    assert results[0].keys() == results[1].keys()


def test_only_the_images_that_are_asked_for_count(tiny_cfg, tmp_path, register):
    register(tmp_path)
    first, second = DatasetCatalog.get("scored")
    evaluator = SubmissionEvaluator(tiny_cfg("OUTPUT_DIR", str(tmp_path / "out")), "scored")
    evaluator.reset()
    found = Instances((64, 64))  # all of the first image, nothing of the second
    boxes = torch.tensor([a["bbox"] for a in first["annotations"]], dtype=torch.float32)  # XYWH
    found.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
    found.scores = torch.ones(len(boxes))
    found.pred_classes = torch.tensor([a["category_id"] for a in first["annotations"]])
    evaluator.process([first], [{"instances": found}])
    assert len(second["annotations"]) > 0
    assert evaluator.evaluate([first["image_id"]])["bbox"]["AP"] == pytest.approx(100)
    assert evaluator.evaluate()["bbox"]["AP"] < 100
    assert math.isnan(evaluator.evaluate([second["image_id"]])["bbox"]["AP"])


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
        write_checked_copy(own, CocoFile({"images": []}, []))
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


# --- why a score is nan -----------------------------------------------------------------------------------------------

NAN = math.nan
CATEGORIES = [{"id": 3, "name": "cell"}, {"id": 4, "name": "plate"}]


def box(side, category=3, **more):
    return {"category_id": category, "bbox": [0, 0, side, side], "area": side * side, **more}


def coco(*boxes):
    return {"categories": CATEGORIES, "annotations": list(boxes)}


def scores(**changed):
    return {"AP": 40.0, "AP50": 60.0, "AP75": 50.0, "APs": 1.0, "APm": 1.0, "APl": 1.0, **changed}


@pytest.mark.parametrize(
    ("found", "annotations", "lines"),
    [
        (scores(), coco(box(10)), []),
        (scores(APl=NAN), coco(box(10), box(50)), ["APl is nan: the set has no large objects (area from 96^2 px on)."]),
        (
            scores(APs=NAN, APm=NAN),
            coco(box(97), box(20, iscrowd=1)),
            [
                "APs is nan: the set has no small objects (area up to 32^2 px).",
                "APm is nan: the set has no medium objects (area of 32^2 to 96^2 px).",
            ],
        ),
        (
            scores(**{"AP-plate": NAN, "AP-cell": 1.0}),
            coco(box(10), box(50), box(100)),
            ["Each figure of plate is nan: the set has no objects of this class; means leave it out."],
        ),
        (
            dict.fromkeys(scores(), NAN),
            coco(box(10, iscrowd=1)),
            ["Every figure is nan: the set has no annotated objects, so there is nothing to find."],
        ),
        ({}, {"categories": CATEGORIES}, ["nothing is scored, since the set has no annotations"]),
    ],
)
def test_the_reason_is_in_the_annotations(tmp_path, found, annotations, lines):
    annotations["categories"] = [c for c in CATEGORIES if c["name"] == "cell" or "AP-plate" in found]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(annotations))
    assert nan_lines({"val": {"bbox": found} if found else {}}, {"val": str(path)}) == [
        f"val: {line}" for line in lines
    ]


def test_without_any_detection_the_threshold_is_named(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(coco(box(10))))
    (line,) = nan_lines({"val": {"bbox": dict.fromkeys(scores(), NAN)}}, {"val": str(tmp_path / "a.json")})
    assert "no detections at all, of 1 object. Nothing scored above MODEL.RETINANET.SCORE_THRESH_TEST" in line


def test_an_area_that_is_not_given_is_that_of_the_box(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(coco({"category_id": 3, "bbox": [0, 0, 100, 100]})))
    lines = nan_lines({"val": {"bbox": scores(APm=NAN)}}, {"val": str(tmp_path / "a.json")})
    assert "val: APm is nan: the set has no medium objects (area of 32^2 to 96^2 px)." in lines
    assert not any("APl" in line for line in lines)


def test_each_of_several_sets_has_its_lines(tmp_path):
    files = {}
    for name, content in (("a", coco(box(50), box(50, 4))), ("b", coco(box(10), box(50, 4)))):
        files[name] = str(tmp_path / f"{name}.json")
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    results = {"a": {"bbox": scores()}, "b": {"bbox": scores(APl=NAN)}}
    assert nan_lines(results, files) == ["b: APl is nan: the set has no large objects (area from 96^2 px on)."]


def test_the_scores_of_lvis_groups_of_classes_are_explained(tmp_path):
    categories = [{"id": 3, "name": "cell", "frequency": "f"}]
    objects = [box(10), box(50), box(100)]
    (tmp_path / "a.json").write_text(json.dumps({"categories": categories, "annotations": objects}))
    results = {"val": {"bbox": scores(APr=NAN, APc=NAN, APf=40.0)}}
    groups = [f"val: AP{group[0]} is nan: the set has no objects of {group} classes." for group in ("rare", "common")]
    assert nan_lines(results, {"val": str(tmp_path / "a.json")}) == groups


def test_the_results_of_two_sets_are_not_taken_for_those_of_one(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(coco(box(10), box(50), box(100), box(9, 4))))
    results = {"a": {"bbox": scores()}, "b": {"bbox": scores(APl=NAN)}}
    assert nan_lines(results, {"a": str(tmp_path / "a.json")}) == []


@pytest.mark.parametrize("content", [None, "{", "3", '{"annotations": [{}], "categories": []}'])
def test_a_file_that_cannot_be_read_ends_no_training(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    assert nan_lines({"val": {"bbox": scores(APs=NAN)}}, {"val": str(path), "far": "s3://bucket/a.json"}) == []
    assert nan_lines({"val": {"bbox": scores(APs=NAN)}}, {"val": str(path)}) == []
