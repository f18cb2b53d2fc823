"""The backbone that a miniature's rows start from: a ResNet with its pyramid that has learnt what drawn images show.

It is to them what ImageNet's is to the paper's: every place of every level is classified, as one of the classes or as
background, by softmax and cross-entropy. No detector and none of the losses that the rows compare had a part in it, so
it favours none of them. The pyramid is part of it, which the paper's rows begin anew: their 90,000 iterations can.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from torch import Tensor, nn
from tqdm import trange

from ..checkpoint.integrity import DamagedError, contents, save_plain
from ..config.layers import plain_values
from ..data.shapes import CLASSES, draw_image
from ..environment import has_bfloat16
from ..errors import Findings, TrainingError, some
from ..files import written_whole
from .runs import changes

BACKBONE_STEPS = 1000
_BATCH = 16
_SIDE = 128  # of an image, in pixels
_LEVELS = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}  # and their strides; all that any row's pyramid has from the ResNet
_RATE = 1e-3
_WARMUP = 30  # steps
_SEED = 0
_TESTED = 128  # images
_LOGGED = 100  # steps
_TRAINED_WITH = "trained_with"  # beside the weights


class _Batch(NamedTuple):
    images: Tensor  # (N, 3, side, side) uint8 BGR
    classes: dict[str, Tensor]  # of each level's places, (N, side / stride, side / stride) int64; K is background


def train_backbone(cfg: CfgNode, file: Path, *, steps: int = BACKBONE_STEPS) -> float:
    """Train the ResNet of a configuration with a pyramid by dense classification, and write both as a backbone.

    On the processor, and the same on every start: images and weights follow from constants alone. What a pyramid has
    above P5 is not trained and not written.

    Args:
        cfg: of a row; what `backbone_keys` has of it is read.
        file: gets the weights and what they follow from, whole or not at all.
        steps: of 16 images each.

    Returns:
        The share of the places on objects, in images of the other split, that get the object's class.

    Raises:
        TrainingError: the loss became non-finite.
        OSError: the file cannot be written; names it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED)
        classifier = _Classifier(cfg)
    _train(classifier, steps)
    share = _accuracy(classifier)
    state = classifier.backbone.state_dict()
    weights = {f"backbone.{name}": value for name, value in state.items() if not name.startswith("top_block.")}
    with written_whole(file) as partial:
        save_plain({"model": weights, _TRAINED_WITH: trained_with(cfg, steps)}, partial)
    return share


def backbone_keys(cfg: CfgNode) -> dict[str, Any]:
    """Return what a backbone follows from in a configuration, by dotted key."""
    read = ("MODEL.RESNETS.", "MODEL.FPN.", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")
    chosen_here = ("MODEL.RESNETS.OUT_FEATURES", "MODEL.FPN.IN_FEATURES")  # by `_Classifier`
    return {key: value for key, value in plain_values(cfg).items() if key.startswith(read) and key not in chosen_here}


def trained_with(cfg: CfgNode, steps: int) -> dict[str, Any]:
    """Return all that a backbone follows from: keys of the configuration, and the constants of its training."""
    constants = {"steps": steps, "images of a step": _BATCH, "side": _SIDE, "rate": _RATE, "seed": _SEED}
    return {**backbone_keys(cfg), **constants}


def check_backbone(file: Path, cfg: CfgNode) -> Findings:
    """Find that a backbone that is there was not trained for this configuration by `train_backbone`."""
    advice = "move it away, name another --out, or start from it by MODEL.WEIGHTS"
    try:
        before = contents(file).get(_TRAINED_WITH)
    except DamagedError as error:
        return Findings([f"{file}: {error}; {advice}"])
    if not isinstance(before, dict):
        return Findings([f"{file} does not say what it was trained with; {advice}"])
    if changed := changes(before, trained_with(cfg, BACKBONE_STEPS)):
        return Findings([f"{file} was trained with another configuration ({some('', changed)}); {advice}"])
    return Findings()


class _Classifier(nn.Module):
    """The backbone with one linear layer for the places of all levels."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"  # whose level above P5 has no weights
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
        self.backbone = build_backbone(cfg)
        self.linear = nn.Conv2d(cfg.MODEL.FPN.OUT_CHANNELS, len(CLASSES) + 1, 1)
        self.mean, self.std = (
            nn.Buffer(torch.tensor(list(of_pixels)).view(-1, 1, 1), persistent=False)
            for of_pixels in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) uint8 to logits (N, K + 1, H / stride, W / stride) of each level."""
        images = (images - self.mean) / self.std
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16("cpu")):
            features = self.backbone(images)
        return {level: self.linear(features[level].float()) for level in _LEVELS}


def _train(classifier: _Classifier, steps: int) -> None:
    # SGD, at a rate that learns in so few steps, makes this ResNet with its group norm diverge in the first of them.
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=_RATE, weight_decay=0.05)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=_WARMUP)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - _WARMUP))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], [_WARMUP])
    batches = _batches("train")
    with trange(steps, desc="training a backbone", unit="it", disable=None) as bar:
        for step in bar:
            batch = next(batches)
            logits = classifier(batch.images)
            losses = [F.cross_entropy(logits[level], classes) for level, classes in batch.classes.items()]
            loss = torch.stack(losses).sum()
            if not loss.isfinite():
                raise TrainingError(f"the backbone's loss is {loss.item()}; no row can start without it")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if bar.disable and (step + 1) % _LOGGED == 0:  # not a terminal
                print(f"training a backbone: {step + 1} of {steps} steps, loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def _accuracy(classifier: _Classifier) -> float:
    classifier.eval()
    right = total = tested = 0
    for batch in _batches("val"):
        logits = classifier(batch.images)
        for level, classes in batch.classes.items():
            is_object = classes < len(CLASSES)
            right += int((logits[level].argmax(dim=1) == classes)[is_object].sum())
            total += int(is_object.sum())
        tested += len(batch.images)
        if tested >= _TESTED:
            return right / total
    raise AssertionError("the images have no end")


def _batches(split: str) -> Iterator[_Batch]:
    """Yield batches of drawn images, none of them twice, without an end."""
    index = 0
    while True:
        drawn = [draw_image(split, index + place, _SIDE) for place in range(_BATCH)]
        index += _BATCH
        images = np.ascontiguousarray(np.stack([image for image, _, _ in drawn]).transpose(0, 3, 1, 2))
        classes = {
            level: torch.from_numpy(np.stack([_classes_of_places(boxes, labels, stride) for _, boxes, labels in drawn]))
            for level, stride in _LEVELS.items()
        }
        yield _Batch(torch.from_numpy(images), classes)


def _classes_of_places(boxes: np.ndarray, labels: np.ndarray, stride: int) -> np.ndarray:
    """Return the class of the smallest box around the middle of each place, (side / stride, side / stride)."""
    middles = (np.arange(_SIDE // stride) + 0.5) * stride
    found = np.full((len(middles), len(middles)), len(CLASSES), np.int64)
    for place in np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable"):
        x, y = ((boxes[place, axis] <= middles) & (middles < boxes[place, axis + 2]) for axis in (0, 1))
        found[np.ix_(y, x)] = labels[place]
    return found
