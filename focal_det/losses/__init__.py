"""The losses as functions on tensors: torch alone, no configuration, no registry."""

from .box import smooth_l1_loss
from .cross_entropy import cross_entropy_loss
from .focal import focal_loss
from .focal_star import focal_loss_star
from .hinge import hinge_loss
from .ohem import select_hard_examples
from .reference import focal_loss_reference, focal_loss_star_reference, hinge_loss_reference

__all__ = [
    "cross_entropy_loss",
    "focal_loss",
    "focal_loss_reference",
    "focal_loss_star",
    "focal_loss_star_reference",
    "hinge_loss",
    "hinge_loss_reference",
    "select_hard_examples",
    "smooth_l1_loss",
]
