"""Draw ground truth beside detections during a training and at its end."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.evaluation import inference_context
from detectron2.structures import BoxMode

from ..data.statistics import evenly_spread
from ..inference.drawing import ON_SHEET, draw_pair, sheet, write_image
from ..inference.images import read_image
from ..output_layout import DRAWINGS, DRAWINGS_SHEET
from .hooks import PeriodicAndFinal
from .model_detector import evaluated_in_tiles, reading_cfg

logger = logging.getLogger(__name__)


class DrawDetections(PeriodicAndFinal):
    """Draw on the main process every `period` iterations (0: not before the end) and after the last."""

    def act(self) -> None:
        self.trainer.draw(self.trainer.cfg, self.trainer.model)


def draw_detections(cfg: CfgNode, model: torch.nn.Module) -> Path | None:
    """Draw MODEL.FOCAL_DET.DRAW_IMAGES images, evenly spread over the first test set.

    OUTPUT_DIR gets `detections/<n>_<name>.png`, ground truth left and detections of at least DRAW_SCORE_THRESH right,
    and `detections.png`, a sheet of them, at most 1600 pixels wide. The log says so where no detection has that score.
    The model may be in any mode, and keeps it. Returns the sheet; None if there is nothing to draw.
    """
    name = cfg.DATASETS.TEST[0]
    records, names = DatasetCatalog.get(name), list(MetadataCatalog.get(name).thing_classes)
    chosen = evenly_spread(records, cfg.MODEL.FOCAL_DET.DRAW_IMAGES)
    if not chosen:
        return None
    folder = Path(cfg.OUTPUT_DIR) / DRAWINGS
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("[0-9][0-9]_*.png"):
        stale.unlink()
    mapper, small_pairs = DatasetMapper(reading_cfg(cfg), is_train=False), []
    threshold, highest, shown = cfg.MODEL.FOCAL_DET.DRAW_SCORE_THRESH, 0.0, 0
    model = evaluated_in_tiles(cfg, model)
    with inference_context(model), torch.no_grad():
        for number, record in enumerate(chosen):
            instances = model([mapper(record)])[0]["instances"].to("cpu")
            found = instances[instances.scores >= threshold]
            highest, shown = max([highest, *instances.scores.tolist()]), shown + len(found)
            image, objects = read_image(record["file_name"]), record.get("annotations", ())
            boxes = np.array([BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects])
            truth = boxes, [a["category_id"] for a in objects]
            guess = found.pred_boxes.tensor.numpy(), found.pred_classes.tolist(), found.scores.tolist()
            path = folder / f"{number:02d}_{Path(record['file_name']).stem}.png"
            write_image(path, draw_pair(image, truth, guess, names))
            small_pairs.append(draw_pair(image, truth, guess, names, max_side=ON_SHEET))
    path = Path(cfg.OUTPUT_DIR) / DRAWINGS_SHEET
    write_image(path, sheet(small_pairs))
    said = f"Ground truth beside detections: {path}"
    if not shown:
        best = f"the highest is {highest:.4f}" if highest else "nothing was found"
        said += f"; no detection in these images reaches MODEL.FOCAL_DET.DRAW_SCORE_THRESH, {threshold:g}: {best}"
    logger.info(said)
    return path
