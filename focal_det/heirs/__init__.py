"""Losses that came after the focal loss, as functions on tensors: torch alone, as in `focal_det.losses`."""

from .. import losses  # noqa: F401 - first, to say what to do where PyTorch is missing
from .asymmetric import asymmetric_loss, asymmetric_loss_reference
from .class_balanced import class_balanced_focal_loss
from .federated import federated_focal_loss, sample_classes
from .quality_focal import quality_focal_loss, quality_focal_loss_reference
from .varifocal import varifocal_loss, varifocal_loss_reference

__all__ = [
    "asymmetric_loss",
    "asymmetric_loss_reference",
    "class_balanced_focal_loss",
    "federated_focal_loss",
    "quality_focal_loss",
    "quality_focal_loss_reference",
    "sample_classes",
    "varifocal_loss",
    "varifocal_loss_reference",
]
