"""A test set is scored by what it is, exactly as Detectron2's own evaluators do, from its name to the report."""

import json
import math
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_lvis_instances, register_pascal_voc
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.evaluation import COCOEvaluator, LVISEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from training_fixtures import TINY

from focal_det.cli.train import parse_arguments
from focal_det.data.catalog import JsonDataset, register_datasets, scoring_metadata, write_checked_copy
from focal_det.engine.trainer import Trainer
from focal_det.errors import InputError, TrainingError
from focal_det.evaluators.set_evaluators import make_evaluator
from focal_det.preflight.named_sets import read_named_set
from focal_det.preflight.plan import check, write
from focal_det.report import write_report

pytestmark = pytest.mark.detectron2

VOC_OBJECT = "<pose>Left</pose><truncated>0</truncated><difficult>{}</difficult>"


@pytest.fixture
def catalogue():
    """Removes from Detectron2's catalogue what a test has put there."""
    before = set(DatasetCatalog), set(MetadataCatalog)
    yield
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog) - names:
            catalog.pop(name)


def random_records(folder, count=4, seed=0):
    """Records of noise, of 100 x 80 px, with three boxes of two classes in each image."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(count):
        path = folder / f"{seed}_{number}.png"
        cv2.imwrite(str(path), rng.integers(0, 256, (80, 100, 3)).astype(np.uint8))
        corners, sides = rng.integers(0, 50, (3, 2)), rng.integers(10, 28, (3, 2))
        boxes = np.hstack([corners, corners + sides]).tolist()
        mode = BoxMode.XYXY_ABS
        rows = [{"bbox": b, "bbox_mode": mode, "category_id": k % 2, "iscrowd": 0} for k, b in enumerate(boxes)]
        record = {"file_name": str(path), "image_id": f"i{number}", "height": 80, "width": 100}
        records.append({**record, "annotations": rows})
    return records


def near(records, seed=1):
    """Detections near the boxes, most of their class, with scores."""
    rng = np.random.default_rng(seed)
    outputs = []
    for record in records:
        found = Instances((80, 100))
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]], dtype=torch.float32).reshape(-1, 4)
        found.pred_boxes = Boxes(boxes + torch.tensor(rng.normal(0, 2, boxes.shape), dtype=torch.float32))
        found.scores = torch.tensor(rng.uniform(0.1, 1, len(boxes)), dtype=torch.float32)
        labels = [a["category_id"] for a in record["annotations"]]
        found.pred_classes = torch.tensor([k if rng.random() < 0.8 else 1 - k for k in labels], dtype=torch.int64)
        outputs.append({"instances": found})
    return outputs


def scores_of(evaluator, records):
    evaluator.reset()
    evaluator.process(records, near(records))
    return evaluator.evaluate()["bbox"]


def planned(tmp_path, *words):
    """Check and write what a training would be given, and register it as each process does; return its cfg."""
    overrides = [*TINY, "MODEL.RETINANET.NUM_CLASSES", "2", "OUTPUT_DIR", str(tmp_path / "out"), *words]
    plan = check(parse_arguments(["--config-file", "configs/Base-RetinaNet-FPN.yaml", *overrides]))
    write(plan)
    cfg = plan.job.cfg
    register_datasets((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST), plan.job.json_datasets)
    return cfg


def test_a_registered_functions_scores_are_detectron2s_own(tmp_path, catalogue):
    records = random_records(tmp_path / "images")
    for name in ("mine", "same"):
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(thing_classes=["cat", "dog"])
    cfg = planned(tmp_path, "DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)")
    expected = scores_of(COCOEvaluator("same", output_dir=str(tmp_path / "theirs"), allow_cached_coco=False), records)
    assert scores_of(Trainer.build_evaluator(cfg, "mine"), records) == pytest.approx(expected, nan_ok=True)
    assert 20 < expected["AP"] < 90
    assert MetadataCatalog.get("mine").as_dict() == {"name": "mine", "thing_classes": ["cat", "dog"]}
    assert scoring_metadata("mine").json_file == str(tmp_path / "out" / "annotations" / "mine.json")
    folder = tmp_path / "out" / "inference" / "mine"
    record = json.loads((folder / "dataset.json").read_text())
    assert (record["annotations"], record["images"]) == ("../../annotations/mine.json", str(tmp_path / "images"))
    assert {row["image_id"] for row in json.loads((folder / "coco_instances_results.json").read_text())} == {
        f"i{number}" for number in range(4)
    }


def test_what_a_changed_function_returns_does_not_replace_the_trainings_results(tmp_path, catalogue):
    records = random_records(tmp_path / "images")
    DatasetCatalog.register("mine", lambda: records)
    MetadataCatalog.get("mine").set(thing_classes=["cat", "dog"])
    cfg = planned(tmp_path, "DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)")
    before = scores_of(make_evaluator(cfg, "mine"), records)
    evaluation = tmp_path / "out" / "inference"
    copy = JsonDataset("mine", "", str(tmp_path), str(evaluation / "annotations" / "mine.json"), is_registered=True)
    for folder, last in (("mine", 3), ("mine-eval-only", 2)):
        for record in records:
            del record["annotations"][last:]
        write_checked_copy(copy, read_named_set("mine", "val", images=False).contents())
        register_datasets(["mine"], [copy])
        is_same = scores_of(make_evaluator(cfg, "mine"), records) == pytest.approx(before, nan_ok=True)
        assert is_same == (folder == "mine")
        assert json.loads((evaluation / folder / "dataset.json").read_text())["name"] == folder


def voc_folder(write_voc, images=4):
    rng = np.random.default_rng(0)
    annotations = {}
    for number in range(images):
        corners, sides = rng.integers(1, 40, (2, 2)), rng.integers(12, 30, (2, 2))
        rows = zip(("cat", "dog"), np.hstack([corners, corners + sides]).tolist(), strict=True)
        annotations[f"{number:06d}"] = [
            (name, *box, VOC_OBJECT.format(int(name == "cat" and number == 0))) for name, box in rows
        ]
    return write_voc(annotations, "VOC2007", test=list(annotations), train=list(annotations))


@pytest.mark.parametrize("year", [2007, 2012])
def test_pascal_voc_is_scored_by_its_rule_and_shown_as_coco(tmp_path, write_voc, catalogue, year):
    folder = voc_folder(write_voc)
    for name in ("mine", "same"):
        register_pascal_voc(name, str(folder), "test", year, ["cat", "dog"])
    MetadataCatalog.get("mine").evaluator_type = "pascal_voc"
    records = DatasetCatalog.get("same")
    cfg = planned(tmp_path, "DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)")
    expected = scores_of(PascalVOCDetectionEvaluator("same"), records)
    assert scores_of(make_evaluator(cfg, "mine"), records) == expected
    assert expected["AP50"] > 20
    record = json.loads((tmp_path / "out" / "inference" / "mine" / "dataset.json").read_text())
    assert (record["rule"], record["scores"]) == (f"Pascal VOC {year}", expected)
    assert scores_of(make_evaluator(cfg, "mine", "inference_TTA"), records) == expected
    assert (tmp_path / "out" / "inference_TTA" / "mine" / "coco_instances_results.json").is_file()
    coco = json.loads((tmp_path / "out" / "annotations" / "mine.json").read_text())
    assert sum(a["iscrowd"] for a in coco["annotations"]) == 1  # the difficult one
    page = text_of(write_report(tmp_path / "out"))
    assert f"AP (Pascal VOC {year}) {expected['AP']:.1f}" in page
    assert f"AP50 {expected['AP50']:.1f}" in page
    assert re.search(r"COCO's AP50 \d", page)


def test_a_score_that_the_sets_evaluator_does_not_give_is_not_expected_in_vain(tmp_path, write_voc, catalogue):
    register_pascal_voc("mine", str(voc_folder(write_voc)), "test", 2007, ["cat", "dog"])
    MetadataCatalog.get("mine").evaluator_type = "pascal_voc"
    DatasetCatalog.register("bare", lambda: [{**r, "annotations": []} for r in DatasetCatalog.get("mine")])
    MetadataCatalog.get("bare").set(thing_classes=["cat", "dog"])
    words = ["DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine', 'bare')", "TEST.EXPECTED_RESULTS"]
    expected = [["mine/bbox", "APs", 1.0, 1.0], ["bare/bbox", "AP", 1.0, 1.0]]
    with pytest.raises(InputError) as caught:
        planned(tmp_path, *words, repr(expected))
    assert caught.value.problems == [
        "TEST.EXPECTED_RESULTS has the metric 'APs'; measured on mine are AP, AP50, AP75",
        "TEST.EXPECTED_RESULTS expects 'AP' on bare, which has no annotated objects to score",
    ]


def text_of(path):
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", path.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)).replace("&#39;", "'")


# --- LVIS -------------------------------------------------------------------------------------------------------------


def lvis(folder, **changes):
    """A federated file of three images, and its images: of mugs is known only that the first image has none."""
    records = random_records(folder / "val2017", 3)
    images, annotations = [], []
    for place, record in enumerate(records, start=1):
        name = record["file_name"].rpartition("/")[2]
        image = {"id": place, "width": 100, "height": 80, "coco_url": f"http://images.cocodataset.org/val2017/{name}"}
        images.append({**image, "neg_category_ids": [3] if place == 1 else [], "not_exhaustive_category_ids": []})
        for a in record["annotations"]:
            x1, y1, x2, y2 = a["bbox"]
            row = {"id": len(annotations) + 1, "image_id": place, "category_id": a["category_id"] + 1}
            annotations.append({**row, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})
    categories = [
        {"id": k, "name": name, "frequency": frequency}
        for k, name, frequency in ((1, "cat", "f"), (2, "dog", "r"), (3, "mug", "c"))
    ]
    coco = {"images": images, "annotations": annotations, "categories": categories, **changes}
    (folder / "lvis.json").write_text(json.dumps(coco))
    return [str(folder / "lvis.json"), str(folder)]


def lvis_plan(folder, *words, **changes):
    json_file, images = lvis(folder, **changes)
    files = ["--train-json", json_file, "--train-images", images, "--val-json", json_file, "--val-images", images]
    overrides = [*TINY, "OUTPUT_DIR", str(folder / "out"), *words]
    return check(parse_arguments([*files, "--config-file", "configs/Base-RetinaNet-FPN.yaml", *overrides]))


def test_lvis_is_scored_by_its_rules(tmp_path, catalogue, capsys):
    pytest.importorskip("lvis")
    plan = lvis_plan(tmp_path)
    assert "TEST.DETECTIONS_PER_IMAGE is 100; LVIS's results are of 300" in capsys.readouterr().err
    write(plan)
    register_datasets((), plan.job.json_datasets)
    records = DatasetCatalog.get("val_json")
    assert records[0]["file_name"] == str(tmp_path / "val2017" / "0_0.png")
    outputs = [{"instances": Instances.cat([o["instances"]] * 2)} for o in near(xyxy(records))]
    for output in outputs:  # each once more, as a mug
        half = len(output["instances"]) // 2
        output["instances"].pred_classes[half:] = 2
        output["instances"].scores[half:] = 1.0
    evaluator = make_evaluator(plan.job.cfg, "val_json")
    evaluator.reset()
    evaluator.process(records, outputs)
    scores = evaluator.evaluate()["bbox"]
    # of the mugs only those in the first image count, and as there are none, no mean takes the class in
    assert scores["AP"] == pytest.approx((scores["APf"] + scores["APr"]) / 2)
    assert scores["AP"] > 20
    assert math.isnan(scores["APc"])
    assert not hasattr(np, "float")
    folder = tmp_path / "out" / "inference" / "val_json"
    record = json.loads((folder / "dataset.json").read_text())
    assert (record["rule"], record["scores"]["APc"]) == ("LVIS", None)
    assert len(json.loads((folder / "coco_instances_results.json").read_text())) == 18
    page = text_of(write_report(tmp_path / "out"))
    assert f"AP (LVIS) {scores['AP']:.1f}" in page
    assert "6 of 18 detections are left out: they are of classes that nobody looked for in their image" in page


def test_a_registered_lvis_set_is_scored_as_by_detectron2(tmp_path, catalogue):
    pytest.importorskip("lvis")
    json_file, images = lvis(tmp_path, categories=LVIS_CATEGORIES)
    coco = json.loads(Path(json_file).read_text())
    for annotation in coco["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height]]
    Path(json_file).write_text(json.dumps(coco))
    for name in ("lvis_v1_mine", "lvis_v1_same"):
        register_lvis_instances(name, {}, json_file, f"{images}/")
    words = ("MODEL.RETINANET.NUM_CLASSES", "1203", "TEST.DETECTIONS_PER_IMAGE", "300")
    cfg = planned(tmp_path, *words, "DATASETS.TRAIN", "('lvis_v1_mine',)", "DATASETS.TEST", "('lvis_v1_mine',)")
    records = DatasetCatalog.get("lvis_v1_same")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "float", float, raising=False)
        expected = scores_of(LVISEvaluator("lvis_v1_same", output_dir=str(tmp_path)), xyxy(records))
    expected = {name: math.nan if value == -100 else value for name, value in expected.items()}
    assert scores_of(make_evaluator(cfg, "lvis_v1_mine"), xyxy(records)) == pytest.approx(expected, nan_ok=True)
    assert expected["AP"] > 20
    image = json.loads((tmp_path / "out" / "annotations" / "lvis_v1_mine.json").read_text())["images"][0]
    assert image["file_name"] == "val2017/0_0.png"


def xyxy(records):
    convert = BoxMode.convert
    return [
        {
            **record,
            "annotations": [
                {**a, "bbox": convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS)} for a in record["annotations"]
            ],
        }
        for record in records
    ]


# --- a set that a rank does not know ---------------------------------------------------------------------------------


def test_a_set_that_only_the_first_process_registered_is_named():
    with pytest.raises(TrainingError, match='"mine" is registered in the process that was started, but not in this'):
        register_datasets(["mine"], [])


# --- whole runs -------------------------------------------------------------------------------------------------------

SCRIPT = '''
"""A user's script: it registers sets as Detectron2's tutorial does, and starts train_net.py."""
import json
import os
import sys

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

HERE = os.path.dirname(os.path.abspath(__file__))


def get_balloon_dicts(folder):
    with open(os.path.join(folder, "via_region_data.json")) as file:
        marked = json.load(file)
    records = []
    for number, image in enumerate(marked.values()):
        record = {"file_name": os.path.join(folder, image["filename"]), "image_id": number, "height": 80, "width": 100}
        record["annotations"] = []
        for region in image["regions"].values():
            x, y = (region["shape_attributes"][f"all_points_{axis}"] for axis in "xy")
            polygon = [point + 0.5 for pair in zip(x, y) for point in pair]
            box = [min(x), min(y), max(x), max(y)]
            record["annotations"].append(
                {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "segmentation": [polygon], "category_id": 0}
            )
        records.append(record)
    return records


def bare():
    return [{k: v for k, v in record.items() if k != "annotations"} for record in get_balloon_dicts(HERE)]


for name, function in (("balloon", lambda: get_balloon_dicts(HERE)), ("bare", bare)):
    DatasetCatalog.register(name, function)
    MetadataCatalog.get(name).set(thing_classes=["balloon"])

if __name__ == "__main__":
    from focal_det.cli.train import main

    sys.exit(main())
'''


@pytest.fixture(scope="module")
def balloons(tmp_path_factory):
    """The folder of a user with a script, images and VIA's polygons; and the command line of a tiny training."""
    folder = tmp_path_factory.mktemp("balloons")
    marked = {}
    for record in random_records(folder, 6):
        regions = {}
        for number, annotation in enumerate(record["annotations"]):
            x1, y1, x2, y2 = annotation["bbox"]
            shape = {"name": "polygon", "all_points_x": [x1, x2, x2, x1], "all_points_y": [y1, y1, y2, y2]}
            regions[str(number)] = {"shape_attributes": shape, "region_attributes": {}}
        name = record["file_name"].rpartition("/")[2]
        marked[name] = {"filename": name, "regions": regions}
    (folder / "via_region_data.json").write_text(json.dumps(marked))
    (folder / "script.py").write_text(SCRIPT)
    words = [*TINY, "MODEL.FPN.OUT_CHANNELS", "64", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]
    words += ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "1"]
    words += ["SOLVER.CHECKPOINT_PERIOD", "2", "DATALOADER.NUM_WORKERS", "0", "SEED", "1"]
    words += ["MODEL.FOCAL_DET.DRAW_IMAGES", "2", "MODEL.RETINANET.NUM_CLASSES", "1"]
    words += ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "DATASETS.TRAIN", "('balloon',)"]
    return folder, ["--config-file", "configs/Base-RetinaNet-FPN.yaml", *words]


def test_the_tutorials_balloons_are_trained_on_beside_a_set_without_annotations(balloons, train_net):
    folder, words = balloons
    words = [*words, "OUTPUT_DIR", folder / "out", "DATASETS.TEST", "('bare', 'balloon')"]
    done = train_net(*words, program=folder / "script.py")
    assert done.returncode == 0, done.stderr
    assert "evaluate on bare: 6 images without annotations" in done.stdout
    assert "best model: by the AP on balloon, since bare has no annotated objects" in done.stdout
    assert "images of balloon" in done.stdout  # the validation loss
    assert "bare: nothing is scored, since the set has no annotations" in done.stdout
    metrics = [json.loads(line) for line in (folder / "out" / "metrics.json").read_text().splitlines()]
    ap = metrics[-1]["balloon/bbox/AP"]
    assert re.search(rf"Done: 4 iterations, AP {ap:.1f}, AP50 [\d.]+, AP75 [\d.]+ on balloon\. ", done.stdout)
    best = torch.load(folder / "out" / "model_best.pth", weights_only=True)["best"]
    assert best == {"AP": pytest.approx(ap), "iteration": 3}
    assert (folder / "out" / "detections.png").is_file()
    assert list((folder / "out" / "inference" / "bare").glob("*.zip"))
    page = text_of(folder / "out" / "report.html")
    assert "Test set balloon 6 images with 18 objects of 1 class" in page
    assert "bare.json has no public annotations, so there is nothing to score against" in page

    weights = ["MODEL.WEIGHTS", folder / "out" / "model_final.pth"]
    done = train_net("--eval-only", *words, *weights, program=folder / "script.py")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "out" / "inference" / "balloon" / "dataset.json").read_text())["iterations"] is None

    changed = json.loads((folder / "via_region_data.json").read_text())
    next(iter(changed.values()))["regions"].popitem()
    shutil.copyfile(folder / "via_region_data.json", folder / "before.json")
    (folder / "via_region_data.json").write_text(json.dumps(changed))
    done = train_net("--resume", *words, "SOLVER.MAX_ITER", "6", program=folder / "script.py")
    shutil.copyfile(folder / "before.json", folder / "via_region_data.json")
    assert done.returncode == 2
    assert "data set to train on: balloon of 6 images" in done.stderr
