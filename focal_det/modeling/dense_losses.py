"""Registered class losses: thin modules that read their constants from the configuration."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ..losses import focal_loss


class FocalLoss(nn.Module):
    """`focal_loss` summed over an image. MODEL.RETINANET.FOCAL_LOSS_ALPHA < 0 means no alpha, as in Detectron2."""

    @configurable
    def __init__(self, *, alpha: float | None, gamma: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        alpha = cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA
        return {"alpha": None if alpha < 0 else alpha, "gamma": cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA}

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (R, K) and labels (R,) to a scalar in float32."""
        return focal_loss(logits, labels, alpha=self.alpha, gamma=self.gamma)
