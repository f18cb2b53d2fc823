"""Registered class losses: thin modules that read their constants from the configuration.

Each says in `reads` which constants it reads, as full keys: one that is set for another loss is refused. Their
constructors raise ValueError for a constant out of the range that its function documents.

A class loss takes logits (R, K), under autocast in half precision, and labels (R,) of one image, and returns their
summed loss, a scalar in float32. For that the logits of all levels are copied into one tensor. If it also has a
`batch_loss` of its own, that is called instead and nothing is copied: see `ElementwiseLoss`, which makes one of a
`Formula`. If it has a `select`, see `OHEMLoss`. One with `takes_quality` gets a third argument, see `QualityLoss` in
`heir_losses`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ..defaults import with_own_keys
from ..losses import cross_entropy_loss, select_hard_examples
from ..losses.cross_entropy import cross_entropy_formula
from ..losses.elementwise import elementwise_loss
from ..losses.focal import focal_formula
from ..losses.focal_star import focal_star_formula
from ..losses.formula import Formula
from ..losses.fused import batch_loss
from ..losses.hinge import hinge_formula
from ..losses.ohem import check_mining
from ..losses.triton_loss import KINDS, triton_missing

logger = logging.getLogger(__name__)
LOSS = "MODEL.FOCAL_DET.LOSS."


class ElementwiseLoss(nn.Module):
    """A loss of the family, each element of which depends on one logit alone.

    Args:
        formula: of the loss.
        triton: on GPUs by the kernels of `triton_loss`, which read the head's outputs in place.
    """

    def __init__(self, formula: Formula, *, triton: bool = False) -> None:
        super().__init__()
        self.formula = formula
        self.triton = triton

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (R, K) and labels (R,) to a scalar in float32."""
        weights = self.weights_of(labels.unsqueeze(0), logits.shape[-1])
        if weights is None:
            return elementwise_loss(logits, labels, self.formula, reduction="sum")
        one, levels = torch.ones(1, device=labels.device), [logits.unsqueeze(0)]
        return batch_loss(levels, labels.unsqueeze(0), one, self.formula, hand_over=False, weights=weights)

    def batch_loss(self, levels: Sequence[Tensor], labels: Tensor, divisors: Tensor) -> Tensor:
        """See `focal_det.losses.fused.batch_loss`."""
        weights = self.weights_of(labels, levels[0].shape[-1])
        missing = None
        if self.triton:
            has_kernel = self.formula.kind in KINDS and weights is None and not self.formula.is_by_class
            missing = triton_missing(labels.device) if has_kernel else f"no kernel computes this {type(self).__name__}"
        if missing:
            _say_once(f"MODEL.FOCAL_DET.SPEED.TRITON is on, but {missing}: the class loss runs without its kernels")
        use_triton = self.triton and missing is None
        return batch_loss(levels, labels, divisors, self.formula, use_triton=use_triton, weights=weights)

    def weights_of(self, labels: Tensor, num_classes: int) -> Tensor | None:
        """Return weights of the losses for labels (N, R), (N, 1 or R, 1 or K); None where all count alike."""
        return None


@functools.lru_cache(maxsize=16)
def _say_once(message: str) -> None:
    logger.warning(message)


class CrossEntropyLoss(ElementwiseLoss):
    """`cross_entropy_loss` without weights: the paper's starting point (section 5.1)."""

    reads: ClassVar[tuple[str, ...]] = ()

    @configurable
    def __init__(self, *, triton: bool = False) -> None:
        super().__init__(cross_entropy_formula(None), triton=triton)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"triton": with_own_keys(cfg).MODEL.FOCAL_DET.SPEED.TRITON}


class BalancedCrossEntropyLoss(ElementwiseLoss):
    """`cross_entropy_loss` with alpha (section 3.1; Table 1a)."""

    reads: ClassVar[tuple[str, ...]] = (LOSS + "ALPHA",)

    @configurable
    def __init__(self, *, alpha: float, triton: bool = False) -> None:
        super().__init__(cross_entropy_formula(alpha), triton=triton)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        extra = with_own_keys(cfg).MODEL.FOCAL_DET
        return {"alpha": extra.LOSS.ALPHA, "triton": extra.SPEED.TRITON}


class FocalLoss(ElementwiseLoss):
    """`focal_loss` (section 3.2; Table 1b). MODEL.RETINANET.FOCAL_LOSS_ALPHA < 0 means no alpha, as in Detectron2."""

    reads: ClassVar[tuple[str, ...]] = ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", "MODEL.RETINANET.FOCAL_LOSS_GAMMA")

    @configurable
    def __init__(self, *, alpha: float | None = 0.25, gamma: float = 2.0, triton: bool = False) -> None:
        super().__init__(focal_formula(alpha, gamma), triton=triton)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**focal_constants(cfg), "triton": with_own_keys(cfg).MODEL.FOCAL_DET.SPEED.TRITON}


def focal_constants(cfg: CfgNode) -> dict[str, float | None]:
    """Return alpha and gamma of `focal_loss`, by the keys that `FocalLoss` reads."""
    alpha = cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA
    return {"alpha": None if alpha < 0 else alpha, "gamma": cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA}


class FocalLossStar(ElementwiseLoss):
    """`focal_loss_star` (appendix A; Table 3)."""

    reads: ClassVar[tuple[str, ...]] = (LOSS + "GAMMA", LOSS + "BETA")

    @configurable
    def __init__(self, *, gamma: float, beta: float, triton: bool = False) -> None:
        super().__init__(focal_star_formula(gamma, beta), triton=triton)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        extra = with_own_keys(cfg).MODEL.FOCAL_DET
        return {"gamma": extra.LOSS.GAMMA, "beta": extra.LOSS.BETA, "triton": extra.SPEED.TRITON}


class HingeLoss(ElementwiseLoss):
    """`hinge_loss` (section 5.1, "Hinge Loss")."""

    reads: ClassVar[tuple[str, ...]] = (LOSS + "MARGIN",)

    @configurable
    def __init__(self, *, margin: float, triton: bool = False) -> None:
        super().__init__(hinge_formula(margin), triton=triton)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        extra = with_own_keys(cfg).MODEL.FOCAL_DET
        return {"margin": extra.LOSS.MARGIN, "triton": extra.SPEED.TRITON}


class OHEMLoss(nn.Module):
    """Cross-entropy on the hardest anchors of each image (section 5.1, "Online Hard Example Mining"; Table 1d)."""

    reads: ClassVar[tuple[str, ...]] = (LOSS + "BATCH_SIZE", LOSS + "NMS_THRESH")
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
        loss = with_own_keys(cfg).MODEL.FOCAL_DET.LOSS
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
    """`OHEMLoss` with three negatives to a positive after suppression (section 5.1; Table 1d, "OHEM 1:3")."""

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
