"""Ground truth beside detections: the picture that says more than the table."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.evaluation import inference_context
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import Visualizer

_MIN_SIDE = 320  # smaller pictures are enlarged, so that labels can be read
_SHEET_COLUMNS = 2


def draw_detections(cfg: CfgNode, model: torch.nn.Module, mapper: Any, output_dir: Path) -> Path | None:
    """Draw MODEL.FOCAL_DET.DRAW_IMAGES pictures, evenly spread over the first test set.

    Args:
        model: in any mode, which it keeps.
        mapper: what the test loader applies to a picture's record.
        output_dir: gets `detections/<n>_<name>.png`, ground truth left and detections of at least
            DRAW_SCORE_THRESH right, and `detections.png`, a sheet of them.

    Returns:
        The sheet; None if there is nothing to draw.
    """
    name = cfg.DATASETS.TEST[0]
    records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    count = min(cfg.MODEL.FOCAL_DET.DRAW_IMAGES, len(records))
    if count == 0:
        return None
    folder = output_dir / "detections"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("[0-9][0-9]_*.png"):
        stale.unlink()
    pairs = []
    with inference_context(model), torch.no_grad():
        for place in range(count):
            record = records[place * len(records) // count]
            instances = model([mapper(record)])[0]["instances"].to("cpu")
            found = instances[instances.scores >= cfg.MODEL.FOCAL_DET.DRAW_SCORE_THRESH]
            picture = detection_utils.read_image(record["file_name"], format="RGB")
            pairs.append(_pair(picture, record["annotations"], found, list(metadata.thing_classes)))
            _write(folder / f"{place:02d}_{Path(record['file_name']).stem}.png", pairs[-1])
    sheet = output_dir / "detections.png"
    _write(sheet, _sheet(pairs))
    return sheet


def _pair(picture: np.ndarray, annotations: list[dict[str, Any]], found: Instances, names: list[str]) -> np.ndarray:
    """(H, 2W, 3) RGB."""
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    classes = [a["category_id"] for a in annotations]
    truth = _overlay(picture, np.array(boxes).reshape(-1, 4), classes, [names[i] for i in classes], len(names))
    classes = found.pred_classes.tolist()
    texts = [f"{names[i]} {100 * score:.0f}%" for i, score in zip(classes, found.scores.tolist(), strict=True)]
    guess = _overlay(picture, found.pred_boxes.tensor.numpy(), classes, texts, len(names))
    return np.concatenate([_titled(truth, "ground truth"), _titled(guess, "detections")], axis=1)


def _overlay(
    picture: np.ndarray, boxes: np.ndarray, classes: list[int], texts: list[str], num_classes: int
) -> np.ndarray:
    """Boxes in a colour for each class; Detectron2's own are random, and would disturb the run's random numbers."""
    scale = max(1.0, _MIN_SIDE / min(picture.shape[:2]))
    colours = [colorsys.hsv_to_rgb(i / num_classes, 1.0, 1.0) for i in classes]
    drawing = Visualizer(picture, scale=scale).overlay_instances(boxes=boxes, labels=texts, assigned_colors=colours)
    image: np.ndarray = drawing.get_image()
    return image


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    bar = np.full((24, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, title, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([bar, picture], axis=0)


def _sheet(pairs: list[np.ndarray]) -> np.ndarray:
    height, width = (max(pair.shape[axis] for pair in pairs) for axis in (0, 1))
    rows = -(-len(pairs) // _SHEET_COLUMNS)
    sheet = np.full((rows * height, min(len(pairs), _SHEET_COLUMNS) * width, 3), 255, np.uint8)
    for place, pair in enumerate(pairs):
        y, x = place // _SHEET_COLUMNS * height, place % _SHEET_COLUMNS * width
        sheet[y : y + pair.shape[0], x : x + pair.shape[1]] = pair
    return sheet


def _write(path: Path, picture: np.ndarray) -> None:
    if not cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        raise OSError(f"{path} cannot be written")
