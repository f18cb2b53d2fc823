"""The registered generator: float for float Detectron2's, cached, and clear about bad sizes."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from focal_det.modeling import anchor_generator
from focal_det.modeling.anchor_generator import OctaveAnchorGenerator

pytestmark = pytest.mark.detectron2

STRIDES = (8, 16, 32, 64, 128)


@pytest.mark.parametrize("scales", [1, 2, 3, 4])
@pytest.mark.parametrize("ratios", [[1.0], [0.5, 1.0, 2.0], [0.3, 0.7, 1.1, 3.3]])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_equals_detectron2s_to_the_last_bit(scales, ratios, offset):
    bases = [32, 64, 128, 256, 500.5]
    ours = OctaveAnchorGenerator(
        base_sizes=bases, scales_per_octave=scales, aspect_ratios=ratios, strides=STRIDES, offset=offset
    )
    theirs = DefaultAnchorGenerator(
        sizes=[[base * 2 ** (k / scales) for k in range(scales)] for base in bases],
        aspect_ratios=[ratios],
        strides=STRIDES,
        offset=offset,
    )
    features = [torch.zeros(2, 1, 13 + level, 20 - 3 * level) for level in range(5)]
    assert ours.num_cell_anchors == theirs.num_cell_anchors == [scales * len(ratios)] * 5
    for own, other in zip(ours(features), theirs(features), strict=True):
        assert own.tensor.equal(other.tensor)


def test_one_shape_is_made_once_and_the_cache_is_bounded(monkeypatch):
    generator = OctaveAnchorGenerator(
        base_sizes=[32], scales_per_octave=1, aspect_ratios=[1.0], strides=[8], offset=0.0
    )
    first = generator.anchors([(4, 5)])
    assert generator.anchors([(4, 5)]) is first
    assert generator.anchors([(5, 4)])[0].shape == (20, 4)
    monkeypatch.setattr(anchor_generator, "_MAX_CACHED_SHAPES", 2)
    generator.anchors([(6, 6)])
    assert generator.anchors([(4, 5)]) is not first  # the oldest went


def test_moving_the_module_moves_the_anchors():
    generator = OctaveAnchorGenerator(
        base_sizes=[32], scales_per_octave=1, aspect_ratios=[1.0], strides=[8], offset=0.0
    )
    generator.anchors([(2, 2)])
    assert generator.double().anchors([(2, 2)])[0].dtype == torch.float64


def test_anchors_are_not_in_the_checkpoint():
    generator = OctaveAnchorGenerator(
        base_sizes=[32], scales_per_octave=1, aspect_ratios=[1.0], strides=[8], offset=0.0
    )
    assert generator.state_dict() == {}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SIZES", [[32, 64]] * 5, "one base size per level"),
        ("SIZES", [[32]] * 4, "4 base sizes"),
        ("ASPECT_RATIOS", [[1.0]] * 5, "one list of ratios"),
        ("OFFSET", 1.0, "offset=1.0"),
    ],
)
def test_bad_configuration_is_named(tiny_cfg, key, value, message):
    cfg = tiny_cfg()
    cfg.MODEL.ANCHOR_GENERATOR[key] = value
    with pytest.raises(ValueError, match=message):
        build_anchor_generator(cfg, [ShapeSpec(channels=1, stride=s) for s in STRIDES])
