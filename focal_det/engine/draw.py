"""Ground truth beside detections: the picture that says more than the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_context
from detectron2.structures import BoxMode, Instances

from ..data.spread import evenly_spread
from ..inference.drawing import ON_SHEET, draw_pair, sheet, write_picture
from ..inference.pictures import read_picture


def draw_detections(cfg: CfgNode, model: torch.nn.Module, mapper: Any, output_dir: Path) -> Path | None:
    """Draw MODEL.FOCAL_DET.DRAW_IMAGES pictures, evenly spread over the first test set.

    Args:
        model: in any mode, which it keeps.
        mapper: what the test loader applies to a picture's record.
        output_dir: gets `detections/<n>_<name>.png`, ground truth left and detections of at least
            DRAW_SCORE_THRESH right, and `detections.png`, a sheet of them, at most 1600 pixels wide.

    Returns:
        The sheet; None if there is nothing to draw.
    """
    name = cfg.DATASETS.TEST[0]
    records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    chosen = evenly_spread(records, cfg.MODEL.FOCAL_DET.DRAW_IMAGES)
    if not chosen:
        return None
    folder = output_dir / "detections"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("[0-9][0-9]_*.png"):
        stale.unlink()
    names, small_pairs = list(metadata.thing_classes), []
    with inference_context(model), torch.no_grad():
        for place, record in enumerate(chosen):
            instances = model([mapper(record)])[0]["instances"].to("cpu")
            found = instances[instances.scores >= cfg.MODEL.FOCAL_DET.DRAW_SCORE_THRESH]
            picture = read_picture(record["file_name"])
            pair = _pair(picture, record["annotations"], found, names)
            write_picture(folder / f"{place:02d}_{Path(record['file_name']).stem}.png", pair)
            small_pairs.append(_pair(picture, record["annotations"], found, names, ON_SHEET))
    path = output_dir / "detections.png"
    write_picture(path, sheet(small_pairs))
    return path


def _pair(
    picture: np.ndarray,
    annotations: list[dict[str, Any]],
    found: Instances,
    names: list[str],
    max_side: int | None = None,
) -> np.ndarray:
    """Ground truth and detections of a picture (H, W, 3) BGR, beside each other."""
    boxes = np.array([BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations])
    guess = found.pred_boxes.tensor.numpy(), found.pred_classes.tolist(), found.scores.tolist()
    return draw_pair(picture, (boxes, [a["category_id"] for a in annotations]), guess, names, max_side=max_side)
