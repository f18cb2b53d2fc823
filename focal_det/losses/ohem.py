"""Online hard example mining over anchors: OHEM and OHEM 1:3 (section 5.1; Table 1d), for one image.

Shapes
    losses: (R,)    of each anchor, summed over its K classes
    boxes:  (R, 4)  XYXY in pixels
    labels: (R,)    int64: 0..K-1 object class, K background, -1 ignored

Candidates are put in order, highest loss first ("rank" below is a place in it), and non-maximum suppression goes
down that order. Over all 200,000 anchors it would take minutes, so it goes only as far as it must, in two ways that
leave the result as it is:

1. Whether a box survives depends on the boxes above it alone. So the survivors of the first n ranks are the first
   survivors of all, and the walk down ends with the last survivor that the minibatch has room for.
2. OHEM 1:3 may need positives from far below that point. A box survives unless a surviving box above it overlaps it,
   so each is decided by asking that of the few boxes that overlap it, and in turn of those that overlap them. (Near a
   threshold of 0 they are many.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from .formula import IGNORED, check_number

# Ranks that are suppressed at a time, and survivors that they are compared with at a time.
_CHUNK = 2048


@torch.no_grad()
def select_hard_examples(
    losses: Tensor,
    boxes: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    nms_threshold: float,
    positive_fraction: float | None = None,
    num_classes: int | None = None,
) -> Tensor:
    """Select the minibatch of one image: the hardest anchors that non-maximum suppression leaves.

    Args:
        losses: (R,) scores; the highest is the hardest, NaN before all. Equal ones rank by their index.
        boxes: (R, 4) of the anchors.
        labels: (R,); ignored anchors are no candidates.
        batch_size: size of the minibatch, >= 1. Fewer survivors than that are all kept.
        nms_threshold: of two boxes whose IoU is above this the one with the lower loss goes, in [0, 1].
        positive_fraction: None keeps the hardest whatever they are. A share f in (0, 1) keeps at most
            batch_size * f positives and (1 - f) / f negatives to each positive that is kept; .25 is 1:3. Few
            positives thus make a small minibatch, and none an empty one.
        num_classes: K, read only for a positive_fraction. None: the largest label is the background's.

    Returns:
        Indices of the kept anchors, (M,) int64 with M <= batch_size, hardest first.

    Raises:
        ValueError: shapes that do not fit, a value out of its range, labels above K (looked at on the CPU alone).
        TypeError: labels that are not int64, a constant that is not a number.
    """
    _check_shapes(losses, boxes, labels)
    check_mining(batch_size, nms_threshold, positive_fraction)
    # The IoUs are float32, and many of a grid's anchors meet a threshold such as .6 exactly: rounded like them, once,
    # it decides the same everywhere.
    threshold = torch.tensor(nms_threshold, dtype=torch.float32).item()
    candidates = (labels != IGNORED).nonzero().squeeze(1)
    order = candidates[losses[candidates].argsort(descending=True, stable=True)]  # (C,) anchor of each rank
    ranked = boxes[order].float()
    if positive_fraction is None:
        survivors = _survivors(ranked, threshold, lambda ranks: len(ranks) >= batch_size)
        return order[survivors[:batch_size]]

    background = int(labels.max()) if num_classes is None and len(labels) else num_classes or 0
    if labels.device.type == "cpu" and len(labels) and int(labels.max()) > background:
        raise ValueError(f"labels go up to {int(labels.max())}, beyond the background's num_classes={num_classes}")
    is_positive = labels[order] < background
    most_positives = min(_room(batch_size, positive_fraction), int(is_positive.sum()))
    negatives_to_one = (1 - positive_fraction) / positive_fraction
    most_negatives = round(negatives_to_one * most_positives)
    if most_positives == 0:
        return order[:0]
    survivors = _survivors(ranked, threshold, lambda ranks: int((~is_positive[ranks]).sum()) >= most_negatives)
    positives = _surviving_positives(ranked, threshold, survivors, is_positive, most_positives)
    negatives = survivors[~is_positive[survivors]][: round(negatives_to_one * len(positives))]
    return order[torch.cat([positives, negatives]).sort().values]


def check_mining(batch_size: int, nms_threshold: float, positive_fraction: float | None) -> None:
    """Raise ValueError, or TypeError for a value that is not a number, unless the constants make a minibatch."""
    if not isinstance(batch_size, Integral) or isinstance(batch_size, bool):
        raise TypeError(f"batch_size={batch_size!r} must be an integer, not {type(batch_size).__name__}")
    check_number("nms_threshold", nms_threshold)
    if positive_fraction is not None:
        check_number("positive_fraction", positive_fraction)
    if not 1 <= batch_size < 2**31:
        raise ValueError(f"batch_size={batch_size} must be >= 1 and below 2^31")
    if not 0 <= nms_threshold <= 1:
        raise ValueError(f"nms_threshold={nms_threshold} is outside [0, 1]")
    if positive_fraction is not None and not 0 < positive_fraction < 1:
        raise ValueError(f"positive_fraction={positive_fraction} is outside (0, 1); None keeps no ratio")
    if positive_fraction is not None and not _room(batch_size, positive_fraction):
        raise ValueError(
            f"batch_size={batch_size} has no room for a positive at positive_fraction={positive_fraction}; "
            f"it must be >= {math.ceil(1 / positive_fraction):g}"
        )


def _room(batch_size: int, positive_fraction: float) -> int:
    """Positives that a minibatch has room for."""
    return int(batch_size * positive_fraction + 1e-9)  # 100 * .29 is 28.999...


def _check_shapes(losses: Tensor, boxes: Tensor, labels: Tensor) -> None:
    if losses.dim() != 1 or boxes.shape != (len(losses), 4) or labels.shape != losses.shape:
        raise ValueError(
            f"losses {tuple(losses.shape)}, boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)} "
            "must be (R,), (R, 4) and (R,)"
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64 class indices, not {labels.dtype}")


def _survivors(ranked: Tensor, threshold: float, enough: Callable[[Tensor], bool]) -> Tensor:
    """Ranks that survive suppression, in order, of all ranks or of the first ones until they are `enough`."""
    survivors = torch.empty(0, dtype=torch.int64, device=ranked.device)
    for start in range(0, len(ranked), _CHUNK):
        chunk = ranked[start : start + _CHUNK]
        is_free = torch.ones(len(chunk), dtype=torch.bool, device=ranked.device)
        for rivals in survivors.split(_CHUNK):
            is_free &= ~(box_iou(chunk, ranked[rivals]) > threshold).any(dim=1)
        ranks = start + is_free.nonzero().squeeze(1)
        kept = nms(ranked[ranks], -ranks.to(ranked.dtype), threshold)  # its scores fall with the rank
        survivors = torch.cat([survivors, ranks[kept]])
        if enough(survivors):
            break
    return survivors


def _surviving_positives(ranked: Tensor, threshold: float, survivors: Tensor, is_positive: Tensor, most: int) -> Tensor:
    """The first `most` ranks that are positive and survive, given the survivors of the first ranks."""
    found = survivors[is_positive[survivors]].tolist()[:most]
    if len(found) == most:
        return torch.tensor(found, dtype=torch.int64, device=ranked.device)
    walked = int(survivors[-1]) + 1  # down to here, whatever has not survived is suppressed
    survives = dict.fromkeys(range(walked), False) | dict.fromkeys(survivors.tolist(), True)
    overlaps = _Overlaps(ranked.cpu(), threshold)  # a few boxes at a time, which a GPU would only wait for
    for rank in (is_positive[walked:].nonzero().squeeze(1) + walked).tolist():
        if len(found) == most:
            break
        if _decide(rank, overlaps, survives):
            found.append(rank)
    return torch.tensor(found, dtype=torch.int64, device=ranked.device)


def _decide(rank: int, overlaps: _Overlaps, survives: dict[int, bool]) -> bool:
    """Tell whether a rank survives. What has to be decided on the way is kept in `survives`."""
    waiting = [rank]  # each waits for the next; a stack, since such a chain may be longer than Python's own
    while waiting:
        rivals = overlaps.above(waiting[-1])
        decided = {survives.get(rival) for rival in rivals}
        if None in decided and True not in decided:
            waiting.append(next(rival for rival in rivals if rival not in survives))
        else:
            survives[waiting.pop()] = True not in decided
    return survives[rank]


class _Overlaps:
    """Which boxes overlap one another, asked box by box.

    The IoU of two boxes is at most that of their extents in x. For it to exceed t, an extent w allows the other
    center a distance of w (1 - t) / 2t and no more, so with the boxes sorted by center one slice holds all of them.
    """

    def __init__(self, ranked: Tensor, threshold: float) -> None:
        self.centers, self.ranks = ((ranked[:, 0].double() + ranked[:, 2]) / 2).sort()
        self.boxes = ranked[self.ranks]
        self.ranked = ranked
        self.threshold = threshold
        self.known: dict[int, list[int]] = {}

    def above(self, rank: int) -> list[int]:
        """The ranks above this one, in order, whose boxes overlap its own by more than the threshold."""
        if rank not in self.known:
            box = self.ranked[rank : rank + 1]
            left, right = box[0, 0].item(), box[0, 2].item()
            reach = (right - left) * (1 - self.threshold) / (2 * self.threshold) if self.threshold else math.inf
            reach += 1e-3 * (right - left)  # the IoU that is compared is a rounded one
            center = (left + right) / 2
            ends = torch.tensor([center - reach, center + reach], dtype=torch.float64)
            near = slice(*torch.searchsorted(self.centers, ends).tolist())
            is_rival = (self.ranks[near] < rank) & (box_iou(box, self.boxes[near])[0] > self.threshold)
            self.known[rank] = self.ranks[near][is_rival].sort().values.tolist()
        return self.known[rank]
