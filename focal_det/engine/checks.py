"""What is checked of a configuration before anything starts: every problem at once, each with its fix."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode

from ..data.catalog import is_writable
from ..errors import cut
from .detector_checks import detector_problems

# That a run makes in its OUTPUT_DIR.
_FOLDERS = ("inference", "detections", "annotations")
_FILES = (
    *(".lock", "log.txt", "config.yaml", "config_changes.json", "environment.txt", "classes.json", "metrics.json"),
    *("last_checkpoint", "model_best.pth", "model_final.pth", "detections.png", "report.html"),
)
_MOST_WORKERS = 256  # more is a slip, on which memory runs out


def config_problems(cfg: CfgNode, *, num_processes: int, training: bool) -> list[str]:
    """Values that cannot work, whatever the data.

    Args:
        num_processes: over all machines.
        training: also check the schedule and the batch.
    """
    problems = detector_problems(cfg)
    if not cfg.DATASETS.TEST:
        problems.append("DATASETS.TEST is (); it must be at least one data set; or use --val-json")
    problems += _path_problems(cfg, training)
    if training:
        problems += _schedule_problems(cfg, num_processes)
    return problems


def class_problems(num_classes: int, classes: Mapping[str, list[str] | None]) -> list[str]:
    """Contradictions between NUM_CLASSES and the classes of the data sets by name. None stands for "does not say"."""
    problems = []
    known = {name: names for name, names in classes.items() if names is not None}
    for name, names in known.items():
        if num_classes != len(names):
            problems.append(
                f"data set {name} has {len(names)} classes ({_shortened(names)}), MODEL.RETINANET.NUM_CLASSES is "
                f"{num_classes}: set {len(names)} or leave it out"
            )
    first = next(iter(known), None)
    for name, names in known.items():
        if first is not None and names != known[first]:
            problems.append(
                f"data sets {first} and {name} differ in their classes: [{_shortened(known[first])}] against "
                f"[{_shortened(names)}]; they need the same names in the same order of ids"
            )
    return problems


def _schedule_problems(cfg: CfgNode, num_processes: int) -> list[str]:
    solver = cfg.SOLVER
    problems = []
    if solver.IMS_PER_BATCH < 1 or solver.IMS_PER_BATCH % num_processes:
        problems.append(
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, the images of one step over all processes; "
            f"it must be a multiple of their number, {num_processes}"
        )
    if solver.MAX_ITER < 1:
        problems.append(f"SOLVER.MAX_ITER is {solver.MAX_ITER}; at least one iteration is needed")
    if list(solver.STEPS) != sorted(set(solver.STEPS)) or any(step <= 0 for step in solver.STEPS):
        problems.append(f"SOLVER.STEPS is {tuple(solver.STEPS)}; the iterations must be > 0 and rise")
    if solver.WARMUP_ITERS < 0:
        problems.append(f"SOLVER.WARMUP_ITERS is {solver.WARMUP_ITERS}; it must be >= 0")
    if solver.CHECKPOINT_PERIOD < 1:
        problems.append(f"SOLVER.CHECKPOINT_PERIOD is {solver.CHECKPOINT_PERIOD}; it must be >= 1")
    if not 0 < solver.BASE_LR < math.inf:
        problems.append(f"SOLVER.BASE_LR is {solver.BASE_LR}; it must be finite and > 0")
    if not 0 < solver.GAMMA <= 1:
        problems.append(
            f"SOLVER.GAMMA is {solver.GAMMA}; it must be in (0, 1], what a step leaves of the learning rate"
        )
    clipping = solver.CLIP_GRADIENTS
    if clipping.ENABLED and not clipping.CLIP_VALUE > 0:
        problems.append(f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE is {clipping.CLIP_VALUE}; it must be > 0")
    if not 0 <= cfg.DATALOADER.NUM_WORKERS <= _MOST_WORKERS:
        problems.append(f"DATALOADER.NUM_WORKERS is {cfg.DATALOADER.NUM_WORKERS}; it must be in 0 to {_MOST_WORKERS}")
    if cfg.SEED >= 2**32:
        problems.append(f"SEED is {cfg.SEED}; it must be below 2^32 (negative: random)")
    if solver.AMP.ENABLED and solver.AMP.DTYPE == "float16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        problems.append(
            "SOLVER.AMP.ENABLED is True, but float16 needs a GPU: set it to False, or SOLVER.AMP.DTYPE to bfloat16"
        )
    if not cfg.DATASETS.TRAIN:
        problems.append("DATASETS.TRAIN is empty; name a data set, or use --train-json")
    return problems


def _path_problems(cfg: CfgNode, training: bool) -> list[str]:
    problems = []
    weights = cfg.MODEL.WEIGHTS
    if "://" not in weights and weights and not os.path.isfile(weights):
        problems.append(f"MODEL.WEIGHTS is {cut(weights, 250)}: no such file; give a checkpoint, a URL, or '' for none")
    if not training and not weights:
        problems.append("--eval-only evaluates MODEL.WEIGHTS, which is empty; add MODEL.WEIGHTS <checkpoint>")
    taken = _in_the_way(Path(cfg.OUTPUT_DIR))
    if not cfg.OUTPUT_DIR or "://" in cfg.OUTPUT_DIR or "\0" in cfg.OUTPUT_DIR:
        problems.append(f"OUTPUT_DIR is {cfg.OUTPUT_DIR!r}; it must be a folder of this machine")
    elif taken:
        problems.append(f"OUTPUT_DIR is {cfg.OUTPUT_DIR}, whose {taken}; name another or move that")
    elif not is_writable(Path(cfg.OUTPUT_DIR)):
        problems.append(
            f"OUTPUT_DIR is {cut(cfg.OUTPUT_DIR, 250)}: not a folder that can be made and written; name another"
        )
    return problems


def _in_the_way(folder: Path) -> str:
    """What in OUTPUT_DIR a run could not write over, such as a link to nothing, and would meet late or wait for."""
    for name in (*_FOLDERS, *_FILES):
        path, is_file, is_folder = folder / name, os.path.isfile(folder / name), os.path.isdir(folder / name)
        if os.path.lexists(path) and not (is_folder if name in _FOLDERS else is_file):
            found = "a file" if is_file else "a folder" if is_folder else "a link to nothing, or a device"
            return f"{name} is {found}"
    return ""


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
