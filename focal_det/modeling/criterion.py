"""From predictions and ground truth to the two losses (sections 3 and 4.1).

Shapes
    levels:     (N, ..., K) each  class logits of one level; together R anchors, in the order of `anchors`
    deltas:     (N, R, 4)         predicted box deltas; (N, R, K*4) if each class has its own
    anchors:    (R_l, 4) each     XYXY of each level, together R, the same for every image of the batch
    gt_boxes:   (N, G, 4)         XYXY, each image's objects filled up with empty boxes
    gt_classes: (N, G)            int64
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..assigners.assignment import Assigner, Assignment, assign_checked, paired_iou
from ..assigners.iou import assign_by_iou
from ..losses.box import IOU_LOSSES, box_iou_loss, check_beta, smooth_l1_loss
from ..losses.threads import map_in_threads
from .box_coding import check_box_weights, decode_boxes, deltas_of_classes, encode_boxes
from .normalizer import LossNormalizer

BOX_LOSSES = ("smooth_l1", *IOU_LOSSES)
# What an anchor's box loss is weighted by: nothing, the IoU of the predicted box, or the highest class score.
BOX_WEIGHTINGS = ("none", "iou", "score")
_LEAST_WEIGHT = 1e-6  # so that boxes that all miss their objects are trained on


class PartTargets(NamedTuple):
    """What the images of one part of a batch are trained on: the last arguments of a criterion's call.

    divisors: (N,) of these images in the whole batch.
    """

    gt_boxes: Tensor
    gt_classes: Tensor
    assignment: Assignment
    divisors: Tensor


class DenseCriterion(nn.Module):
    """Assign every anchor, sum the class loss over all of them and the box loss over the assigned, normalise.

    Args:
        num_classes: K.
        class_loss: (logits (R, K), labels (R,)) to the summed loss of one image. If it has a method
            `batch_loss`, (levels, labels (N, R), divisors (N,)) to the normalised loss of the batch, that is used,
            and no copy of the logits is made; not if it has been given hooks or another forward. If it has a method
            `select`, (logits (R, K), labels (R,), anchors) to the labels of one image with the anchors ignored that
            are not to be trained on, the losses are of the others; the normaliser counts the assigned ones before it.
            If its `takes_quality` is true, either is also given the IoU of the predicted boxes, (R,) or (N, R).
        normalizer: counts of assigned anchors (N,) to divisors of the images' summed losses (N,); None for
            `LossNormalizer()`. If it has a method `start`, as that has, which returns what gives the divisors, they are
            asked for as late as possible; not if it has been given hooks or another forward.
        assigner: of anchors to objects, see `focal_det.assigners`.
        smooth_l1_beta: see `smooth_l1_loss`.
        box_loss: one of `BOX_LOSSES`; all but "smooth_l1" are of the boxes that the deltas make, in pixels.
        box_weights: see `encode_boxes`.
        box_factor: of the box loss beside the class loss, in [0, 1e6].
        box_weighting: one of `BOX_WEIGHTINGS`, which share the box loss of an image among its anchors: the weights are
            divided by their mean over the image's assigned anchors, and the normaliser remains that of their number.

    Raises:
        ValueError: a constant out of its range.

    Attributes:
        num_assigned: (N,) int64, anchors assigned to an object in the last batch, for logging.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        class_loss: Any,
        normalizer: LossNormalizer | None = None,
        assigner: Assigner = assign_by_iou,
        smooth_l1_beta: float = 0.11,
        box_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        box_loss: str = "smooth_l1",
        box_factor: float = 1.0,
        box_weighting: str = "none",
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be >= 1")
        check_beta(smooth_l1_beta)
        check_box_weights(box_weights)
        check_box_factor(box_factor)
        for name, value, known in (
            ("box_loss", box_loss, BOX_LOSSES),
            ("box_weighting", box_weighting, BOX_WEIGHTINGS),
        ):
            if value not in known:
                raise ValueError(f'{name}="{value}" is not one of {", ".join(known)}')
        self.num_classes = num_classes
        self.class_loss = class_loss
        self.normalizer = LossNormalizer() if normalizer is None else normalizer
        self.assigner = assigner
        self.smooth_l1_beta = smooth_l1_beta
        self.box_weights = tuple(box_weights)
        self.box_loss = box_loss
        self.box_factor = box_factor
        self.box_weighting = box_weighting
        self.num_assigned: Tensor | None = None

    def forward(
        self,
        levels: Sequence[Tensor],
        deltas: Tensor,
        anchors: Sequence[Tensor],
        gt_boxes: Tensor,
        gt_classes: Tensor,
        assignment: Assignment | None = None,
        divisors: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The losses of a batch by name, "loss_cls" and "loss_box_reg", scalars in float32.

        Those of parts of a batch, given what `targets_of_parts` has found for each, add up to those of the whole.
        """
        labels, matched = assignment or self.assign(anchors, gt_boxes, gt_classes)  # (N, R) each
        divisors_once_there = self._start_divisors(labels) if divisors is None else divisors.detach
        deltas = deltas_of_classes(deltas, labels)  # (N, R, 4)
        all_anchors = torch.cat(list(anchors))  # (R, 4)
        takes_quality = getattr(self.class_loss, "takes_quality", False)
        quality: Tensor | None = None
        if takes_quality or self.box_weighting == "iou":
            quality = self._quality(deltas, all_anchors, labels, gt_boxes, matched)  # (N, R)
        per_anchor = [quality] if quality is not None and takes_quality else []  # what the class loss gets besides
        sums: Tensor | None = None
        if not _has_batch_loss(self.class_loss):
            images = torch.cat([level.flatten(1, -2) for level in levels], dim=1)  # (N, R, K)
            select = getattr(self.class_loss, "select", None)
            if select is not None:
                labels = torch.stack([select(*image, all_anchors) for image in zip(images, labels, strict=True)])
            of_images = zip(images, labels, *per_anchor, strict=True)
            sums = torch.stack([self.class_loss(*image) for image in of_images])  # (N,)
        weights = self._box_loss_weights(levels, labels, quality)
        box_sums = self._box_sums(deltas, all_anchors, labels, gt_boxes, matched, weights)  # (N,)
        divisors = divisors_once_there()  # (N,)
        if sums is None:
            class_loss = self.class_loss.batch_loss(levels, labels, divisors, *per_anchor)
        else:
            class_loss = (sums / divisors).sum()
        return {"loss_cls": class_loss, "loss_box_reg": (box_sums / divisors).sum() * self.box_factor}

    def targets_of_parts(
        self, anchors: Sequence[Tensor], objects: Sequence[tuple[Tensor, Tensor]]
    ) -> list[PartTargets]:
        """Return the targets of each part of a batch, given gt_boxes and gt_classes of each; normalise over them all.

        The normaliser is asked once, as for the whole batch: to be called by all ranks in every step.
        """
        assigned = [self.assign(anchors, *of_part) for of_part in objects]
        divisors = self._start_divisors(torch.cat([labels for labels, _ in assigned]))()  # (N,)
        sizes = [len(labels) for labels, _ in assigned]
        return [PartTargets(*x, *rest) for x, *rest in zip(objects, assigned, divisors.split(sizes), strict=True)]

    def _start_divisors(self, labels: Tensor) -> Callable[[], Tensor]:
        """Count the assigned anchors of labels (N, R); return what gives the divisors (N,).

        The sum over the ranks is on its way while all is computed that does not need it.
        """
        self.num_assigned = self._is_assigned(labels).sum(dim=1)
        if _is_defined_beside_forward("start", self.normalizer):
            return self.normalizer.start(self.num_assigned)
        return partial(self.normalizer, self.num_assigned)

    def assign(self, anchors: Sequence[Tensor], gt_boxes: Tensor, gt_classes: Tensor) -> Assignment:
        """Label and match every image's anchors by this criterion's assigner."""
        assigned = partial(assign_checked, self.assigner, anchors, num_classes=self.num_classes)
        if gt_boxes.device.type != "cpu":
            return assigned(gt_boxes, gt_classes)
        images = zip(gt_boxes.split(1), gt_classes.split(1), strict=True)
        found = map_in_threads(lambda image: assigned(*image), images)
        return Assignment(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    @torch.no_grad()
    def _quality(self, deltas: Tensor, anchors: Tensor, labels: Tensor, gt_boxes: Tensor, matched: Tensor) -> Tensor:
        """Return the IoU of each assigned anchor's predicted box with its object's, (N, R); 0 elsewhere."""
        is_assigned = self._is_assigned(labels)

        def quality(image: Any, anchor: Any, objects: Tensor) -> Tensor:
            pred = decode_boxes(deltas[image, anchor], anchors[anchor], weights=self.box_weights)
            return paired_iou(pred, objects)

        if labels.device.type == "cpu":
            image, anchor = is_assigned.nonzero(as_tuple=True)  # (P,) each
            found = anchors.new_zeros(labels.shape)
            found[image, anchor] = quality(image, anchor, gt_boxes[image, matched[image, anchor]])
            return found
        every = slice(None)
        found = quality(every, every, gt_boxes.gather(1, matched.unsqueeze(-1).expand(-1, -1, 4)))
        return torch.where(is_assigned, found, 0)

    @torch.no_grad()
    def _box_loss_weights(self, levels: Sequence[Tensor], labels: Tensor, quality: Tensor | None) -> Tensor | None:
        """Return the weight of each anchor's box loss, (N, R), whose mean over an image's assigned is 1; None for 1."""
        if self.box_weighting == "none":
            return None
        if self.box_weighting == "iou":
            assert quality is not None
            weights = quality
        else:
            highest = torch.cat([level.flatten(1, -2).amax(dim=-1) for level in levels], dim=1)
            weights = highest.float().sigmoid()
        is_assigned = self._is_assigned(labels)
        weights = torch.where(is_assigned, weights.clamp(min=_LEAST_WEIGHT), 0)
        total = weights.sum(dim=1, keepdim=True).clamp(min=_LEAST_WEIGHT)  # (N, 1)
        return weights * (is_assigned.sum(dim=1, keepdim=True) / total)

    def _box_sums(
        self,
        deltas: Tensor,
        anchors: Tensor,
        labels: Tensor,
        gt_boxes: Tensor,
        matched: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Sum the loss of each image's assigned anchors, which alone have a target, (N,).

        The CPU picks them out. A GPU would have to wait for their number, so there all anchors are encoded, which is
        little beside the class loss, and those without a target masked.
        """
        is_assigned = self._is_assigned(labels)  # (N, R)
        if labels.device.type == "cpu":
            image, anchor = is_assigned.nonzero(as_tuple=True)  # (P,) each
            boxes = gt_boxes[image, matched[image, anchor]]  # (P, 4)
            losses = self._losses_of_boxes(deltas[image, anchor], boxes, anchors[anchor])
            if weights is not None:
                losses = losses * weights[image, anchor]
            return losses.new_zeros(len(labels)).index_add(0, image, losses)
        return self._masked_box_sums(deltas, anchors, is_assigned, gt_boxes, matched, weights)

    def _masked_box_sums(
        self,
        deltas: Tensor,
        anchors: Tensor,
        is_assigned: Tensor,
        gt_boxes: Tensor,
        matched: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        boxes = gt_boxes.gather(1, matched.unsqueeze(-1).expand(-1, -1, 4))  # (N, R, 4)
        # where(), not a product: whatever an anchor without a target predicts has no loss and no gradient. It is given
        # what would be right for it, so that its own part of the loss is finite.
        boxes = torch.where(is_assigned.unsqueeze(-1), boxes, anchors)
        pred = torch.where(is_assigned.unsqueeze(-1), deltas, 0)
        losses = torch.where(is_assigned, self._losses_of_boxes(pred, boxes, anchors), 0)
        return (losses if weights is None else losses * weights).sum(dim=1)

    def _losses_of_boxes(self, deltas: Tensor, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Return the loss (...) of each anchor's deltas (..., 4) against its object's box (..., 4)."""
        if self.box_loss == "smooth_l1":
            targets = encode_boxes(boxes, anchors, weights=self.box_weights)
            return smooth_l1_loss(deltas, targets, beta=self.smooth_l1_beta, reduction="none").sum(dim=-1)
        pred = decode_boxes(deltas, anchors.expand(deltas.shape), weights=self.box_weights)
        return box_iou_loss(pred, boxes, self.box_loss)

    def _is_assigned(self, labels: Tensor) -> Tensor:
        return (labels >= 0) & (labels < self.num_classes)


def check_box_factor(factor: float) -> None:
    """Raise ValueError unless it is in [0, 1e6]."""
    if not 0 <= factor <= 1e6:
        raise ValueError(f"box_factor={factor} is outside [0, 1e6]")


def _has_batch_loss(class_loss: Any) -> bool:
    """Tell whether there is a `batch_loss` and nothing that it would bypass, such as a `select`."""
    return not hasattr(class_loss, "select") and _is_defined_beside_forward("batch_loss", class_loss)


def _is_defined_beside_forward(name: str, module: Any) -> bool:
    """Tell whether there is such a method and nothing that it would bypass.

    That would be hooks, or a `forward` that replaced the one defined beside it.
    """
    classes = type(module).__mro__
    found, single = (next((c for c in classes if part in vars(c)), None) for part in (name, "forward"))
    if found is None or "forward" in vars(module):
        return False
    is_hooked = any(getattr(module, part, None) for part in ("_forward_hooks", "_forward_pre_hooks"))
    return not is_hooked and (single is None or issubclass(found, single))
