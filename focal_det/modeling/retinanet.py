"""The detector of section 4 (figure 3): backbone with pyramid, two subnets, and the use of their outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import Backbone, build_backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..defaults import with_own_keys
from ..registries import ASSIGNER_REGISTRY, DENSE_HEAD_REGISTRY, DENSE_LOSS_REGISTRY
from .anchor_generator import OctaveAnchorGenerator
from .captured import CapturedOrPlain
from .compiled import CompiledOrPlain, NetworkRunner
from .convolutions import fold_frozen_norms, is_slow_channels_last, keep_cast_weights
from .criterion import DenseCriterion, PartTargets
from .decode import PAPERS_DECODING, check_decoding, decode_detections, to_device
from .dense_losses import FocalLoss
from .head import RetinaNetHead
from .levels import (
    ShapePadding,
    anchor_generator_of,
    check_anchors,
    classes_last,
    cut_back,
    head_sizes,
    level_shapes,
    map_size,
    padded_objects,
    shapes_to_pad_to,
)
from .normalizer import LossNormalizer


class FocalRetinaNet(nn.Module):
    """RetinaNet as a Detectron2 meta-architecture.

    Backbone and number of classes make the paper's detector; each default is that of the key.

    Args:
        backbone: images (N, 3, H, W) to features by name.
        num_classes: K.
        in_features: names of the pyramid's levels, finest first; None for all that the backbone has.
        head: features of each level to logits and deltas of each, by its `boxes_by_class`; None for `RetinaNetHead`.
        anchor_generator: None for `OctaveAnchorGenerator`; Detectron2's `DefaultAnchorGenerator` serves too.
        criterion: the losses; holds the normaliser's state. None for `DenseCriterion` with `FocalLoss`.
        decoding: the options of `decode_detections`; those left out are `PAPERS_DECODING`, with the criterion's box
            weights.
        pixel_mean, pixel_std: of each channel, in the order of the input's; the defaults are for BGR and the weights
            of Detectron2's model zoo.
        channels_last, fold_norms, compile_network, cuda_graphs, pad_to, bfloat16_inference: see
            MODEL.FOCAL_DET.SPEED in `focal_det.defaults`.

    Raises:
        ValueError: an option of the decoding, a mean or deviation of the channels, or a shape to pad to, out of its
            range; levels that the backbone does not have, or that anchors or head do not fit; graphs of a network that
            waits for other ranks.
    """

    mode_changes = 0

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        in_features: Sequence[str] | None = None,
        head: nn.Module | None = None,
        anchor_generator: nn.Module | None = None,
        criterion: DenseCriterion | None = None,
        decoding: Mapping[str, Any] | None = None,
        pixel_mean: Sequence[float] = (103.53, 116.28, 123.675),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
        channels_last: bool = True,
        fold_norms: bool = True,
        compile_network: bool = False,
        cuda_graphs: bool = False,
        pad_to: Sequence[Sequence[int]] = (),
        bfloat16_inference: bool = False,
    ) -> None:
        super().__init__()
        in_features = tuple(backbone.output_shape() if in_features is None else in_features)
        shapes = level_shapes(backbone, in_features)
        if anchor_generator is None:
            anchor_generator = OctaveAnchorGenerator(strides=[level.stride for level in shapes])
        check_anchors(anchor_generator, in_features, shapes)
        if head is None:
            head = RetinaNetHead(num_classes=num_classes, **head_sizes(shapes, anchor_generator))
        if criterion is None:
            criterion = DenseCriterion(num_classes=num_classes, class_loss=FocalLoss())
        decoding = {**PAPERS_DECODING, "box_weights": criterion.box_weights, **(decoding or {})}
        if len(pixel_mean) != len(pixel_std) or not all(0 < std < math.inf for std in pixel_std):
            raise ValueError(f"pixel_std={pixel_std} must be a number > 0 for each of pixel_mean={pixel_mean}")
        if fold_norms:
            fold_frozen_norms(backbone)
        if bfloat16_inference:
            keep_cast_weights(backbone)
            keep_cast_weights(head)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone = backbone
        self.in_features = in_features
        self.head = head
        self.box_channels = 4 * num_classes if getattr(head, "boxes_by_class", False) else 4
        for module in (*backbone.modules(), *head.modules()):
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=self.memory_format)
        self.padding = ShapePadding(pad_to, backbone.size_divisibility)
        self.strides = [level.stride for level in shapes]
        compiled = CompiledOrPlain(self.network, static=bool(pad_to)) if compile_network else None
        self._runner = CapturedOrPlain(self, compiled or self.network) if cuda_graphs else compiled
        if cuda_graphs and any("SyncBatchNorm" in type(module).__name__ for module in self.modules()):
            raise ValueError(
                "MODEL.FOCAL_DET.SPEED.CUDA_GRAPHS is on, but ranks that compute SyncBN's statistics together cannot "
                "capture each by itself: turn it off, or choose another norm"
            )
        self.anchor_generator = anchor_generator
        self.criterion = criterion
        self.num_classes = num_classes
        self.bfloat16_inference = bfloat16_inference
        self.decoding = decoding
        check_decoding(**decoding)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(list(pixel_mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(list(pixel_std)).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        cfg = with_own_keys(cfg)
        retinanet, extra = cfg.MODEL.RETINANET, cfg.MODEL.FOCAL_DET
        backbone = build_backbone(cfg)
        shapes = level_shapes(backbone, retinanet.IN_FEATURES)
        if list(retinanet.IOU_LABELS) != [0, -1, 1]:
            raise ValueError(
                f"MODEL.RETINANET.IOU_LABELS is {retinanet.IOU_LABELS}; FocalRetinaNet labels the bands [0, -1, 1]"
            )
        if extra.SPEED.CUDA_GRAPHS and cfg.TEST.PRECISE_BN.ENABLED:
            raise ValueError(
                "MODEL.FOCAL_DET.SPEED.CUDA_GRAPHS and TEST.PRECISE_BN.ENABLED are both on, but the statistics are "
                "gathered by hooks, which a graph does not run: turn one of them off"
            )
        anchor_generator = anchor_generator_of(cfg, shapes)
        head = DENSE_HEAD_REGISTRY.get(extra.HEAD_NAME)(cfg, shapes)
        criterion = DenseCriterion(
            num_classes=retinanet.NUM_CLASSES,
            class_loss=DENSE_LOSS_REGISTRY.get(extra.LOSS.NAME)(cfg),
            normalizer=LossNormalizer(extra.NORMALIZER),
            assigner=ASSIGNER_REGISTRY.get(extra.ASSIGNER.NAME)(cfg),
            smooth_l1_beta=retinanet.SMOOTH_L1_LOSS_BETA,
            box_loss=retinanet.BBOX_REG_LOSS_TYPE,
            box_weights=retinanet.BBOX_REG_WEIGHTS,
            box_factor=extra.BOX_LOSS.FACTOR,
            box_weighting=extra.BOX_LOSS.WEIGHTING,
        )
        return {
            "backbone": backbone,
            "in_features": retinanet.IN_FEATURES,
            "head": head,
            "anchor_generator": anchor_generator,
            "criterion": criterion,
            "num_classes": retinanet.NUM_CLASSES,
            "decoding": {
                "score_thresh": retinanet.SCORE_THRESH_TEST,
                "topk_per_level": retinanet.TOPK_CANDIDATES_TEST,
                "nms_thresh": retinanet.NMS_THRESH_TEST,
                "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
                "box_weights": tuple(retinanet.BBOX_REG_WEIGHTS),
            },
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "channels_last": extra.SPEED.CHANNELS_LAST and not is_slow_channels_last(cfg.MODEL.DEVICE, backbone, head),
            "fold_norms": extra.SPEED.FOLD_NORMS,
            "compile_network": extra.SPEED.COMPILE,
            "cuda_graphs": extra.SPEED.CUDA_GRAPHS,
            "pad_to": shapes_to_pad_to(cfg, backbone.size_divisibility),
            "bfloat16_inference": extra.SPEED.BFLOAT16_INFERENCE,
        }

    @property
    def runner(self) -> NetworkRunner:
        """The runner of `network`: as it is, compiled, captured, or both."""
        return self._runner or NetworkRunner(self.network)  # which a plain model, to be freed at once, does not hold

    @property
    def device(self) -> torch.device:
        """The device of the parameters, to which inputs are moved."""
        return self.pixel_mean.device

    def forward(
        self,
        batched_inputs: list[dict[str, Any]],
        size: tuple[int, int] | None = None,
        targets: PartTargets | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Detectron2's model interface.

        Args:
            batched_inputs: of each image a dict with "image", (3, H, W) in 0..255 in the order of
                INPUT.FORMAT; in training "instances" with `gt_boxes` and `gt_classes`, -1 for what is
                neither an object nor background; at inference optionally "height" and "width", the size
                to give boxes in.
            size, targets: in training, of images that are a part of a batch, what `arguments_of_parts` says of them.

        Returns:
            In training the losses by name. At inference of each image a dict with "instances", holding
            `pred_boxes`, `scores`, `pred_classes`, best first.

        Raises:
            ValueError: in training an image without "instances", or with a box that is not finite or a class outside
                -1..K-1.
        """
        images = self._preprocess(batched_inputs, size)
        if self.training:
            levels, deltas, anchors = self._predictions(images)
            all_deltas = torch.cat([level.flatten(1, -2) for level in deltas], dim=1)  # (N, R, 4 or K*4)
            targets_or_objects = targets or self._objects(batched_inputs)
            losses: dict[str, Tensor] = self.criterion(levels, all_deltas, anchors, *targets_or_objects)
            return losses
        with torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16_inference else nullcontext():
            levels, deltas, anchors = self._predictions(images)
        logits, deltas = ([level.flatten(1, -2) for level in part] for part in (levels, deltas))
        sizes = images.image_sizes
        output_sizes = [
            (x.get("height", height), x.get("width", width))
            for x, (height, width) in zip(batched_inputs, sizes, strict=True)
        ]
        found = decode_detections(logits, deltas, anchors, sizes, output_sizes, **self.decoding)
        return [
            {"instances": Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)}
            for (boxes, scores, classes), size in zip(found, output_sizes, strict=True)
        ]

    def arguments_of_parts(self, parts: list[list[dict[str, Any]]]) -> list[tuple[Any, ...]]:
        """Return the arguments of a `forward` for each part of a batch, so that the losses add up to the whole's.

        To be called by all ranks in every step; inputs and errors are training's.
        """
        shapes = [torch.empty(x["image"].shape, device="meta") for part in parts for x in part]
        height, width = self._batch(shapes).tensor.shape[-2:]
        maps = [self.pixel_mean.new_empty(1, 0, *map_size((height, width), stride)) for stride in self.strides]
        anchors = [boxes.tensor for boxes in self.anchor_generator(maps)]
        targets = self.criterion.targets_of_parts(anchors, [self._objects(part) for part in parts])
        return [(part, (height, width), of_part) for part, of_part in zip(parts, targets, strict=True)]

    def train(self, mode: bool = True) -> FocalRetinaNet:
        """Set the mode, as of every module, and count it: see `CapturedOrPlain`."""
        self.mode_changes += 1
        return super().train(mode)

    def class_logits_and_labels(self, batched_inputs: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Return every anchor's class logits (N, R, K) and label (N, R); inputs and errors are training's."""
        levels, _, anchors = self._predictions(self._preprocess(batched_inputs, None))
        labels, _ = self.criterion.assign(anchors, *self._objects(batched_inputs))
        return torch.cat([level.flatten(1, -2) for level in levels], dim=1), labels

    def _predictions(self, images: ImageList) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return each level's logits (N, H, W, A, K), deltas (N, H, W, A, 4 or K*4) and anchors (H*W*A, 4)."""
        padded = self.padding.pad(images.tensor)
        sizes = padded.shape[-2:], images.tensor.shape[-2:]
        logits, deltas = (
            [cut_back(level, *sizes, stride) for level, stride in zip(part, self.strides, strict=True)]
            for part in self.runner(padded)
        )
        return (
            [classes_last(level, self.num_classes) for level in logits],
            [classes_last(level, self.box_channels) for level in deltas],
            [boxes.tensor for boxes in self.anchor_generator(logits)],
        )

    def network(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Images (N, 3, H, W) to what the head returns."""
        features = self.backbone(images)
        logits, deltas = self.head([features[name] for name in self.in_features])
        return logits, deltas

    def _preprocess(self, batched_inputs: list[dict[str, Any]], size: tuple[int, int] | None) -> ImageList:
        images = [to_device(x["image"], self.device) for x in batched_inputs]
        batch = self._batch([(image - self.pixel_mean) / self.pixel_std for image in images])
        height, width = batch.tensor.shape[-2:]
        tensor = F.pad(batch.tensor, (0, size[1] - width, 0, size[0] - height)) if size else batch.tensor
        batch.tensor = tensor.contiguous(memory_format=self.memory_format)
        return batch

    def _objects(self, batched_inputs: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        boxes, classes = padded_objects(batched_inputs, self.num_classes)
        return to_device(boxes, self.device), to_device(classes, self.device)

    def _batch(self, images: list[Tensor]) -> ImageList:
        divisor, constraints = self.backbone.size_divisibility, self.backbone.padding_constraints
        return ImageList.from_tensors(images, divisor, padding_constraints=constraints)
