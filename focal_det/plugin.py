"""Register the project's parts with Detectron2, so that a configuration can name them; happens on import, only here."""

from __future__ import annotations

from .registries import DENSE_HEAD_REGISTRY, DENSE_LOSS_REGISTRY

try:
    from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, META_ARCH_REGISTRY
except ImportError as error:
    raise ImportError(
        "focal_det trains and detects through Detectron2, which cannot be imported here "
        f"({error}). Run `make setup`, with DETECTRON2=<wheel, checkout or requirement> if it finds none by itself. "
        "The losses and the rest of the mathematics (focal_det.losses, focal_det.modeling.anchors, ...) work without."
    ) from error

from .modeling.anchor_generator import OctaveAnchorGenerator
from .modeling.dense_losses import DENSE_LOSSES
from .modeling.head import RetinaNetHead
from .modeling.retinanet import FocalRetinaNet

META_ARCH_REGISTRY.register(FocalRetinaNet)
ANCHOR_GENERATOR_REGISTRY.register(OctaveAnchorGenerator)
DENSE_HEAD_REGISTRY.register(RetinaNetHead)
for _loss in DENSE_LOSSES:
    DENSE_LOSS_REGISTRY.register(_loss)
