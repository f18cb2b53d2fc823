"""The detectors that are compared, with the same weights where they are the same, and the images they get."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

import focal_det.plugin  # noqa: F401 - registers the detector
from focal_det.config.load import load_config

CONFIG = Path(__file__).parents[1] / "configs" / "detectron2_parity.yaml"
SPEED_OPTIONS_OFF = ["MODEL.FOCAL_DET.SPEED.CHANNELS_LAST", "False", "MODEL.FOCAL_DET.SPEED.FOLD_NORMS", "False"]
SPEED_OPTIONS_ON = ["MODEL.FOCAL_DET.SPEED.CHANNELS_LAST", "True", "MODEL.FOCAL_DET.SPEED.FOLD_NORMS", "True"]


def focal_det_model(device: torch.device, num_classes: int, *overrides: str) -> nn.Module:
    """Return FocalRetinaNet R-50 with Detectron2's constants (normaliser, beta), so that the losses are equal."""
    return _stable(_seeded(load_config(CONFIG, [*_options(device, num_classes), *SPEED_OPTIONS_ON, *overrides])))


def detectron2_model(device: torch.device, num_classes: int) -> nn.Module:
    """Return Detectron2's RetinaNet R-50 with the weights of `focal_det_model`."""
    sizes = [[base * 2 ** (k / 3) for k in range(3)] for base in (32, 64, 128, 256, 512)]
    own = ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator"]
    sizes_option = ["MODEL.ANCHOR_GENERATOR.SIZES", str(sizes)]
    model = build_model(load_config(CONFIG, [*_options(device, num_classes), *own, *sizes_option]))
    loaded = model.load_state_dict(focal_det_model(device, num_classes).state_dict(), strict=False)
    assert (loaded.missing_keys, loaded.unexpected_keys) == ([], ["criterion.normalizer.ema"])
    return model


def torchvision_model(device: torch.device, num_classes: int) -> nn.Module:
    """Return torchvision's RetinaNet R-50 with frozen batch normalisation, as many trained layers, its own weights."""
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    for name, module in backbone.named_modules():
        if name.endswith("bn3"):
            module.weight.fill_(0.2)
    return RetinaNet(backbone, num_classes, detections_per_img=100).to(device)


def random_images(count: int, size: tuple[int, int], num_classes: int, objects: int = 10) -> list[dict[str, Any]]:
    """Return random images with random objects, as Detectron2's loader gives them."""
    generator = torch.Generator().manual_seed(1)
    height, width = size
    batch = []
    for _ in range(count):
        corners = torch.rand(objects, 2, generator=generator) * torch.tensor([0.7 * width, 0.7 * height])
        sides = (0.02 + 0.28 * torch.rand(objects, 2, generator=generator)) * min(size)
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.cat([corners, corners + sides], dim=1))
        instances.gt_classes = torch.randint(num_classes, (objects,), generator=generator)
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


def shapes_near(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield the shape, its other orientation, and the same of ever more different widths, all multiples of 32."""
    height, width = size
    for change in (0, -64, 64, -32, 32, 96):
        yield height, width + change
        yield width + change, height


def for_torchvision(
    model: nn.Module, batch: list[dict[str, Any]], device: torch.device
) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Return the same images and objects as torchvision's detectors take them; the model leaves their size."""
    size = batch[0]["image"].shape[1:]
    model.transform.min_size, model.transform.max_size = (min(size),), max(size)
    images = [x["image"].to(device).float() / 255 for x in batch]
    targets = [
        {"boxes": x["instances"].gt_boxes.tensor.to(device), "labels": x["instances"].gt_classes.to(device)}
        for x in batch
    ]
    return images, targets


def _options(device: torch.device, num_classes: int) -> list[str]:
    return ["MODEL.WEIGHTS", "", "MODEL.DEVICE", device.type, "MODEL.RETINANET.NUM_CLASSES", str(num_classes)]


def _seeded(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    return build_model(cfg)


def _stable(model: nn.Module) -> nn.Module:
    """Scale residual blocks of random weights, which double the signal, to a trained network's activations."""
    for name, module in model.named_modules():
        if name.endswith("conv3.norm"):
            module.weight.fill_(0.2)
    return model
