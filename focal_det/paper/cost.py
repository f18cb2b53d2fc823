"""The cost of the paper's rows: hours estimated before a training, and the time of an image measured after it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from ..checkpoint.safe_load import SafeCheckpointer
from ..config.load import load_config
from ..data.shapes import draw_image
from ..output_layout import CONFIG, FINAL_CHECKPOINT
from .results import Status
from .runs import SweepPlan, SweepRun, changed_keys

# Seconds per iteration of 16 images that Detectron2's MODEL_ZOO gives for its RetinaNet on 8 V100, by depth, at shorter
# sides of 640 to 800 px; its Faster R-CNN takes 2.23 times as long with ResNeXt-101-32x8d as with ResNet-101.
_SECONDS = {50: 0.205, 101: 0.291}
_RESNEXT = 0.638 / 0.286
_SIDES = (640, 672, 704, 736, 768, 800)
_GPUS = 8

_LONGER_TO_SHORTER = 4 / 3  # COCO's images are mostly 640 x 480

_MINIATURE_SECONDS = 0.4  # per iteration, evaluation included, as measured on a core with bfloat16 instructions


def gpu_hours(cfg: CfgNode) -> float | None:
    """Estimate the hours of a training on V100 by Detectron2's published times and the number of pixels.

    Neither what OHEM's selection adds nor the evaluation is included.

    Returns:
        The hours of all GPUs together; None for a depth without published times.
    """
    seconds = _SECONDS.get(cfg.MODEL.RESNETS.DEPTH)
    if seconds is None:
        return None
    if cfg.MODEL.RESNETS.NUM_GROUPS > 1:
        seconds *= _RESNEXT
    pixels, published = (statistics.mean(side**2 for side in sides) for sides in (cfg.INPUT.MIN_SIZE_TRAIN, _SIDES))
    return float(seconds * pixels / published * cfg.SOLVER.IMS_PER_BATCH / 16 * cfg.SOLVER.MAX_ITER * _GPUS / 3600)


def estimate(plans: Sequence[SweepPlan]) -> str:
    """Return what is left to run, each training once: a line in all, and before it one for each of several tables."""
    counted: set[SweepRun] = set()
    lines = []
    for plan in plans:
        missing = [run for run in plan.runs if run not in counted and _is_missing(run)]
        counted.update(missing)
        if len(plans) > 1:
            lines.append(f"{plan.table.name}: {_hours(plans, missing)[0] if missing else 'nothing left to run'}")
    total = ", ".join(_hours(plans, list(counted))) if counted else "nothing left to run"
    return "\n".join([*lines, f"Estimate: {total}."])


def _is_missing(run: SweepRun) -> bool:
    return not run.is_finished or bool(changed_keys(run))


def _hours(plans: Sequence[SweepPlan], missing: Sequence[SweepRun]) -> tuple[str, str]:
    """Return how many trainings take how long, by the finished ones of the plans if there are any, and by what."""
    iterations, count = sum(run.iterations for run in missing), f"{len(missing)} training{'s' * (len(missing) > 1)}"
    finished = [(run, run.record) for plan in plans for run in plan.runs if run.status is Status.DONE]
    seconds = [record.seconds / run.iterations for run, record in finished if record and record.seconds]
    if seconds:
        hours = statistics.mean(seconds) * iterations / 3600
        return f"{count}, {_duration(hours)} here", "by the finished ones' time"
    configs = {
        run.folder: plan.configs[name] for plan in plans for name, runs in plan.rows.items() for run in runs.values()
    }
    gpu = [gpu_hours(configs[run.folder]) if run.folder in configs else None for run in missing]
    if None in gpu:
        hours = _MINIATURE_SECONDS * iterations / 3600
        return (
            f"{count}, {_duration(hours)} on one core of an AMD EPYC",
            "and by the finished ones' time once there is one",
        )
    total, gpus = sum(hours or 0 for hours in gpu), plans[0].options.num_gpus
    return (
        f"{count}, {total:.0f} GPU-hours on V100, {total / gpus:.1f} hours on {gpus}",
        "by the times that Detectron2 publishes for its RetinaNet; evaluation and OHEM's selection come on top",
    )


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"


def image_size(cfg: CfgNode) -> tuple[int, int]:
    """Return height and width of a 4:3 image, COCO's most frequent shape, as the model is given it."""
    height = int(cfg.INPUT.MIN_SIZE_TEST)
    return height, min(round(height * _LONGER_TO_SHORTER), int(cfg.INPUT.MAX_SIZE_TEST))


def milliseconds(cfg: CfgNode, repeats: int) -> float:
    """Return the median time for one image from the input to the detections, after a first that does not count.

    Args:
        cfg: of the model; without MODEL.WEIGHTS it detects nothing, and the suppression has no work.
        repeats: images, >= 1.
    """
    model = build_model(cfg).eval()
    if cfg.MODEL.WEIGHTS:
        SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    size = image_size(cfg)
    drawn, _, _ = draw_image("val", 0, max(size))  # with objects to find, for a model that has learned them
    image = torch.from_numpy(cv2.resize(drawn, size[::-1])).permute(2, 0, 1)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.inference_mode():
            model([{"image": image}])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times[1:])


def trained_config(run: SweepRun) -> CfgNode | None:
    """Return the configuration of a finished training with its weights; None where these are not kept."""
    weights = run.folder / FINAL_CHECKPOINT
    if not run.metrics() or not weights.is_file():
        return None
    return load_config(run.folder / CONFIG, ["MODEL.WEIGHTS", str(weights)])
