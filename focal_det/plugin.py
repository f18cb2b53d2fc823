"""Register the project's parts with Detectron2, so that a configuration can name them; happens on import, only here."""

from __future__ import annotations

from .extras import training_message

try:
    import torch  # noqa: F401 - first, since where both are missing it comes first
    from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, META_ARCH_REGISTRY
except ImportError as error:
    raise ImportError(training_message(error)) from error

from .modeling.anchor_generator import OctaveAnchorGenerator
from .modeling.assigners import ASSIGNERS
from .modeling.dense_losses import DENSE_LOSSES
from .modeling.head import ClassSpecificBoxHead, RetinaNetHead, SharedSubnetHead
from .modeling.heir_losses import HEIR_LOSSES
from .modeling.retinanet import FocalRetinaNet
from .registries import ASSIGNER_REGISTRY, DENSE_HEAD_REGISTRY, DENSE_LOSS_REGISTRY

META_ARCH_REGISTRY.register(FocalRetinaNet)
ANCHOR_GENERATOR_REGISTRY.register(OctaveAnchorGenerator)
for _head in (RetinaNetHead, ClassSpecificBoxHead, SharedSubnetHead):
    DENSE_HEAD_REGISTRY.register(_head)
for _assigner in ASSIGNERS:
    ASSIGNER_REGISTRY.register(_assigner)
for _loss in (*DENSE_LOSSES, *HEIR_LOSSES):
    DENSE_LOSS_REGISTRY.register(_loss)
