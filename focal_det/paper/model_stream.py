"""A trained model's outputs over a data set, picture after picture."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from torch import Tensor
from tqdm import tqdm

from ..engine.safe_weights import SafeCheckpointer


def stream_logits_and_labels(cfg: CfgNode, pictures: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Class logits (1, R, K) and labels (1, R) of the first test set's pictures, at the size of inference.

    Args:
        cfg: of a FocalRetinaNet; its first test set is registered, and MODEL.WEIGHTS are loaded.
        pictures: look at the first so many; None for all.
    """
    model = build_model(cfg).eval()
    SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    size = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    mapper = DatasetMapper(is_train=True, augmentations=[size], image_format=cfg.INPUT.FORMAT)  # with the objects
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TEST[0], filter_empty=False)[:pictures]
    loader = build_detection_test_loader(dicts, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)
    for batch in tqdm(loader, unit="picture", disable=None):
        with torch.inference_mode():
            yield model.class_logits_and_labels(batch)
