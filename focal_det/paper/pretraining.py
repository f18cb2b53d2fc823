"""The backbone that a miniature's rows start from: a ResNet that has learnt to tell drawn shapes apart.

It is to them what ImageNet's is to the paper's: a classifier of whole images, trained by softmax and cross-entropy.
No detector and none of the losses that the rows compare had a part in it, so it favours none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from torch import Tensor, nn
from tqdm import trange

from ..data.shapes import CLASSES, draw_image
from ..environment import has_bfloat16
from ..errors import TrainingError
from ..files import written_whole

BACKBONE_STEPS = 600
_BATCH = 64
_SIDE = 32  # of a crop, in pixels
_SCENE_SIDE = 128  # of the images that they are cut from
_RATE = 3e-4
_WARMUP = 30  # steps
_SEED = 0
_TESTED = 1000  # crops


def train_backbone(cfg: CfgNode, file: Path, *, steps: int = BACKBONE_STEPS) -> float:
    """Train the ResNet of a configuration as a classifier and write it as the backbone of a detector with FPN.

    On the processor, and the same on every start: crops and weights follow from constants alone.

    Args:
        cfg: of a row; what it says of the ResNet and the pixels is read.
        file: gets the weights, whole or not at all.
        steps: of 64 crops each.

    Returns:
        The share of crops of the other split that are classified rightly.

    Raises:
        TrainingError: the loss became non-finite.
        OSError: the file cannot be written.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED)
        classifier = _Classifier(cfg)
    _train(classifier, steps)
    share = _accuracy(classifier)
    weights = {f"backbone.bottom_up.{name}": value for name, value in classifier.resnet.state_dict().items()}
    with written_whole(file) as partial:
        torch.save({"model": weights}, partial)
    return share


class _Classifier(nn.Module):
    """The ResNet with an average over its last map and a linear layer."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
        self.resnet = build_resnet_backbone(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
        self.linear = nn.Linear(self.resnet.output_shape()["res5"].channels, len(CLASSES))
        self.mean, self.std = (
            nn.Buffer(torch.tensor(list(of_pixels)).view(-1, 1, 1), persistent=False)
            for of_pixels in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
        )

    def forward(self, crops: Tensor) -> Tensor:
        """Crops (N, 3, H, W) uint8 to logits (N, K)."""
        images = ((crops - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16("cpu")):
            features = self.resnet(images)["res5"]
        logits: Tensor = self.linear(features.float().mean(dim=(2, 3)))
        return logits


def _train(classifier: _Classifier, steps: int) -> None:
    # SGD, at a rate that learns in so few steps, makes this ResNet with its group norm diverge in the first of them.
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=_RATE, weight_decay=0.05)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=_WARMUP)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - _WARMUP))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], [_WARMUP])
    batches = _batches("train")
    with trange(steps, desc="training a backbone", unit="it", disable=None) as bar:
        for _ in bar:
            crops, labels = next(batches)
            loss = F.cross_entropy(classifier(crops), labels)
            if not loss.isfinite():
                raise TrainingError(f"the backbone's loss is {loss.item()}; no row can start without it")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


@torch.no_grad()
def _accuracy(classifier: _Classifier) -> float:
    classifier.eval()
    right = total = 0
    for crops, labels in _batches("val"):
        right += int((classifier(crops).argmax(dim=1) == labels).sum())
        total += len(labels)
        if total >= _TESTED:
            return right / total
    raise AssertionError("the crops have no end")


def _batches(split: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield crops (N, 3, side, side) uint8 BGR of one object each and its class (N,), without an end."""
    rng = np.random.default_rng(_SEED)
    crops: list[np.ndarray] = []
    labels: list[int] = []
    index = 0
    while True:
        image, boxes, classes = draw_image(split, index, _SCENE_SIDE)
        index += 1
        for box, label in zip(boxes, classes.tolist(), strict=True):
            crop = _cut(image, box, rng)
            crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
            labels.append(label)
        while len(crops) >= _BATCH:
            batch = np.ascontiguousarray(np.stack(crops[:_BATCH]).transpose(0, 3, 1, 2))
            yield torch.from_numpy(batch), torch.tensor(labels[:_BATCH])
            del crops[:_BATCH], labels[:_BATCH]


def _cut(image: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut a square of 1.1 to 1.8 times an object's longer side that holds all of it; resize it to (side, side, 3)."""
    longer = float((box[2:] - box[:2]).max())
    side = longer * rng.uniform(1.1, 1.8)
    corner = box[2:] - side + rng.random(2) * (side - (box[2:] - box[:2]))
    scale = _SIDE / side
    matrix = np.array([[scale, 0, -corner[0] * scale], [0, scale, -corner[1] * scale]])
    flags = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.warpAffine(image, matrix, (_SIDE, _SIDE), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
