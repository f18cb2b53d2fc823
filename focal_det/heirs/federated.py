"""The federated loss over classes, by sampling (Zhou et al., "Probabilistic two-stage detection", 2021, for LVIS).

In LVIS (Gupta et al., 2019) an image is annotated for some of the classes alone, so most of its negatives are only
presumed, and a rare class drowns in them. For each image a set S of classes is drawn anew in every step:

    S holds every class that the image has, and of the others as many as make |S| = 50 in all, drawn without
    replacement with probabilities in proportion to the square root of the number of training images with the class.
    The loss is the focal loss of the binary problems of the classes in S; the others have neither loss nor gradient.

An image has a class if an anchor is labelled with it, as in the authors' code a proposal is. An annotated class none of
whose objects has an anchor is therefore not sure to be in S: with `match_best_anchor` where no anchor touches them or
other objects take their best ones, without it also where no IoU reaches the threshold. No positive is lost by that,
since the class has none there; it may be drawn as any other, and then has the loss of its negatives.

An image that has 50 classes or more keeps them all, and no other. gamma = 0 without alpha is the authors'
cross-entropy. Their code draws a set for the images of a GPU together; here each image has its own, as in the text, so
that the classes of an image do not depend on which others come with it, or in how many parts a batch is passed.

The other definition, to count an image's negatives only for the classes that its annotators have looked for (LVIS's
neg_category_ids), is not what trains best: the authors found the background too weak then. And it needs
annotations that hardly any other data set has.

The numbers are drawn by the exponential race: of independent exponential times with the classes' rates, the earliest
ones belong to a sample without replacement. They come from PyTorch's generator of the processor, which a training seeds
for each step, so that a resumed run draws what the first would have drawn.
"""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from ..losses.elementwise import check_logits, reduced
from ..losses.focal import focal_loss
from ..losses.formula import can_be_looked_at, check_number

_MOST_CLASSES, _MOST_POWER = 100_000, 10.0


def federated_focal_loss(
    logits: Tensor,
    labels: Tensor,
    counted: Tensor,
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "sum",
) -> Tensor:
    """The focal loss of the classes that count in each image.

    Args:
        logits: (N, R, K) of N images.
        labels: (N, R) int64 class indices, or (N, R, K) float targets. See `elementwise_loss`, which also says what is
            returned and raised.
        counted: (N, K) bool, such as `sample_classes` draws.
        alpha, gamma: see `focal_loss`.
        reduction: "sum", "mean" over every element, also of classes that do not count, or "none".

    Raises:
        ValueError: `counted` of another shape.
        TypeError: `counted` of another type.
    """
    check_logits(logits, labels, reduction)
    if not isinstance(counted, Tensor) or counted.dtype != torch.bool:
        raise TypeError(f"counted must be a bool tensor, not {getattr(counted, 'dtype', type(counted).__name__)}")
    if logits.dim() != 3 or counted.shape != (len(logits), logits.shape[-1]):
        raise ValueError(f"counted {tuple(counted.shape)} must be (N, K) of logits (N, R, K), {tuple(logits.shape)}")
    # masked_fill, not a product: a class that does not count has neither loss nor gradient, whatever its logit is
    left_out = ~counted.unsqueeze(1)
    losses = focal_loss(logits.masked_fill(left_out, 0), labels, alpha=alpha, gamma=gamma, reduction="none")
    return reduced(losses.masked_fill(left_out, 0), reduction)


def sample_classes(labels: Tensor, class_images: Tensor, *, num_classes: int = 50, power: float = 0.5) -> Tensor:
    """Draw the classes that count in each image, (N, K) bool.

    Args:
        labels: (N, R) int64, 0..K-1 class; all others are of no class, such as K, background, and -1, ignored.
        class_images: (K,) floating point, on the same device: numbers above 0 of training images that have the class.
        num_classes: how many count in an image, unless it has more.
        power: of the number of images, to which probabilities are proportional; 0 draws every class alike.

    Raises:
        ValueError: a number of images that is not above 0 (not looked at on a GPU); otherwise see `check_sampling`.
        TypeError: labels or `class_images` of another type or number of dimensions; otherwise see `check_sampling`.
    """
    check_sampling(num_classes, power)
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.dim() != 2:
        raise TypeError(f"labels must be an int64 tensor (N, R), not {_given(labels)}")
    if not isinstance(class_images, Tensor) or not class_images.is_floating_point() or class_images.dim() != 1:
        raise TypeError(f"class_images must be a floating point tensor (K,), not {_given(class_images)}")
    if can_be_looked_at(class_images) and not (class_images > 0).all():
        wrong = int((~(class_images > 0)).nonzero()[0])
        raise ValueError(f"class_images[{wrong}]={class_images[wrong].item():g} must be above 0")
    count, num_all = len(labels), len(class_images)
    own = torch.where((labels < 0) | (labels > num_all), num_all, labels)
    has = torch.zeros(count, num_all + 1, dtype=torch.bool, device=labels.device).scatter_(1, own, True)[:, :num_all]
    # On the processor whatever the device: its numbers are the same for any split of the images into parts.
    uniform = torch.rand(count, num_all, dtype=torch.float64).to(labels.device, non_blocking=True)
    times = -torch.log1p(-uniform) / class_images.double() ** power
    first = times.masked_fill(has, -1.0).topk(min(num_classes, num_all), dim=1, largest=False).indices
    return has | torch.zeros_like(has).scatter_(1, first, True)


def _given(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def check_sampling(num_classes: int, power: float) -> None:
    """Raise ValueError or TypeError unless so many classes can be drawn by that power."""
    if not isinstance(num_classes, Integral) or isinstance(num_classes, bool):
        raise TypeError(f"num_classes={num_classes!r} must be an integer, not {type(num_classes).__name__}")
    if not 1 <= num_classes <= _MOST_CLASSES:
        raise ValueError(f"num_classes={num_classes} is outside [1, {_MOST_CLASSES}]")
    check_number("power", power)
    if not 0 <= power <= _MOST_POWER:
        raise ValueError(f"power={power} is outside [0, {_MOST_POWER:g}]")
