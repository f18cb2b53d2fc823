"""From head outputs to detections (section 4.1, "Inference").

Shapes: logits (N, R_l, K) and deltas (N, R_l, 4) of each level l, or (N, R_l, K*4) if each class has its own; anchors
(R_l, 4) XYXY of each level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .box_coding import check_box_weights, decode_boxes
from .nms import suppress_in_rounds, suppress_one_image

# Logits, of several anchors, of which a processor finds the largest at once: in short rows it takes twice as long.
_LOGITS_TOGETHER = 256

# Candidates of an image that suppression looks at first, to each detection wanted. Their survivors are the first
# survivors of all, so the rest is looked at only where these do not give enough, which a GPU has to wait to learn.
_FIRST_LOOK = 4
_FIRST_LOOK_TOGETHER = 10

# Pairs of boxes that a GPU compares at a time; each takes 30 bytes.
_MAX_PAIRS = 1 << 24

# Rounds of suppression on a GPU; see `suppress_in_rounds`. Clusters like those of a trained detector settle in 6.
_ROUNDS = 12

_NONE = -1.0  # the score where there is no candidate

# The options of `decode_detections` as the paper has them; COCO counts 100 detections.
PAPERS_DECODING = {"score_thresh": 0.05, "topk_per_level": 1000, "nms_thresh": 0.5, "max_detections": 100}


class ImageDetections(NamedTuple):
    """D detections of one image as tensors, best first.

    boxes: (D, 4) XYXY float32, inside the image, not empty. scores: (D,) in (0, 1). classes: (D,) int64.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


@torch.no_grad()
def decode_detections(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    output_sizes: Sequence[tuple[int, int]] | None = None,
    *,
    score_thresh: float,
    topk_per_level: int,
    nms_thresh: float,
    max_detections: int,
    box_weights: Sequence[float],
) -> list[ImageDetections]:
    """Threshold, keep the best of each level, decode, suppress per class, cap, clip, resize, for the whole batch.

    On a GPU every step has a fixed size, and the host waits once, for the numbers of detections. Where the candidates
    looked at first do not decide which they are, it waits again, and looks at all of that image's.

    Args:
        image_sizes: of each image (height, width) in pixels of the network's input, to which boxes are clipped.
        output_sizes: of each image (height, width) in which boxes are returned; None for the network's input.
        score_thresh: a detection's score is above this, in [0, 1); the paper's is .05.
        topk_per_level: at most so many candidates per level and image are decoded; the paper's is 1,000.
        nms_thresh: of two boxes of a class whose IoU is above this, the lower-scoring goes; the paper's is .5.
        max_detections: at most so many are returned per image, less those without area in the image; COCO counts 100.

    Raises:
        ValueError: see `check_decoding`.
        FloatingPointError: a detection's box is NaN.
    """
    check_decoding(
        score_thresh=score_thresh,
        topk_per_level=topk_per_level,
        nms_thresh=nms_thresh,
        max_detections=max_detections,
        box_weights=box_weights,
    )
    # The sigmoid rises with its logit, so comparing logits spares a sigmoid of all R * K of them.
    logit_thresh = math.log(score_thresh / (1 - score_thresh)) if score_thresh > 0 else -math.inf

    best_of_level, suppress = _steps(logits[0].device)
    levels = [
        _gather(*best_of_level(level, logit_thresh, topk_per_level), level.shape[-1], level_deltas, level_anchors)
        for level, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True)
    ]
    values, classes, found_deltas, found_anchors = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
    boxes = decode_boxes(found_deltas, found_anchors, weights=box_weights)  # (N, M, 4)
    scores = torch.where(values.float() > logit_thresh, values.to(boxes.dtype).sigmoid(), _NONE)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    found = _Candidates(boxes.gather(1, _for_corners(order)), scores, classes.gather(1, order))

    sizes = _sizes(image_sizes, output_sizes or image_sizes, boxes)
    kept = suppress(found, nms_thresh, max_detections)
    detections, report = _finish(found, kept, sizes)
    counts, is_final, has_nan = report.tolist()
    unknown = [i for i in range(len(counts)) if not is_final[i]]
    if unknown:
        rest = _suppress_one_by_one(_Candidates(*(part[unknown] for part in found)), nms_thresh, max_detections)
        for part, known in zip(kept, rest, strict=True):
            part[unknown] = known
        detections, report = _finish(found, kept, sizes)
        counts, _, has_nan = report.tolist()
    if any(has_nan):
        raise FloatingPointError(
            f"image {has_nan.index(1)} of the batch: the box of a detection is NaN; weights or image are damaged"
        )
    return [ImageDetections(*(part[i, :count] for part in detections)) for i, count in enumerate(counts)]


def check_decoding(
    *, score_thresh: float, topk_per_level: int, nms_thresh: float, max_detections: int, box_weights: Sequence[float]
) -> None:
    """Raise ValueError unless every option of `decode_detections` is in its range."""
    if not 0 <= score_thresh < 1:
        raise ValueError(f"score_thresh={score_thresh} is outside [0, 1)")
    if not 0 <= nms_thresh <= 1:
        raise ValueError(f"nms_thresh={nms_thresh} is outside [0, 1]")
    for name, value in (("topk_per_level", topk_per_level), ("max_detections", max_detections)):
        if not 1 <= value < 2**31:
            raise ValueError(f"{name}={value} must be >= 1 and below 2^31")
    check_box_weights(box_weights)


class _Candidates(NamedTuple):
    """Candidates of each image, best first: boxes (N, M, 4), scores (N, M), `_NONE` at the end, classes (N, M)."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


class _Kept(NamedTuple):
    """Which candidates stay, D of each image at most, best first.

    places: (N, D) among the candidates. is_there: (N, D), True for the first ones. is_final: (N,), False where more
    candidates must be looked at.
    """

    places: Tensor
    is_there: Tensor
    is_final: Tensor


def _steps(device: torch.device) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., _Kept]]:
    """Return how to find the best of a level and how to suppress: a processor works little, a GPU without waiting."""
    return (_above_first, _suppress_one_by_one) if device.type == "cpu" else (_best_first, _suppress_together)


def _above_first(level: Tensor, logit_thresh: float, topk: int) -> tuple[Tensor, Tensor]:
    """Return the best logits of one level (N, R_l, K) and their index in R_l * K, (N, m) each, filled up with -inf.

    What is below the threshold goes first, since a processor would sort for long: several anchors at a time, then
    anchor by anchor, as looking for ones in a mask of all logits takes six times as long as the largest logits.
    """
    num_images, num_anchors, num_classes = level.shape
    # Comparing half precision rounds the threshold; what lies within that rounding is decided later.
    rounding = torch.finfo(level.dtype).eps * abs(logit_thresh) if level.dtype.itemsize < 4 else 0.0
    if not level.numel():
        return _best_first(level, logit_thresh, topk)
    most_together = max(1, _LOGITS_TOGETHER // num_classes)
    together = next(n for n in range(most_together, 0, -1) if num_anchors % n == 0)
    rows = level.unflatten(1, (-1, together)).flatten(2)  # (N, R_l / n, n * K)
    image, row = (~(rows.amax(dim=2) <= logit_thresh - rounding)).nonzero(as_tuple=True)  # NaN hides no other class
    some = rows[image, row]  # (S, n * K)
    place, column = (some > logit_thresh - rounding).nonzero(as_tuple=True)
    image, index = image[place], row[place] * rows.shape[2] + column
    counts = image.bincount(minlength=num_images)
    slot = torch.arange(len(image)) - (counts.cumsum(0) - counts)[image]
    shape = (num_images, int(counts.max()))
    values = level.new_full(shape, -math.inf).index_put_((image, slot), some[place, column])
    indices = index.new_zeros(shape).index_put_((image, slot), index)
    if shape[1] <= topk:
        return values, indices
    values, best = values.topk(topk, dim=1)
    return values, indices.gather(1, best)


def _best_first(level: Tensor, logit_thresh: float, topk: int) -> tuple[Tensor, Tensor]:
    """Do the same on a GPU, which would have to wait for the number above the threshold: those below it stay."""
    flat = level.flatten(1)  # (N, R_l * K)
    values, index = flat.topk(min(topk, flat.shape[1]), dim=1)
    return values, index


def _gather(
    values: Tensor, index: Tensor, num_classes: int, deltas: Tensor, anchors: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return logits and classes (N, m), deltas and anchors (N, m, 4) of one level's best."""
    anchor = index // num_classes
    place = anchor if deltas.shape[-1] == 4 else index
    found = deltas.unflatten(-1, (-1, 4)).flatten(1, 2).gather(1, _for_corners(place))
    return values, index % num_classes, found, anchors[anchor]


def _suppress_one_by_one(found: _Candidates, nms_thresh: float, most: int) -> _Kept:
    """Suppress image by image; of a GPU's results it waits for each."""
    places = torch.zeros_like(found.classes[:, :most])
    numbers = []
    for i, count in enumerate((found.scores > _NONE).sum(dim=1).tolist()):
        for looked_at in (min(_FIRST_LOOK * most, count), count):
            boxes, scores, classes = (part[i, :looked_at] for part in found)
            best = suppress_one_image(boxes, scores, classes, nms_thresh)[:most]
            if len(best) == most or looked_at == count:
                break
        places[i, : len(best)] = best
        numbers.append(len(best))
    counts = torch.tensor(numbers, device=places.device).unsqueeze(1)
    is_there = torch.arange(places.shape[1], device=places.device) < counts
    return _Kept(places, is_there, torch.ones(len(places), dtype=torch.bool, device=places.device))


def _suppress_together(found: _Candidates, nms_thresh: float, most: int) -> _Kept:
    """Suppress the best candidates of all images in operations of fixed sizes, without waiting for the device."""
    looked_at = min(_FIRST_LOOK_TOGETHER * most, math.isqrt(_MAX_PAIRS))
    boxes, scores, classes = (part[:, :looked_at] for part in found)
    images = _MAX_PAIRS // max(1, scores.shape[1] ** 2)
    chunks = zip(*(part.split(images) for part in (boxes, classes, scores > _NONE)), strict=True)
    outcomes = (suppress_in_rounds(corners, labels, there, nms_thresh, _ROUNDS) for corners, labels, there in chunks)
    survives, is_settled = (torch.cat(parts) for parts in zip(*outcomes, strict=True))
    is_there, places = survives.byte().sort(dim=1, descending=True, stable=True)
    has_more = (found.scores[:, looked_at:] > _NONE).any(dim=1)
    is_final = is_settled & ((survives.sum(dim=1) >= most) | ~has_more)
    missing = found.classes[:, looked_at:most].shape[1]  # where so many are wanted that some are not looked at
    return _Kept(F.pad(places[:, :most], (0, missing)), F.pad(is_there[:, :most].bool(), (0, missing)), is_final)


def _sizes(
    image_sizes: Sequence[tuple[int, int]], output_sizes: Sequence[tuple[int, int]], boxes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, (N, 1, 4) each, the image's sides, the factors that resize its boxes, and the output's sides."""
    rows = [
        ((width, height) * 2, (to_width / width, to_height / height) * 2, (to_width, to_height) * 2)
        for (height, width), (to_height, to_width) in zip(image_sizes, output_sizes, strict=True)
    ]
    of_images = torch.tensor(rows, dtype=boxes.dtype).reshape(-1, 3, 1, 4)  # of no images, too
    sides, factors, to_sides = to_device(of_images, boxes.device).unbind(1)
    return sides, factors, to_sides


def _finish(found: _Candidates, kept: _Kept, sizes: tuple[Tensor, Tensor, Tensor]) -> tuple[_Candidates, Tensor]:
    """Clip, resize and drop the empty boxes; return the rest and a report (3, N) int64, all that the host waits for.

    The report is of each image how many boxes there are, whether that is final, and whether one is NaN.
    """
    sides, factors, to_sides = sizes
    boxes = found.boxes.gather(1, _for_corners(kept.places))  # (N, D, 4)
    boxes = boxes.clamp(min=0).minimum(sides).mul(factors).minimum(to_sides)
    has_nan = (boxes.isnan().any(dim=2) & kept.is_there).any(dim=1)
    is_whole = (boxes[..., 2:] > boxes[..., :2]).all(dim=2) & kept.is_there
    order = is_whole.byte().sort(dim=1, descending=True, stable=True).indices
    places = kept.places.gather(1, order)
    detections = _Candidates(
        boxes.gather(1, _for_corners(order)), found.scores.gather(1, places), found.classes.gather(1, places)
    )
    return detections, torch.stack((is_whole.sum(dim=1), kept.is_final.long(), has_nan.long()))


def _for_corners(index: Tensor) -> Tensor:
    """Repeat an index (N, m) for the corners of boxes, (N, m, 4)."""
    return index.unsqueeze(2).expand(-1, -1, 4)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor without waiting: a GPU copies asynchronously only from pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
