"""Name the files and folders of a run's OUTPUT_DIR, each once.

OUTPUT_DIR/
    config.yaml  config_changes.json  environment.txt  classes.json  log.txt   what the run is
    model_0004999.pth ...  model_final.pth  model_best.pth  last_checkpoint    its checkpoints
    model_final_ema.pth  model_best_ema.pth                                    weights of the EMA, if there is one
    metrics.json  events.out.tfevents.*                                        what it measured, by iteration
    tracker_<name>.json                                                        its run in a tracker, and what that has
    annotations/<set>.json                                                     checked copies of sets, see data.catalog
    inference/<set>/coco_instances_results.json, dataset.json                  detections, and what they belong to
    inference_TTA/<set>/  inference_ema/<set>/           likewise with test-time augmentation, and of the EMA
    detections.png  detections/*.png  report.html                              for people to look at
    diverged/iteration_<i>_rank<r>.pth, iteration_<i>_seen                     steps that were not finite
    .lock                                                                      held by the process that trains
"""

from __future__ import annotations

import re
from collections.abc import Sequence

CONFIG, CONFIG_CHANGES = "config.yaml", "config_changes.json"
ENVIRONMENT, CLASSES_FILE, LOG = "environment.txt", "classes.json", "log.txt"

LAST_CHECKPOINT = "last_checkpoint"  # names the newest one; Detectron2's name, as are the next two
FINAL_CHECKPOINT = "model_final.pth"
PERIODIC_CHECKPOINT = re.compile(r"model_\d{7}\.pth")
BEST_CHECKPOINT = "model_best.pth"
FINAL_EMA_CHECKPOINT, BEST_EMA_CHECKPOINT = "model_final_ema.pth", "model_best_ema.pth"  # weights alone
CHECKPOINT_PATTERN = "model_*.pth"  # of all but last_checkpoint, for glob

METRICS = "metrics.json"
TRACKER = "tracker_{}.json"  # of each tracker, by its name

ANNOTATIONS = "annotations"
TTA = "_TTA"  # what Detectron2 appends to the names of what is measured with test-time augmentation
INFERENCE, INFERENCE_TTA = "inference", f"inference{TTA}"  # Detectron2's names; the second with TEST.AUG
EMA = "ema"  # in the names of what is measured of the EMA of the weights: "ema/bbox/AP"
INFERENCE_EMA = "inference_ema"
COCO_RESULTS, DATASET = "coco_instances_results.json", "dataset.json"  # in inference/<set>
LVIS_RESULTS = "lvis_instances_results.json"  # beside it; Detectron2's name, as that of COCO's results

DRAWINGS, DRAWINGS_SHEET = "detections", "detections.png"
REPORT = "report.html"

DIVERGED = "diverged"
LOCK = ".lock"


def score_prefix(name: str, sets: Sequence[str], suffix: str = "") -> str:
    """Return how the names of a test set's scores begin: "bbox/"; with several sets "NAME/" stands before it."""
    return f"{name}{suffix}/bbox/" if len(sets) > 1 else f"bbox{suffix}/"


def periodic_checkpoint(iteration: int) -> str:
    """Return the name of the checkpoint that is saved after an iteration, counted from 0."""
    return f"model_{iteration:07d}.pth"
