"""Registered class losses: thin modules that read their constants from the configuration.

Each says in `reads` which configuration keys it reads, in full: a key that is set for another loss is refused. Their
constructors raise ValueError for a constant out of the range that its function documents.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ..losses import cross_entropy_loss, focal_loss, focal_loss_star, hinge_loss, select_hard_examples
from ..losses.elementwise import check_alpha
from ..losses.focal import check_gamma
from ..losses.focal_star import check_star_constants
from ..losses.hinge import check_margin
from ..losses.mining import check_mining

_LOSS = "MODEL.FOCAL_DET.LOSS."


class CrossEntropyLoss(nn.Module):
    """`cross_entropy_loss` without weights: the paper's starting point (section 5.1)."""

    reads: ClassVar[tuple[str, ...]] = ()

    @configurable
    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {}

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (R, K) and labels (R,) to a scalar in float32."""
        return cross_entropy_loss(logits, labels)


class BalancedCrossEntropyLoss(nn.Module):
    """`cross_entropy_loss` with alpha (section 3.1; Table 1a)."""

    reads: ClassVar[tuple[str, ...]] = (_LOSS + "ALPHA",)

    @configurable
    def __init__(self, *, alpha: float) -> None:
        super().__init__()
        check_alpha(alpha)
        self.alpha = alpha

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"alpha": cfg.MODEL.FOCAL_DET.LOSS.ALPHA}

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (R, K) and labels (R,) to a scalar in float32."""
        return cross_entropy_loss(logits, labels, alpha=self.alpha)


class FocalLoss(nn.Module):
    """`focal_loss` (section 3.2; Table 1b). MODEL.RETINANET.FOCAL_LOSS_ALPHA < 0 means no alpha, as in Detectron2."""

    reads: ClassVar[tuple[str, ...]] = ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", "MODEL.RETINANET.FOCAL_LOSS_GAMMA")

    @configurable
    def __init__(self, *, alpha: float | None, gamma: float) -> None:
        super().__init__()
        check_alpha(alpha)
        check_gamma(gamma)
        self.alpha = alpha
        self.gamma = gamma

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        alpha = cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA
        return {"alpha": None if alpha < 0 else alpha, "gamma": cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA}

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (R, K) and labels (R,) to a scalar in float32."""
        return focal_loss(logits, labels, alpha=self.alpha, gamma=self.gamma)


class FocalLossStar(nn.Module):
    """`focal_loss_star` (appendix A; Table 3)."""

    reads: ClassVar[tuple[str, ...]] = (_LOSS + "GAMMA", _LOSS + "BETA")

    @configurable
    def __init__(self, *, gamma: float, beta: float) -> None:
        super().__init__()
        check_star_constants(gamma, beta)
        self.gamma = gamma
        self.beta = beta

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"gamma": cfg.MODEL.FOCAL_DET.LOSS.GAMMA, "beta": cfg.MODEL.FOCAL_DET.LOSS.BETA}

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (R, K) and labels (R,) to a scalar in float32."""
        return focal_loss_star(logits, labels, gamma=self.gamma, beta=self.beta)


class HingeLoss(nn.Module):
    """`hinge_loss` (section 5.1, "Hinge Loss")."""

    reads: ClassVar[tuple[str, ...]] = (_LOSS + "MARGIN",)

    @configurable
    def __init__(self, *, margin: float) -> None:
        super().__init__()
        check_margin(margin)
        self.margin = margin

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"margin": cfg.MODEL.FOCAL_DET.LOSS.MARGIN}

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (R, K) and labels (R,) to a scalar in float32."""
        return hinge_loss(logits, labels, margin=self.margin)


class OHEMLoss(nn.Module):
    """Cross-entropy on the hardest anchors of each image (section 5.1, "Online Hard Example Mining"; Table 1d)."""

    reads: ClassVar[tuple[str, ...]] = (_LOSS + "BATCH_SIZE", _LOSS + "NMS_THRESH")
    positive_fraction: ClassVar[float | None] = None

    # Anchors scored at a time, so that no float32 copy of all logits is made.
    _ROWS = 8192

    @configurable
    def __init__(self, *, batch_size: int, nms_threshold: float) -> None:
        super().__init__()
        check_mining(batch_size, nms_threshold, self.positive_fraction)
        self.batch_size = batch_size
        self.nms_threshold = nms_threshold

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        loss = cfg.MODEL.FOCAL_DET.LOSS
        return {"batch_size": loss.BATCH_SIZE, "nms_threshold": loss.NMS_THRESH}

    @torch.no_grad()
    def select(self, logits: Tensor, labels: Tensor, anchors: Tensor) -> Tensor:
        """Labels (R,) with every anchor ignored that `select_hard_examples` drops; anchors (R, 4) are its boxes."""
        losses = [
            cross_entropy_loss(*rows, reduction="none").sum(dim=-1)
            for rows in zip(logits.split(self._ROWS), labels.split(self._ROWS), strict=True)
        ]
        kept = select_hard_examples(
            torch.cat(losses),
            anchors,
            labels,
            batch_size=self.batch_size,
            nms_threshold=self.nms_threshold,
            positive_fraction=self.positive_fraction,
            num_classes=logits.shape[-1],
        )
        return torch.full_like(labels, -1).index_copy(0, kept, labels[kept])

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (R, K) and the labels that `select` left (R,) to a scalar in float32."""
        kept = labels >= 0
        return cross_entropy_loss(logits[kept], labels[kept])


class OHEMOneToThreeLoss(OHEMLoss):
    """As `OHEMLoss`, with three negatives to a positive after suppression (section 5.1; Table 1d, "OHEM 1:3")."""

    positive_fraction: ClassVar[float | None] = 0.25


DENSE_LOSSES = (
    CrossEntropyLoss,
    BalancedCrossEntropyLoss,
    FocalLoss,
    FocalLossStar,
    HingeLoss,
    OHEMLoss,
    OHEMOneToThreeLoss,
)
