"""The class and box subnets of section 4, shared over the pyramid's levels, and two heads that it weighs against them.

Parameter names are those of Detectron2's RetinaNet, so its model-zoo weights load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from detectron2.config import CfgNode, configurable
from detectron2.layers import CycleBatchNormList, ShapeSpec, get_norm
from torch import Tensor, nn

from .levels import anchor_generator_of, head_sizes


class RetinaNetHead(nn.Module):
    """Two subnets of the same shape with parameters of their own.

    Args:
        in_channels: C of every level.
        num_levels: of the pyramid.
        num_classes: K.
        num_anchors: A at each location.
        num_convs: 3x3 convolutions with C filters and ReLU before the output layer; the paper's is 4.
        prior_prob: pi of section 3.3, in (0, 1): the score of every anchor before training.
        norm: of those convolutions: "" (the paper's: none), "GN", or "BN" and "SyncBN" with statistics of
            their own for each level.

    Raises:
        ValueError: prior outside (0, 1), negative number of convolutions, unknown norm.

    Attributes:
        boxes_by_class: whether there are deltas for each class, (N, A*K*4, H, W), and not for each anchor alone.
    """

    boxes_by_class: ClassVar[bool] = False

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_levels: int,
        num_classes: int,
        num_anchors: int,
        num_convs: int = 4,
        prior_prob: float = 0.01,
        norm: str = "",
    ) -> None:
        super().__init__()
        if num_convs < 0:
            raise ValueError(f"num_convs={num_convs} must be >= 0")
        if norm not in NORMS:
            raise ValueError(f'norm "{norm}" is not one of {", ".join(map(repr, NORMS))}')
        self.cls_subnet = _subnet(in_channels, num_convs, norm, num_levels)
        self.bbox_subnet = _subnet(in_channels, num_convs, norm, num_levels)
        self.cls_score = _conv(in_channels, num_anchors * num_classes)
        self.bbox_pred = _conv(in_channels, num_anchors * 4)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                _init(layer)
        # A thousand negatives to a positive would swamp the first steps if each began at a score of .5.
        assert self.cls_score.bias is not None
        nn.init.constant_(self.cls_score.bias, logit_of(prior_prob))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        return {
            **head_sizes(input_shape, anchor_generator_of(cfg, input_shape)),
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "num_convs": cfg.MODEL.RETINANET.NUM_CONVS,
            "prior_prob": cfg.MODEL.RETINANET.PRIOR_PROB,
            "norm": cfg.MODEL.RETINANET.NORM,
        }

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features (N, C, H, W) of each level to logits (N, A*K, H, W) and deltas (N, A*4, H, W) of each."""
        logits = [self.cls_score(self.cls_subnet(level)) for level in features]
        deltas = [self.bbox_pred(self.bbox_subnet(level)) for level in features]
        return logits, deltas


class ClassSpecificBoxHead(RetinaNetHead):
    """`RetinaNetHead` with deltas (N, A*K*4, H, W), of each anchor four for each class, which section 4 does without.

    A class is trained on the objects of its own; a detection has the box of its class. With one class it is
    `RetinaNetHead`.

    Args:
        in_channels, num_classes, num_anchors, others: see `RetinaNetHead`, which also says what is raised.
    """

    boxes_by_class: ClassVar[bool] = True

    @configurable
    def __init__(self, *, in_channels: int, num_classes: int, num_anchors: int, **others: Any) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes, num_anchors=num_anchors, **others)
        self.bbox_pred = _init(_conv(in_channels, num_anchors * num_classes * 4))


class SharedSubnetHead(RetinaNetHead):
    """`RetinaNetHead` whose two output layers see the same subnet, `cls_subnet`, as RPN's do.

    Args:
        sizes: see `RetinaNetHead`, which also says what is raised.
    """

    @configurable
    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        del self.bbox_subnet

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Do as `RetinaNetHead.forward`."""
        maps = [self.cls_subnet(level) for level in features]
        return [self.cls_score(level) for level in maps], [self.bbox_pred(level) for level in maps]


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


def _init(layer: nn.Conv2d) -> nn.Conv2d:
    """Give a convolution the weights that section 4.1 begins with: Gaussian of deviation .01, and biases of 0."""
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def logit_of(prior_prob: float) -> float:
    """Return log(pi / (1 - pi)), the logit of the prior; raise ValueError if it is outside (0, 1)."""
    if not 0 < prior_prob < 1:
        raise ValueError(f"prior_prob={prior_prob} is outside (0, 1)")
    return math.log(prior_prob) - math.log1p(-prior_prob)


NORMS = ("", "GN", "BN", "SyncBN")


def _subnet(channels: int, num_convs: int, norm: str, num_levels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers.append(_conv(channels, channels))
        if norm in ("BN", "SyncBN"):
            batch_norm = nn.BatchNorm2d if norm == "BN" else nn.SyncBatchNorm
            layers.append(CycleBatchNormList(num_levels, bn_class=batch_norm, num_features=channels))
        elif norm:
            layers.append(get_norm(norm, channels))
        layers.append(nn.ReLU(inplace=True))  # nobody needs what was before it: no second map is made
    return nn.Sequential(*layers)
