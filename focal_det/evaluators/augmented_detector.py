"""Test-time augmentation: detect on resized and mirrored copies of an image, and merge the detections."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..distributed.cluster import unwrapped
from ..modeling.nms import suppress_one_image


class AugmentedDetector(nn.Module):
    """A dense detector with TEST.AUG, called like the detector itself; Detectron2 has one for R-CNN alone.

    The copies are Detectron2's, one for each of TEST.AUG.MIN_SIZES and, with FLIP, its mirror image. They pass through
    the network one by one, so the largest decides the memory. Their boxes are mapped back to the image and suppressed
    class by class with MODEL.RETINANET.NMS_THRESH_TEST, and the best TEST.DETECTIONS_PER_IMAGE are kept.

    Args:
        model: gives "instances" with `pred_boxes`, `scores` and `pred_classes`; used as it is, not copied.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        super().__init__()
        self.model = unwrapped(model)
        self.training = self.model.training  # the mode that an evaluation restores
        self.copies_of = DatasetMapperTTA(cfg)
        self.nms_thresh = cfg.MODEL.RETINANET.NMS_THRESH_TEST
        self.max_detections = cfg.TEST.DETECTIONS_PER_IMAGE

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detect on images with "image", (3, H, W), and the "height" and "width" to give boxes in."""
        return [{"instances": self._detect(image)} for image in batched_inputs]

    def _detect(self, image: dict[str, Any]) -> Instances:
        height, width = image["height"], image["width"]
        boxes, scores, classes = [], [], []
        for copy in self.copies_of(image):
            found = self.model([{"image": copy["image"]}])[0]["instances"]  # without a size: in the copy's pixels
            back = copy["transforms"].inverse().apply_box(found.pred_boxes.tensor.cpu().numpy())
            boxes.append(torch.as_tensor(back, dtype=torch.float32).reshape(-1, 4))
            scores.append(found.scores)
            classes.append(found.pred_classes)
        merged = Instances((height, width), pred_boxes=Boxes(torch.cat(boxes).to(scores[0].device)))
        merged.pred_boxes.clip((height, width))
        merged.scores, merged.pred_classes = torch.cat(scores), torch.cat(classes)
        return merged[self._kept(merged)] if len(boxes) > 1 else merged  # a single copy's are suppressed already

    def _kept(self, found: Instances) -> Tensor:
        """Return the indices of the detections that stay, best first."""
        kept = suppress_one_image(found.pred_boxes.tensor, found.scores, found.pred_classes, self.nms_thresh)
        return kept[: self.max_detections]
