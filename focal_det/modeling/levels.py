"""The levels of a backbone that the detector takes, whether anchors and head fit them, and what pads a batch."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.anchor_generator import build_anchor_generator
from torch import Tensor, nn

from ..assigners.assignment import pad_objects


def level_shapes(backbone: Backbone, in_features: Sequence[str]) -> list[ShapeSpec]:
    """Return the shape of each level; raise ValueError for one that the backbone does not have."""
    available = backbone.output_shape()
    missing = [name for name in in_features if name not in available]
    if missing or not in_features:
        raise ValueError(
            f"in_features (MODEL.RETINANET.IN_FEATURES) is {list(in_features)}, but the backbone's features are "
            f"{', '.join(available)}: name some of these, finest first, with as many MODEL.ANCHOR_GENERATOR.SIZES"
        )
    return [available[name] for name in in_features]


def anchor_generator_of(cfg: CfgNode, shapes: list[ShapeSpec]) -> nn.Module:
    """Build the anchor generator that the configuration names; raise ValueError where its values do not fit."""
    try:
        return build_anchor_generator(cfg, shapes)
    except AssertionError as error:  # Detectron2's say what is wrong, and not where
        keys = cfg.MODEL.ANCHOR_GENERATOR
        raise ValueError(
            f"{keys.NAME} cannot be built with MODEL.ANCHOR_GENERATOR.SIZES {keys.SIZES}, ASPECT_RATIOS "
            f"{keys.ASPECT_RATIOS} and OFFSET {keys.OFFSET} for MODEL.RETINANET.IN_FEATURES "
            f"{cfg.MODEL.RETINANET.IN_FEATURES}: {error}"
        ) from error


def check_upright(generator: Any) -> None:
    """Raise ValueError for rotated anchors, which RetinaNet cannot regress from, ours or Detectron2's."""
    if getattr(generator, "box_dim", 4) != 4:
        raise ValueError(
            f"{type(generator).__name__} makes anchors of {generator.box_dim} numbers, and RetinaNet detects upright "
            "boxes, which have 4: set MODEL.ANCHOR_GENERATOR.NAME to OctaveAnchorGenerator or DefaultAnchorGenerator"
        )


def check_anchors(generator: Any, in_features: Sequence[str], shapes: Sequence[ShapeSpec]) -> None:
    """Raise ValueError for anchors that are not upright boxes of these levels."""
    check_upright(generator)
    strides = [level.stride for level in shapes]
    own_strides = list(getattr(generator, "strides", strides))
    if own_strides != strides:
        raise ValueError(
            f"the anchor generator has strides {own_strides}, but the levels {', '.join(in_features)} have "
            f"{strides}: give it these"
        )


def head_sizes(levels: Sequence[ShapeSpec], anchor_generator: Any) -> dict[str, int]:
    """Return what the levels and their anchors decide of a head: in_channels, num_levels and num_anchors.

    Raises:
        ValueError: levels that one head cannot serve.
    """
    num_anchors, channels = anchor_generator.num_cell_anchors, [level.channels for level in levels]
    if len(set(num_anchors)) != 1 or len(set(channels)) != 1:
        raise ValueError(
            f"one head serves all levels, so they need equal numbers of anchors and channels; they have {num_anchors} "
            f"anchors and {channels} channels: change MODEL.ANCHOR_GENERATOR.SIZES or ASPECT_RATIOS, or "
            "MODEL.RETINANET.IN_FEATURES to levels of one pyramid"
        )
    return {"in_channels": channels[0], "num_levels": len(levels), "num_anchors": num_anchors[0]}


# Shares of the ratios of sides that photographs have: half 4:3, three in ten 3:2, the others spread from 1:1 to 2:1.
_RATIOS = {4 / 3: 0.5, 3 / 2: 0.3, **{1 + tenth / 10: 0.02 for tenth in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)}}
# Tiles are squares, and most of what is trained on and detected in where images are cut into them.
_OF_TILES = {1.0: 1.0}
_TILES_SHARE = 0.9
_MOST_SHAPES = 16  # derived ones; each stands for two, and for each it is captured or compiled
Batches = dict[tuple[int, int], float]  # height and width of batches in pixels, and the share of each


def shapes_to_pad_to(cfg: CfgNode, divisor: int) -> Sequence[Any]:
    """Return the shapes that MODEL.FOCAL_DET.SPEED.PAD_TO lists, or so many for INPUT's sizes as its number says.

    Raises:
        ValueError: a number out of its range.
    """
    given: Sequence[Any] = cfg.MODEL.FOCAL_DET.SPEED.PAD_TO
    if len(given) != 1 or type(given[0]) is not int:
        return given
    if not 1 <= given[0] <= _MOST_SHAPES:
        raise ValueError(
            f"MODEL.FOCAL_DET.SPEED.PAD_TO is {list(given)}, but the number of shapes is in [1, {_MOST_SHAPES}]"
        )
    batches_of_each = filter(None, usual_batches(cfg, divisor))
    shapes = {shape for batches in batches_of_each for shape in few_shapes(batches, given[0])}
    if not shapes:
        raise ValueError(
            f"MODEL.FOCAL_DET.SPEED.PAD_TO is {list(given)}, but no image is resized to a size to choose shapes for: "
            f"INPUT.MIN_SIZE_TRAIN is {cfg.INPUT.MIN_SIZE_TRAIN}; list the shapes, or set the sizes to resize to"
        )
    return sorted(shapes)


def usual_batches(cfg: CfgNode, divisor: int) -> list[Batches]:
    """Return `batches_of_photographs` of training and, unless it is one of its sizes, of evaluation.

    With MODEL.FOCAL_DET.TILES they are mostly of tiles. Those of training are empty if no image is resized. Sides are
    multiples of 32 at least: else there would be as many as pixels.
    """

    def batches(shorter: list[int], longest: int) -> Batches:
        of_images = batches_of_photographs(shorter, longest, divisor)
        if not cfg.MODEL.FOCAL_DET.TILES.SIZE:
            return of_images
        of_tiles = batches_of_photographs(shorter, longest, divisor, _OF_TILES)
        parts = (of_tiles, _TILES_SHARE), (of_images, 1 - _TILES_SHARE)
        return {sides: sum(part.get(sides, 0.0) * share for part, share in parts) for sides in of_tiles | of_images}

    sizes, test = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        sizes = range(min(sizes), max(sizes) + 1)
    divisor = math.lcm(32, max(1, divisor))
    resized = [size for size in sizes if size > 0]  # 0: images of whatever size they have
    found = [batches(resized, cfg.INPUT.MAX_SIZE_TRAIN)]
    is_covered = test in sizes and cfg.INPUT.MAX_SIZE_TEST <= cfg.INPUT.MAX_SIZE_TRAIN
    if test > 0 and not is_covered:
        found.append(batches([test], cfg.INPUT.MAX_SIZE_TEST))
    return found


def batches_of_photographs(
    shorter: Iterable[int], longest: int, divisor: int, ratios: Mapping[float, float] = _RATIOS
) -> Batches:
    """Return what sides batches of two landscape photographs have, once resized as Detectron2 does.

    Args:
        shorter: the shorter sides to resize to, each as often as the others; pixels.
        longest: what the longer side may be; pixels.
        divisor: which the sides of a batch are multiples of, 1 or more.
        ratios: of the longer to the shorter side, and the share of images that have it.
    """
    images: Counter[tuple[int, int]] = Counter()
    for side in shorter:
        for ratio, share in ratios.items():
            scale = min(1.0, longest / (side * ratio))
            height, width = (-(-int(x * scale + 0.5) // divisor) * divisor for x in (side, side * ratio))
            images[height, width] += share  # type: ignore[assignment]
    batches: Counter[tuple[int, int]] = Counter()
    for (one, of_one), (other, of_other) in itertools.product(images.items(), repeat=2):
        batches[max(one[0], other[0]), max(one[1], other[1])] += of_one * of_other
    total = sum(batches.values())
    return {sides: share / total for sides, share in batches.items()}


def few_shapes(batches: Batches, count: int) -> list[tuple[int, int]]:
    """Return up to `count` shapes (height, width): one that holds every batch, then one by one what saves most."""
    # On the CPU also where a model is built on another device, such as "meta".
    sides = torch.tensor(list(batches), device="cpu")  # (n, 2)
    shares = torch.tensor(list(batches.values()), dtype=torch.float64, device="cpu")  # (n,)
    largest = sides.amax(0)
    shapes = {tuple(largest.tolist())}
    holds = (sides[:, None] >= sides).all(-1)  # (n, n): the shape of a row, the batch of a column
    area = sides.prod(-1).double()
    areas = area[:, None].where(holds, math.inf)
    padded = largest.prod().expand_as(area)  # of each batch, with the shapes so far
    for _ in range(count - 1):
        best = int((areas.minimum(padded) @ shares).argmin())
        padded = areas[best].minimum(padded)
        shapes.add(tuple(sides[best].tolist()))
    return sorted(shapes)


def extra_pixels(batches: Batches, shapes: Sequence[Sequence[int]]) -> float:
    """Return by what share padding to the smallest shape that holds it adds to the pixels of a batch, on average."""
    before = sum(share * height * width for (height, width), share in batches.items())
    after = sum(
        share * (area if math.isfinite(area := _padded_area(sides, shapes)) else sides[0] * sides[1])
        for sides, share in batches.items()
    )
    return after / before - 1


def _padded_area(sides: Sequence[int], shapes: Sequence[Sequence[int]]) -> float:
    """Return the area of the smallest shape that holds such a batch; infinite if none does."""
    return min((x * y for x, y in shapes if x >= sides[0] and y >= sides[1]), default=math.inf)


class ShapePadding:
    """Pads batches with zeros to the smallest of some shapes, and cuts the network's maps back.

    Anchors, assignment, losses and detections are those of the batch as it was. What a map holds where an image ends
    differs as between two batches of Detectron2's, of which one holds a larger image besides: the network sees a
    border of zeros, which its biases change layer by layer, where it would see the end of the map.

    Args:
        shapes: (short, long) sides in pixels, each also the other way round; none pads nothing.
        divisor: which all sides must be multiples of.

    Raises:
        ValueError: a shape that is not two such sides.

    Attributes:
        too_large: how many batches fitted no shape and were left as they were.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], divisor: int) -> None:
        for shape in shapes:
            fits = isinstance(shape, Sequence) and len(shape) == 2 and all(isinstance(side, int) for side in shape)
            if not fits or any(side < 1 or side % max(1, divisor) for side in shape):
                raise ValueError(
                    f"MODEL.FOCAL_DET.SPEED.PAD_TO has {shape!r}, which is not a pair of sides that are "
                    f"multiples of {divisor}, such as [{25 * max(1, divisor)}, {42 * max(1, divisor)}]; one number "
                    "alone, such as [3], lets so many be chosen"
                )
        both = {tuple(sides) for shape in shapes for sides in (shape, shape[::-1])}
        self.shapes = sorted(both, key=lambda sides: (sides[0] * sides[1], sides))
        self.too_large = 0

    def pad(self, images: Tensor) -> Tensor:
        """Pad (N, C, H, W) below and on the right."""
        height, width = images.shape[-2:]
        shape = next((sides for sides in self.shapes if sides[0] >= height and sides[1] >= width), None)
        if shape is None:
            self.too_large += bool(self.shapes)
            return images
        return images if shape == (height, width) else F.pad(images, (0, shape[1] - width, 0, shape[0] - height))


def cut_back(level: Tensor, padded: Sequence[int], size: Sequence[int], stride: int) -> Tensor:
    """View of a map (N, C, h, w) of padded images the part that images of a size (height, width) have.

    Raises:
        ValueError: a map that is not one cell for each `stride` pixels that have begun.
    """
    if tuple(padded) == tuple(size):
        return level
    if tuple(level.shape[-2:]) != map_size(padded, stride):
        raise ValueError(
            f"MODEL.FOCAL_DET.SPEED.PAD_TO: {tuple(padded)} px are a map of {tuple(level.shape[-2:])} "
            f"at stride {stride} of this backbone, which cannot be cut back to the images: leave PAD_TO empty"
        )
    height, width = map_size(size, stride)
    return level[..., :height, :width]


def map_size(size: Sequence[int], stride: int) -> tuple[int, int]:
    """Return the cells of a map of images of a size (height, width): one for each `stride` px that have begun."""
    height, width = (-(-side // stride) for side in size)
    return height, width


def classes_last(level: Tensor, channels: int) -> Tensor:
    """View (N, A*c, H, W) as (N, H, W, A, c); flattening (H, W, A) copies nothing if it was channels_last."""
    return level.unflatten(1, (-1, channels)).permute(0, 3, 4, 1, 2)


def padded_objects(batched_inputs: Sequence[Mapping[str, Any]], num_classes: int) -> tuple[Tensor, Tensor]:
    """Check the images' objects and return their boxes (N, G, 4) and classes (N, G): see `pad_objects`.

    Raises:
        ValueError: an image without "instances", or with a box that is not finite or a class outside -1..K-1.
    """
    for x in batched_inputs:
        name = x.get("file_name", "without a name")
        if "instances" not in x:
            raise ValueError(f'image {name}: no "instances" to train on')
        boxes, classes = x["instances"].gt_boxes.tensor, x["instances"].gt_classes
        if not boxes.isfinite().all():
            raise ValueError(f"image {name}: gt_boxes are not finite: {boxes}")
        if len(classes) and not -1 <= int(classes.min()) <= int(classes.max()) < num_classes:
            raise ValueError(
                f"image {name}: gt_classes go from {int(classes.min())} to "
                f"{int(classes.max())}, but MODEL.RETINANET.NUM_CLASSES is {num_classes}"
            )
    instances = [x["instances"] for x in batched_inputs]
    return pad_objects([x.gt_boxes.tensor for x in instances], [x.gt_classes for x in instances])
