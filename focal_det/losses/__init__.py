"""The losses as functions on tensors: torch and torchvision alone, no configuration, no registry."""

try:
    import torchvision.ops  # noqa: F401 - first, to say what to do where it or torch is missing
except ImportError as error:
    raise ImportError(
        f"focal_det.losses needs PyTorch and torchvision, which cannot be imported here ({error}): install them with "
        "`pip install torch torchvision`, or with all that training needs, except Detectron2, with `pip install "
        "'focal_det[train]'`"
    ) from error

from .box import smooth_l1_loss
from .cross_entropy import cross_entropy_loss
from .focal import focal_loss, focal_loss_reference
from .focal_star import focal_loss_star, focal_loss_star_reference
from .hinge import hinge_loss, hinge_loss_reference
from .ohem import select_hard_examples
from .softmax import softmax_focal_loss

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
    "softmax_focal_loss",
]
