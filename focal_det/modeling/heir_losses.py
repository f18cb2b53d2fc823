"""Registered class losses that came after the focal loss: modules around the functions of `focal_det.heirs`.

They are class losses as `dense_losses` says. None has a kernel, so none reads MODEL.FOCAL_DET.SPEED.TRITON.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ..defaults import with_own_keys
from ..heirs.asymmetric import asymmetric_formula
from ..heirs.class_balanced import check_counts, label_weights
from ..heirs.federated import check_sampling, sample_classes
from ..heirs.quality_focal import quality_focal_formula
from ..heirs.varifocal import varifocal_formula
from ..losses.focal import focal_formula
from ..losses.formula import IGNORED, Formula
from ..losses.fused import batch_loss
from .dense_losses import LOSS, ElementwiseLoss, FocalLoss, focal_constants


class QualityLoss(nn.Module):
    """A loss whose target for an assigned anchor's own class is the quality of its box: the IoU with the object's.

    Args:
        formula: of the loss, with soft targets.
    """

    takes_quality: ClassVar[bool] = True

    def __init__(self, formula: Formula) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
        """Logits (R, K), labels (R,) and quality (R,) to a scalar in float32."""
        image = [logits.unsqueeze(0)], labels.unsqueeze(0), quality.new_ones(1), self.formula
        return batch_loss(*image, quality=quality.unsqueeze(0), hand_over=False)

    def batch_loss(self, levels: Sequence[Tensor], labels: Tensor, divisors: Tensor, quality: Tensor) -> Tensor:
        """See `focal_det.losses.fused.batch_loss`."""
        return batch_loss(levels, labels, divisors, self.formula, quality=quality)


class QualityFocalLoss(QualityLoss):
    """`quality_focal_loss`; its beta is MODEL.FOCAL_DET.LOSS.GAMMA, since LOSS.BETA is the shift of FL*."""

    reads: ClassVar[tuple[str, ...]] = (LOSS + "GAMMA",)

    @configurable
    def __init__(self, *, beta: float = 2.0) -> None:
        super().__init__(quality_focal_formula(beta))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"beta": with_own_keys(cfg).MODEL.FOCAL_DET.LOSS.GAMMA}


class VarifocalLoss(QualityLoss):
    """`varifocal_loss`."""

    reads: ClassVar[tuple[str, ...]] = (LOSS + "ALPHA", LOSS + "GAMMA")

    @configurable
    def __init__(self, *, alpha: float = 0.75, gamma: float = 2.0) -> None:
        super().__init__(varifocal_formula(alpha, gamma))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        loss = with_own_keys(cfg).MODEL.FOCAL_DET.LOSS
        return {"alpha": loss.ALPHA, "gamma": loss.GAMMA}


class AsymmetricLoss(ElementwiseLoss):
    """`asymmetric_loss`: the focal loss with a gamma for each sign, and without the negatives of low scores."""

    reads: ClassVar[tuple[str, ...]] = (LOSS + "GAMMA_POS", LOSS + "GAMMA_NEG", LOSS + "PROB_SHIFT")

    @configurable
    def __init__(self, *, gamma_pos: float, gamma_neg: float, prob_shift: float) -> None:
        super().__init__(asymmetric_formula(gamma_pos, gamma_neg, prob_shift))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        loss = with_own_keys(cfg).MODEL.FOCAL_DET.LOSS
        return {"gamma_pos": loss.GAMMA_POS, "gamma_neg": loss.GAMMA_NEG, "prob_shift": loss.PROB_SHIFT}


class ClassBalancedFocalLoss(ElementwiseLoss):
    """`class_balanced_focal_loss`; without counts it can be built, such as to detect, and not be trained on."""

    reads: ClassVar[tuple[str, ...]] = ("MODEL.RETINANET.FOCAL_LOSS_GAMMA", LOSS + "CB_BETA", LOSS + "CLASS_BOXES")

    @configurable
    def __init__(self, *, class_boxes: Sequence[int], beta: float, gamma: float) -> None:
        super().__init__(focal_formula(None, gamma))
        self.label_weights: Tensor  # (K + 1,)
        weights = label_weights(class_boxes, beta).float()
        self.register_buffer("label_weights", weights, persistent=False)  # the configuration has what they come from

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        loss = with_own_keys(cfg).MODEL.FOCAL_DET.LOSS
        return {
            "class_boxes": loss.CLASS_BOXES,
            "beta": loss.CB_BETA,
            "gamma": cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA,
        }

    def weights_of(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return the weight of each anchor, (N, R, 1)."""
        _check_key(LOSS + "CLASS_BOXES", len(self.label_weights) - 1, num_classes)
        return self.label_weights[labels.clamp(IGNORED, num_classes)].unsqueeze(-1)


class FederatedFocalLoss(ElementwiseLoss):
    """`federated_focal_loss` of classes that `sample_classes` draws anew in every step; of all in an evaluation.

    Without counts it can be built, such as to detect, and not be trained on.
    """

    reads: ClassVar[tuple[str, ...]] = (
        *FocalLoss.reads,
        *(LOSS + "FED_NUM_CLASSES", LOSS + "FED_FREQ_POWER", LOSS + "CLASS_IMAGES"),
    )

    @configurable
    def __init__(
        self,
        *,
        class_images: Sequence[int],
        num_classes: int,
        power: float,
        alpha: float | None = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__(focal_formula(alpha, gamma))
        check_counts("class_images", class_images)
        check_sampling(num_classes, power)
        if class_images and num_classes >= len(class_images):
            most = len(class_images) - 1
            advice = f"with all classes this is FocalLoss; set {LOSS}FED_NUM_CLASSES lower"
            raise ValueError(f"num_classes={num_classes} is outside [1, {most}]: {advice}")
        self.class_images: Tensor  # (K,)
        images = torch.tensor([float(n) for n in class_images], dtype=torch.float64)
        self.register_buffer("class_images", images, persistent=False)  # the configuration has them
        self.sample = functools.partial(sample_classes, num_classes=num_classes, power=power)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        loss = with_own_keys(cfg).MODEL.FOCAL_DET.LOSS
        return {
            "class_images": loss.CLASS_IMAGES,
            "num_classes": loss.FED_NUM_CLASSES,
            "power": loss.FED_FREQ_POWER,
            **focal_constants(cfg),
        }

    def weights_of(self, labels: Tensor, num_classes: int) -> Tensor | None:
        """Return 1 for the classes that count in each image, else 0, (N, 1, K)."""
        _check_key(LOSS + "CLASS_IMAGES", len(self.class_images), num_classes)
        if not self.training:  # a validation loss that is the same every time
            return None
        return self.sample(labels, self.class_images).float().unsqueeze(1)


def _check_key(key: str, count: int, num_classes: int) -> None:
    """Raise ValueError unless the key has a number for each class."""
    if count != num_classes:
        how = "" if count else ": a training by focal-det counts them, and saves them in config.yaml; else set the key"
        raise ValueError(f"{key} has {count} numbers, and there are {num_classes} classes{how}")


HEIR_LOSSES = (QualityFocalLoss, VarifocalLoss, AsymmetricLoss, ClassBalancedFocalLoss, FederatedFocalLoss)
