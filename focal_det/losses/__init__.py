"""The losses as functions on tensors: torch alone, no configuration, no registry."""

from .box import smooth_l1_loss
from .focal import focal_loss, focal_loss_reference

__all__ = ["focal_loss", "focal_loss_reference", "smooth_l1_loss"]
