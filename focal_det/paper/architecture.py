"""Figure 3: the detector of a configuration, drawn from the model that is built of it, with the shapes it computes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import FPN, ResNet, build_model
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon
from torch import nn

from ..config.load import UNSET_NUM_CLASSES
from ..config.validate import detector_problems
from ..data.catalog import known_classes
from ..errors import Findings, InputError
from .cost import image_size
from .figures import EDGE, draw_arrow, draw_label, times

_BACKBONE, _CLASSES, _BOXES, _FAINT = "#c9d6e8", "#f3d3a8", "#c7dfc0", "0.65"
_STEP = 0.17  # between the cards of equal convolutions
_SUBNETS = ("cls_subnet", "cls_score", "bbox_subnet", "bbox_pred")


class MapShape(NamedTuple):
    """A feature map of one image: its name in the model, channels, height, width."""

    name: str
    channels: int
    height: int
    width: int

    @property
    def size(self) -> str:
        """Width, height and channels, as the paper gives them."""
        return times(self.width, self.height, self.channels)


class Convolution(NamedTuple):
    """A convolution: its kernel, such as 3 x 3, its stride, the map that it computes."""

    kernel: str
    stride: int
    output: MapShape


class Architecture(NamedTuple):
    """The contents of figure 3.

    backbone: its name, such as ResNet-50.
    image: as the network receives it, padded.
    stages: the backbone's maps that the pyramid is made from, finest first.
    levels: the pyramid's maps that the subnets see, finest first.
    lateral: the kernel that makes a level from the stage beside it.
    extra_from: name of the map that the levels above the last stage are made from, by `extra`; "" where there are none.
    class_subnet, box_subnet: the convolutions, with what they compute at the finest level, the output's last.
    num_classes, num_anchors: K, and A at each location.
    """

    backbone: str
    image: MapShape
    stages: tuple[MapShape, ...]
    levels: tuple[MapShape, ...]
    lateral: str
    extra_from: str
    extra: str
    class_subnet: tuple[Convolution, ...]
    box_subnet: tuple[Convolution, ...]
    num_classes: int
    num_anchors: int


def read_architecture(cfg: CfgNode) -> Architecture:
    """Build a configuration's model and run it on a 4:3 image, as shapes alone: neither takes memory or weights.

    Raises:
        InputError: a configuration that makes no model; one without a feature pyramid, with a head of other parts than
            `RetinaNetHead`, with classes that nothing says the number of, or with images without a size.
    """
    Findings(detector_problems(cfg)).raise_if_errors()
    if cfg.INPUT.MIN_SIZE_TEST < 1:
        raise InputError(f"INPUT.MIN_SIZE_TEST is {cfg.INPUT.MIN_SIZE_TEST}, with which images keep theirs; set a size")
    model = _shapes_only(cfg)
    backbone, head = model.backbone, model.head
    if not isinstance(backbone, FPN) or not all(hasattr(head, name) for name in _SUBNETS):
        raise InputError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME}, MODEL.FOCAL_DET.HEAD_NAME {cfg.MODEL.FOCAL_DET.HEAD_NAME}:"
            " figure 3 shows a feature pyramid and the subnets of RetinaNetHead; name a configuration that has both"
        )
    size = [side + -side % max(backbone.size_divisibility, 1) for side in image_size(cfg)]
    image = torch.empty(1, len(cfg.MODEL.PIXEL_MEAN), *size, device="meta")
    with torch.inference_mode():
        stages, features = backbone.bottom_up(image), backbone(image)
        levels = [features[name] for name in model.in_features]
        class_subnet, box_subnet = (
            _convolutions((*getattr(head, subnet), getattr(head, output)), levels[0])
            for subnet, output in (_SUBNETS[:2], _SUBNETS[2:])
        )
    bottom_up = backbone.bottom_up
    resnet = f"{'ResNet' if cfg.MODEL.RESNETS.NUM_GROUPS == 1 else 'ResNeXt'}-{cfg.MODEL.RESNETS.DEPTH}"
    return Architecture(
        resnet if isinstance(bottom_up, ResNet) else type(bottom_up).__name__,
        _shape("image", image),
        tuple(_shape(name, stages[name]) for name in backbone.in_features),
        tuple(_shape(name, level) for name, level in zip(model.in_features, levels, strict=True)),
        times(*backbone.lateral_convs[0].kernel_size),
        *_extra_levels(backbone.top_block),
        class_subnet,
        box_subnet,
        model.num_classes,
        model.anchor_generator.num_cell_anchors[0],
    )


def _shapes_only(cfg: CfgNode) -> Any:
    """Return the model on PyTorch's device without memory, and without the ways to be fast that read values there."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "meta", ""
    for key in ("FOLD_NORMS", "BFLOAT16_INFERENCE", "COMPILE", "CUDA_GRAPHS"):
        cfg.MODEL.FOCAL_DET.SPEED[key] = False
    if cfg.MODEL.RETINANET.NUM_CLASSES == UNSET_NUM_CLASSES:
        sets = cfg.DATASETS.TEST
        known = known_classes(sets[0]) if sets else None
        if known is None:
            raise InputError(f"the classes of DATASETS.TEST {sets} are not known; set MODEL.RETINANET.NUM_CLASSES")
        cfg.MODEL.RETINANET.NUM_CLASSES = len(known[0])
    try:
        with torch.device("meta"):
            return build_model(cfg).eval()
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"the configuration does not make a model: {type(error).__name__}: {error}") from error


def _extra_levels(top_block: Any) -> tuple[str, str]:
    """Return from which map, and by what convolution, the levels above the last stage are made; "" for no levels."""
    convolutions = [m for m in top_block.modules() if isinstance(m, nn.Conv2d)] if top_block is not None else []
    if not convolutions:
        return "", ""
    return top_block.in_feature, f"{times(*convolutions[0].kernel_size)}, stride {convolutions[0].stride[0]}"


def _shape(name: str, tensor: torch.Tensor) -> MapShape:
    return MapShape(name, *tensor.shape[1:])


def _convolutions(layers: Sequence[nn.Module], x: torch.Tensor) -> tuple[Convolution, ...]:
    """Return the convolutions among some layers that run one after the other."""
    found = []
    for layer in layers:
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            found.append(Convolution(times(*layer.kernel_size), layer.stride[0], _shape("", x)))
    return tuple(found)


def draw_architecture(architecture: Architecture) -> Figure:
    """Draw figure 3."""
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(0, 12), ylim=(-1, 5.15))
    axes.set_axis_off()
    rows = _rows(architecture)
    _draw_backbone(axes, architecture, rows)
    _draw_pyramid(axes, architecture, rows)
    _draw_bus(axes, [rows[level.name] + _HEIGHT / 2 for level in architecture.levels])
    anchors = f"{architecture.num_anchors} anchors"
    channels = architecture.levels[0].channels
    classes, boxes = architecture.class_subnet, architecture.box_subnet
    of_classes = f"{architecture.num_classes} classes"
    is_by_class = boxes[-1].output.channels > 4 * architecture.num_anchors
    scores = times(f"{of_classes} ", f" {anchors}")
    offsets = times("4 offsets ", *[f" {of_classes} "] * is_by_class, f" {anchors}")
    _draw_subnet(axes, _CLASS_Y, channels, classes, _CLASSES, "(c) class subnet", scores)
    _draw_subnet(axes, _BOX_Y, channels, boxes, _BOXES, "(d) box subnet", offsets)
    finest, coarsest = architecture.levels[0], architecture.levels[-1]
    sizes = [f"{times(level.width, level.height)} at {level.name.upper()}" for level in (finest, coarsest)]
    note = f"{times('W', 'H')} is {' to '.join(dict.fromkeys(sizes))}; both subnets are the same for all levels"
    axes.text(_SUBNET + _FRAME / 2, _BOX_Y - 0.25, note, ha="center", fontsize=8.5, color="0.3")
    for x, title in ((_STAGES, f"(a) {architecture.backbone}"), (_PYRAMID, "(b) feature pyramid")):
        axes.text(x, -0.95, title, ha="center", fontsize=11, weight="bold")
    return figure


_STAGES, _PYRAMID, _BUS, _SUBNET = 1.85, 4.5, 6.35, 6.85  # centers of two columns, a line, and where the third begins
_HEIGHT = 0.42  # of a drawn map
_FRAME, _CLASS_Y, _BOX_Y = 5.0, 2.75, 0.25  # width of a subnet's frame, and the lower edges of both


def _rows(architecture: Architecture) -> dict[str, float]:
    """Return the height at which each map is drawn: a level beside the stage of its size, finer ones below."""
    maps = (*architecture.stages, *architecture.levels)
    widths = sorted({shape.width for shape in maps}, reverse=True)
    step = 4.1 / max(len(widths) - 1, 1)
    return {shape.name: 0.5 + step * widths.index(shape.width) for shape in maps}


def _width(y: float) -> float:
    """Return how wide a map at some height is drawn: a pyramid, not to scale."""
    return 1.75 - 0.25 * y


def _draw_backbone(axes: Axes, architecture: Architecture, rows: Mapping[str, float]) -> None:
    below = -0.45
    _plane(axes, _STAGES, below, 1.9, "0.93")
    axes.text(_STAGES, below + _HEIGHT / 2, f"image {architecture.image.size}", ha="center", va="center", fontsize=8)
    for stage in architecture.stages:
        y = rows[stage.name]
        _plane(axes, _STAGES, y, _width(y), _BACKBONE)
        axes.text(_STAGES, y + _HEIGHT / 2, stage.name.replace("res", "C"), ha="center", va="center", fontsize=11)
        axes.text(_STAGES - _width(y) / 2 - 0.15, y + _HEIGHT / 2, stage.size, ha="right", va="center", fontsize=8)
        draw_arrow(axes, (_STAGES, below + _HEIGHT + 0.03), (_STAGES, y - 0.03))
        below = y


def _draw_pyramid(axes: Axes, architecture: Architecture, rows: Mapping[str, float]) -> None:
    """Draw the levels: those beside a stage from it and from the level above, the others one from another."""
    beside = {shape.width: shape.name for shape in architecture.stages}
    source = architecture.extra_from
    for level, above in zip(architecture.levels, (*architecture.levels[1:], None), strict=True):
        y = rows[level.name]
        middle, edge = y + _HEIGHT / 2, _width(y) / 2
        _plane(axes, _PYRAMID, y, _width(y), _BACKBONE)
        axes.text(_PYRAMID, middle, level.name.upper(), ha="center", va="center", fontsize=11, weight="bold")
        if level.width in beside:
            draw_arrow(axes, (_STAGES + edge + 0.08, middle), (_PYRAMID - edge - 0.08, middle))
            draw_label(axes, (_STAGES + _PYRAMID) / 2, middle + 0.05, architecture.lateral)
            if above and above.width in beside:
                draw_arrow(axes, (_PYRAMID, rows[above.name] - 0.03), (_PYRAMID, y + _HEIGHT + 0.03))
                up = times("", round(level.width / above.width))
                draw_label(axes, _PYRAMID + 0.08, (y + _HEIGHT + rows[above.name]) / 2 - 0.07, f"{up} up, +", "left")
        elif source in beside.values():
            start, end = (_STAGES + _width(rows[source]) / 2, rows[source] + _HEIGHT), (_PYRAMID - edge - 0.1, y)
            draw_arrow(axes, (start[0], start[1] + 0.03), (end[0], end[1] - 0.03))
            draw_label(axes, (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.1, architecture.extra, "right")
            source = level.name
        elif source:
            draw_arrow(axes, (_PYRAMID, rows[source] + _HEIGHT + 0.03), (_PYRAMID, y - 0.03))
            draw_label(axes, _PYRAMID + 0.08, (rows[source] + _HEIGHT + y) / 2 - 0.07, architecture.extra, "left")
            source = level.name
        axes.text(_PYRAMID + edge + 0.15, middle, level.size, ha="left", va="center", fontsize=8)


def _draw_bus(axes: Axes, levels: Sequence[float]) -> None:
    """Draw a line from each level to one that leads to both subnets."""
    targets = [y + 1.0 for y in (_CLASS_Y, _BOX_Y)]
    for y in levels:
        axes.plot([_PYRAMID + _width(y) / 2 + 0.98, _BUS], [y, y], color=_FAINT, linewidth=1)
    axes.plot([_BUS, _BUS], [min(*levels, *targets), max(*levels, *targets)], color=_FAINT, linewidth=1)
    for y in targets:
        draw_arrow(axes, (_BUS, y), (_SUBNET - 0.08, y), _FAINT)


def _draw_subnet(
    axes: Axes, y: float, channels: int, subnet: Sequence[Convolution], color: str, title: str, what: str
) -> None:
    """Draw a subnet as its maps, from left to right: input, every run of equal convolutions, output."""
    axes.add_patch(
        FancyBboxPatch((_SUBNET, y), _FRAME, 2.1, boxstyle="round,pad=0.04", facecolor="0.985", edgecolor=_FAINT)
    )
    axes.text(_SUBNET + 0.15, y + 1.92, title, ha="left", va="center", fontsize=11, weight="bold")
    maps = [("", channels, 1), *_runs(subnet)]
    places = [_SUBNET + 0.55 + (_FRAME - 1.2) * i / (len(maps) - 1) for i in range(len(maps))]
    for i, ((kernel, filters, count), x) in enumerate(zip(maps, places, strict=True)):
        offsets = [_STEP * (copy - (count - 1) / 2) for copy in range(count)]
        for offset in offsets:
            _card(axes, x + offset, y + 0.72, color if i else _BACKBONE)
        repeated = f"  {times('', count)}" if count > 1 else ""
        axes.text(x, y + 0.52, times("W", "H", filters) + repeated, ha="center", va="top", fontsize=9)
        if i:
            before = places[i - 1] + 0.25 + _STEP * (maps[i - 1][2] - 1) / 2
            draw_arrow(axes, (before, y + 1.15), (x + offsets[0] - 0.25, y + 1.15))
            draw_label(axes, (before + x + offsets[0] - 0.25) / 2, y + 1.2, kernel)
    output = subnet[-1].output.channels
    axes.text(places[-1] + 0.3, y + 0.15, f"{output} = {what}", ha="right", va="bottom", fontsize=8.5)


def _runs(subnet: Sequence[Convolution]) -> list[tuple[str, int, int]]:
    """Return (kernel, channels, count) of equal convolutions in a row; the output stands alone."""
    *before, output = subnet
    groups = itertools.groupby(before, key=lambda conv: (conv.kernel, conv.output.channels))
    return [*((*key, len(list(group))) for key, group in groups), (output.kernel, output.output.channels, 1)]


def _plane(axes: Axes, x: float, y: float, width: float, color: str) -> None:
    """Draw a map of the pyramid, seen from the side, its lower edge's middle at (x, y)."""
    slant, half = 0.11, width / 2
    corners = [(x - half - slant, y), (x + half - slant, y), (x + half + slant, y + _HEIGHT)]
    corners.append((x - half + slant, y + _HEIGHT))
    axes.add_patch(Polygon(corners, facecolor=color, edgecolor=EDGE, linewidth=0.8))


def _card(axes: Axes, x: float, y: float, color: str) -> None:
    """Draw a map of a subnet, turned, around x, with its lowest corner at y."""
    corners = [(x - 0.12, y), (x + 0.12, y + 0.16), (x + 0.12, y + 0.88), (x - 0.12, y + 0.72)]
    axes.add_patch(Polygon(corners, facecolor=color, edgecolor=EDGE, linewidth=0.8))
