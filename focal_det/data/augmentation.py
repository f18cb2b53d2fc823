"""Augmentation of training images: INPUT's resizing, crop and flip, MODEL.FOCAL_DET.AUGMENT, and the user's own.

All of it is Detectron2's and draws from NumPy's generator alone, which `train_loader` seeds for each position in the
stream of images. So nothing random is kept, and a resumed run augments as an uninterrupted one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ..registries import AUGMENTATION_REGISTRY
from .image_mapper import ImageMapper

NAMES = "MODEL.FOCAL_DET.AUGMENT.NAMES"
Step = Any  # one of Detectron2's Augmentation or Transform, which have no types


def training_mapper(cfg: CfgNode) -> ImageMapper:
    """Build the mapper for training, with the augmentation of a configuration.

    Raises:
        TypeError: a function of AUGMENTATION_REGISTRY returns something else than augmentations.
    """
    options = ImageMapper.from_config(cfg, True)
    return ImageMapper(**{**options, "augmentations": _steps(cfg, options["augmentations"])})


def _steps(cfg: CfgNode, of_input: list[Step]) -> list[Step]:
    """Return the steps in their order: geometry on few pixels, after resizing, then colours, then one's own."""
    keys, steps = cfg.MODEL.FOCAL_DET.AUGMENT, list[Step]()
    for step in of_input:
        if not isinstance(step, T.ResizeShortestEdge):
            steps.append(step)
            continue
        steps.append(ScaleJitter(step, *keys.SCALE_JITTER) if keys.SCALE_JITTER else step)
        if keys.ROTATION:
            steps.append(T.RandomRotation([-keys.ROTATION, keys.ROTATION], expand=False))
    steps += _colours(keys, cfg.INPUT.FORMAT)
    for name in keys.NAMES:
        steps += own_steps(name, cfg)
    return steps


class ScaleJitter(T.Augmentation):
    """Large-scale jitter: resize by a random factor, then crop or pad to the size that factor 1 gives.

    So batches have the shapes that they have without it. The crop is at a random place; padding is grey, on the right
    and at the bottom.

    Args:
        resize: gives the size of factor 1.
        low, high: the factors' range, > 0.
    """

    def __init__(self, resize: T.ResizeShortestEdge, low: float, high: float) -> None:
        self.resize, self.low, self.high = resize, low, high

    def __call__(self, aug_input: T.AugInput) -> T.Transform:
        size = self.resize.get_transform(aug_input.image)
        height, width = size.new_h, size.new_w
        least = 1 / min(height, width)  # of a strip that is one pixel high, a smaller factor would leave nothing
        scale = T.ResizeScale(max(self.low, least), max(self.high, least), height, width)
        return T.AugmentationList([scale, T.FixedSizeCrop((height, width))])(aug_input)


def _colours(keys: CfgNode, image_format: str) -> list[Step]:
    steps: list[Step] = []
    if keys.BRIGHTNESS:
        steps.append(T.RandomBrightness(1 - keys.BRIGHTNESS, 1 + keys.BRIGHTNESS))
    if keys.CONTRAST:
        steps.append(T.RandomContrast(1 - keys.CONTRAST, 1 + keys.CONTRAST))
    of_rgb: list[Step] = []
    if keys.SATURATION:
        of_rgb.append(T.RandomSaturation(1 - keys.SATURATION, 1 + keys.SATURATION))
    if keys.LIGHTING:
        of_rgb.append(T.RandomLighting(255 * keys.LIGHTING))  # its components are those of values in [0, 1]
    if of_rgb and image_format == "BGR":
        swap = T.ColorTransform(_channels_reversed)
        of_rgb = [swap, *of_rgb, swap]
    return steps + of_rgb


def _channels_reversed(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:, :, ::-1])  # others' code may not take negative strides


def own_steps(name: str, cfg: CfgNode) -> list[Step]:
    """Make the steps that are registered by a name; raises TypeError if they are none."""
    made: Any = AUGMENTATION_REGISTRY.get(name)(cfg)
    steps = list(made) if isinstance(made, (list, tuple)) else [made]
    wrong = [type(step).__name__ for step in steps if not isinstance(step, (T.Augmentation, T.Transform))]
    if wrong:
        raise TypeError(
            f"{name} of {NAMES} returns {wrong[0]}; it has to return one of Detectron2's "
            "Augmentation or Transform, or a list of them"
        )
    return steps
