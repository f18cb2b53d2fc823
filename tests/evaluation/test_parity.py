"""The scores without Detectron2 are those of Detectron2's COCOEvaluator."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from focal_det.evaluation.coco_scores import evaluate

pytestmark = pytest.mark.detectron2


def random_truth(rng, *, num_classes, images, max_side, objects):
    """Annotations with boxes of at most max_side, one in ten a crowd."""
    annotations = []
    for image_id in range(1, images + 1):
        for _ in range(objects):
            width, height = rng.uniform(4, max_side, 2)
            x, y = rng.uniform(0, 400 - max_side, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 10 * int(rng.integers(1, num_classes + 1)),
                    "bbox": [x, y, width, height],
                    "area": width * height * rng.uniform(0.5, 1),  # as of a mask
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
    return {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 400, "height": 400} for i in range(1, images + 1)],
        "categories": [{"id": 10 * k, "name": f"class {k}"} for k in range(1, num_classes + 1)],
        "annotations": annotations,
    }


def random_outputs(rng, truth, detections):
    """For each image what a model puts out: boxes near the annotated ones, a third of them of a random class."""
    num_classes = len(truth["categories"])
    outputs = []
    for image in truth["images"]:
        mine = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        classes = np.array([a["category_id"] // 10 - 1 for a in mine], dtype=int)
        chosen = rng.integers(len(mine), size=detections) if mine else np.zeros(0, dtype=int)
        boxes = np.array([mine[i]["bbox"] for i in chosen]).reshape(-1, 4)
        boxes = boxes + rng.normal(0, 3, boxes.shape)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)
        classes = np.where(rng.random(len(chosen)) < 0.3, rng.integers(num_classes, size=len(chosen)), classes[chosen])
        instances = Instances((400, 400))
        instances.pred_boxes = Boxes(torch.tensor(np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])))
        instances.scores = torch.tensor(rng.uniform(0.05, 1, len(chosen)))
        instances.pred_classes = torch.tensor(classes)
        outputs.append({"instances": instances})
    return outputs


CASES = {
    "all sizes": {"num_classes": 3, "images": 12, "max_side": 200, "objects": 6, "detections": 20},
    "none large": {"num_classes": 3, "images": 8, "max_side": 60, "objects": 4, "detections": 10},
    "more than 100 detections": {"num_classes": 2, "images": 3, "max_side": 150, "objects": 5, "detections": 250},
    "classes without objects": {"num_classes": 12, "images": 2, "max_side": 200, "objects": 3, "detections": 9},
    "one class": {"num_classes": 1, "images": 5, "max_side": 200, "objects": 3, "detections": 9},
    "no objects": {"num_classes": 2, "images": 3, "max_side": 200, "objects": 0, "detections": 0},
    "no detections": {"num_classes": 2, "images": 3, "max_side": 200, "objects": 3, "detections": 0},
}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_detectron2(tmp_path, name):
    rng = np.random.default_rng(0)
    case = dict(CASES[name])
    detections = case.pop("detections")
    truth = random_truth(rng, **case)
    outputs = random_outputs(rng, truth, detections)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    register_coco_instances("random", {}, str(path), str(tmp_path))
    try:
        DatasetCatalog.get("random")
        evaluator = COCOEvaluator("random", output_dir=str(tmp_path), allow_cached_coco=False)
        evaluator.reset()
        evaluator.process([{"image_id": image["id"]} for image in truth["images"]], outputs)
        expected = evaluator.evaluate()["bbox"]
    finally:
        DatasetCatalog.remove("random")
        MetadataCatalog.remove("random")
    result = evaluate(truth, json.loads((tmp_path / "coco_instances_results.json").read_text()))
    for figure in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        assert getattr(result, figure) == pytest.approx(expected[figure], nan_ok=True, abs=1e-9), figure
        assert np.isfinite(getattr(result, figure)) or any(
            figure in line or "Every" in line for line in result.explain()
        )
    of_classes = {c.name: c.AP for c in result.classes}
    for key in expected:
        if key.startswith("AP-"):
            assert of_classes[key[3:]] == pytest.approx(expected[key], nan_ok=True, abs=1e-9), key
