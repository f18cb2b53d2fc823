"""The card beside an exported file: what it detects, how it is fed, how good it is, and where it comes from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..evaluation.coco_scores import Evaluation
from ..inference.exported import INPUTS, OUTPUTS, Metadata

_SUFFIX = ".card.json"


def card_of(path: Path) -> Path:
    """Return the name of a file's card: mine.onnx.card.json beside mine.onnx."""
    return path.with_name(path.name + _SUFFIX)


def signature(cfg: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the inputs and outputs of a model's graph, each with its name, type and shape."""
    most = _detections(cfg)
    inputs = [("uint8", ["batch", 3, "height", "width"]), ("int64", ["batch", 2])]
    outputs = [("float32", ["batch", most, 4]), ("float32", ["batch", most]), ("int64", ["batch", most])]
    outputs.append(("int64", ["batch"]))
    first, second = (
        [{"name": name, "type": kind, "shape": shape} for name, (kind, shape) in zip(names, kinds, strict=True)]
        for names, kinds in ((INPUTS, inputs), (OUTPUTS, outputs))
    )
    return first, second


def facts_of_model(cfg: Any, *, in_graph: bool) -> dict[str, Any]:
    """Return how pixels are normalised, by the file's graph or not, and the thresholds of the detections."""
    retinanet = cfg.MODEL.RETINANET
    by = "the graph" if in_graph else "the model"
    return {
        "normalisation": {"mean": list(cfg.MODEL.PIXEL_MEAN), "std": list(cfg.MODEL.PIXEL_STD), "done_by": by},
        "thresholds": {
            "score": retinanet.SCORE_THRESH_TEST,
            "nms_iou": retinanet.NMS_THRESH_TEST,
            "detections_per_image": _detections(cfg),
        },
    }


def _detections(cfg: Any) -> int:
    """Return how many detections of an image the graph has room for."""
    retinanet = cfg.MODEL.RETINANET
    return min(int(cfg.TEST.DETECTIONS_PER_IMAGE), retinanet.TOPK_CANDIDATES_TEST * len(retinanet.IN_FEATURES))


def make_card(path: Path, name: str, metadata: Metadata, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Describe an exported file.

    Args:
        path: of the file, of which size and SHA-256 are taken.
        name: that it will have.
        facts: further entries, in the order in which they are to stand.
    """
    content = path.read_bytes()
    classes = zip(metadata.class_names, metadata.category_ids, strict=True)
    return {
        "file": name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "classes": [{"label": i, "name": name, "category_id": id_} for i, (name, id_) in enumerate(classes)],
        "preprocessing": {
            "channels": metadata.channels,
            "shorter_side": metadata.min_size,  # 0: not resized
            "longer_side_at_most": metadata.max_size,
            "tile": metadata.tile,
            "tile_overlap": metadata.overlap if metadata.tile else 0,
        },
        **facts,
    }


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """Write a card as JSON that people can read."""
    path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def scores_of(scores: Evaluation, name: str) -> dict[str, Any]:
    """Return the scores on a set as a card holds them, in percent, with null for what cannot be computed."""
    figures = {key: getattr(scores, key) for key in ("AP", "AP50", "AP75")}
    rounded = {key: None if math.isnan(value) else round(value, 2) for key, value in figures.items()}
    return {"set": name, "images": scores.images, "objects": scores.objects, **rounded}
