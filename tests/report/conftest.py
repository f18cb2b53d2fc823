"""A made-up run: what a training leaves in its folder, without a training."""

import json

import numpy as np
import pytest
from PIL import Image

NAMES = ["cat", "<b>&dog", "$_owl$", "absent"]  # names that HTML and matplotlib could take for something else
CONFIG = """
DATASETS:
  TEST:
  - made_up
MODEL:
  FOCAL_DET:
    DRAW_SCORE_THRESH: 0.4
SOLVER:
  MAX_ITER: 400
"""


def made_up_set(folder, rng, *, images=4, num_classes=4):
    """Annotation file and images; boxes of 20 to 40 px, so small and medium; none of the last class."""
    (folder / "images").mkdir(parents=True)
    annotations = []
    for image_id in range(1, images + 1):
        pixels = rng.integers(60, 200, (120, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{image_id}.jpg")
        for place in range(3):
            width, height = rng.uniform(20, 40, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1 + len(annotations) % (num_classes - 1),
                    "bbox": [5 + 50 * place, 30, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    coco = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 160, "height": 120} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": NAMES[k] if num_classes == 4 else f"k{k}"} for k in range(num_classes)],
    }
    (folder / "truth.json").write_text(json.dumps(coco))
    return coco


def made_up_detections(coco, rng):
    """In the first image nothing; else all objects, near their place, every fourth of another class."""
    rows = []
    for place, a in enumerate(coco["annotations"]):
        if a["image_id"] == 1:
            continue
        box = (np.array(a["bbox"]) + rng.normal(0, 1.5, 4)).tolist()
        category_id = a["category_id"] if place % 4 else 1 + a["category_id"] % 3
        rows.append(
            {"image_id": a["image_id"], "category_id": category_id, "bbox": box, "score": 0.3 + 0.6 * rng.random()}
        )
    return rows


def made_up_metrics(prefix="bbox/"):
    """Of 400 iterations of half a second: the best AP, 44, is that of the evaluation after 300."""
    lines = []
    for iteration in range(19, 400, 20):
        loss = 3 / (1 + iteration / 50)
        lines.append(
            {"iteration": iteration, "lr": 0.01, "time": 0.5, "epoch": (iteration + 1) / 40, "total_loss": loss}
            | {"loss_cls": 0.6 * loss, "loss_box_reg": 0.4 * loss}
        )
    for iteration, ap in ((99, 21.0), (199, 33.0), (299, 44.0), (400, 40.0)):
        lines.append({"iteration": iteration, f"{prefix}AP": ap, f"{prefix}AP50": 2 * ap, "val/total_loss": 1.5})
    return lines


@pytest.fixture
def make_run():
    """Makes a run's folder; returns it."""

    def make(folder, *, sets=("made_up",), **changes):
        rng = np.random.default_rng(0)
        for name in sets:
            coco = made_up_set(folder.parent / "data" / name, rng, **changes)
            place = folder / "inference" / name
            place.mkdir(parents=True)
            (place / "coco_instances_results.json").write_text(json.dumps(made_up_detections(coco, rng)))
            data = folder.parent / "data" / name
            record = {"name": name, "annotations": str(data / "truth.json"), "images": str(data / "images")}
            record |= {"given_as": None, "iterations": 400, "weights": None}
            (place / "dataset.json").write_text(json.dumps(record))
        prefixes = ["bbox/"] if len(sets) == 1 else [f"{name}/bbox/" for name in sets]
        lines = [line for prefix in prefixes for line in made_up_metrics(prefix)]
        (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "config.yaml").write_text(CONFIG.replace("- made_up", "\n  - ".join(["", *sets]).strip()))
        (folder / "environment.txt").write_text("focal_det 0.1.0, commit abc\nPython           3.11 (main)\n")
        change = {"key": "SOLVER.MAX_ITER", "default": 90000, "value": 400, "place": "command line"}
        (folder / "config_changes.json").write_text(json.dumps([change]))
        (folder / "model_final.pth").touch()
        (folder / "model_0000199.pth").touch()
        return folder

    return make
