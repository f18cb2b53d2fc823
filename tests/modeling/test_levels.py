"""The detector over Detectron2's backbones, and what it says where levels, anchors and head do not fit."""

import copy
import sys
from types import ModuleType

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import SimpleFeaturePyramid, SwinTransformer, ViT, build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.utils.events import EventStorage
from torch import nn

from focal_det.modeling.anchor_generator import OctaveAnchorGenerator
from focal_det.modeling.levels import (
    ShapePadding,
    batches_of_photographs,
    cut_back,
    extra_pixels,
    few_shapes,
    shapes_to_pad_to,
)
from focal_det.modeling.retinanet import FocalRetinaNet

pytestmark = pytest.mark.detectron2

RESNET, PYRAMID = ["res2", "res3", "res4", "res5"], ["p2", "p3", "p4", "p5", "p6"]


class Mlp(nn.Sequential):
    """What a block of a transformer takes from timm: two linear layers."""

    def __init__(self, in_features, hidden_features, act_layer):
        super().__init__(nn.Linear(in_features, hidden_features), act_layer(), nn.Linear(hidden_features, in_features))


@pytest.fixture
def timm(monkeypatch):
    """Give Detectron2's transformers what they take from timm, which few have installed."""
    layers = ModuleType("timm.models.layers")
    layers.DropPath, layers.Mlp = nn.Dropout, Mlp
    monkeypatch.setitem(sys.modules, "timm.models.layers", layers)
    for name in ("timm", "timm.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))


def vit():
    """ViTDet's simple pyramid, P2 to P6, over images that are padded to 64 x 64."""
    net = ViT(
        img_size=64, embed_dim=16, depth=2, num_heads=2, window_size=2, window_block_indexes=[0],
        use_rel_pos=True, out_feature="last_feat",
    )  # fmt: skip
    top, scales = LastLevelMaxPool(), (4.0, 2.0, 1.0, 0.5)
    return SimpleFeaturePyramid(net, "last_feat", 16, scales, top_block=top, norm="LN", square_pad=64)


def swin():
    net = SwinTransformer(
        embed_dim=4, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_indices=(1, 2, 3)
    )
    return FPN(net, ["p1", "p2", "p3"], 16, top_block=LastLevelP6P7(32, 16, "p3"))


def regnet():
    stem, block, names = SimpleStem, ResBottleneckBlock, ["s2", "s3", "s4"]
    net = RegNet(
        stem_class=stem, stem_width=8, block_class=block, depth=7, w_a=24, w_0=8, w_m=2, group_width=8, norm="BN",
        out_features=names,
    )  # fmt: skip
    return FPN(net, names, 16, top_block=LastLevelP6P7(net.output_shape()["s4"].channels, 16, "s4"))


def step_and_detect(model, batch):
    """Train one step, which has to reach every parameter, and detect."""
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.decoding = {**model.decoding, "score_thresh": 0.0}
    with torch.no_grad():
        (found,) = model.eval()(batch[:1])
    assert len(found["instances"]) > 0


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(("backbone", "names"), [(vit, "23456"), (swin, "34567"), (regnet, "34567")])
def test_any_pyramid_of_detectron2s_is_a_backbone(batch_of, backbone, names):
    model = FocalRetinaNet(backbone=backbone(), num_classes=3)
    assert model.in_features == tuple(f"p{name}" for name in names)
    # The paper has four strides at the first scale: 32 px on P3, whose stride is 8
    assert [level.amax().item() for level in model.anchor_generator.cell_anchors] == pytest.approx(
        [2.0 ** (int(name) + 1 + 2 / 3 + 0.5) for name in names]  # the longer half side of ratio 2 at 2^(2/3)
    )
    step_and_detect(model, batch_of((2, 1), size=(64, 48)))


@pytest.mark.parametrize(
    ("keys", "sizes", "strides"),
    [
        (
            {"MODEL.BACKBONE.NAME": "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES": ["res4"],
             "MODEL.RETINANET.IN_FEATURES": ["res4"]},
            [[64]], [16],
        ),
        (
            {"MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone", "MODEL.RESNETS.OUT_FEATURES": RESNET,
             "MODEL.FPN.IN_FEATURES": RESNET, "MODEL.RETINANET.IN_FEATURES": PYRAMID},
            [[16], [32], [64], [128], [256]], [4, 8, 16, 32, 64],
        ),
    ],
    ids=["ResNet without FPN", "FPN from P2"],
)  # fmt: skip
def test_any_levels_of_a_resnet_are_its_features(tiny_cfg, batch_of, keys, sizes, strides):
    cfg = tiny_cfg()
    cfg.merge_from_list([part for pair in keys.items() for part in pair])
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = sizes
    model = build_model(cfg)
    assert list(model.anchor_generator.strides) == strides
    step_and_detect(model, batch_of((2, 1), size=(64, 90)))


DEFAULT, SIZES, RATIOS = (
    "DefaultAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.SIZES",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
)
NAME, FEATURES = "MODEL.ANCHOR_GENERATOR.NAME", "MODEL.RETINANET.IN_FEATURES"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([NAME, "RotatedAnchorGenerator"], "anchors of 5 numbers, .* set MODEL.ANCHOR_GENERATOR.NAME to Octave"),
        ([NAME, DEFAULT, RATIOS, [[1.0]] * 4 + [[1.0, 2.0]]], r"have \[1, 1, 1, 1, 2\] anchors .* ASPECT_RATIOS"),
        (
            [NAME, DEFAULT, SIZES, [[32]] * 4],
            "DefaultAnchorGenerator cannot be built with MODEL.ANCHOR_GENERATOR.SIZES",
        ),
        ([NAME, DEFAULT, SIZES, []], r"SIZES \[\], .*cannot be empty"),
        ([FEATURES, ["p3", "p9"]], r"IN_FEATURES\) is \['p3', 'p9'\], but the backbone's features are p3, p4, p5, p6"),
        ([FEATURES, []], r"IN_FEATURES\) is \[\], but"),
        ([FEATURES, ["p3", "p4"]], r"5 base sizes .* for 2 feature levels: .* MODEL.ANCHOR_GENERATOR.SIZES"),
    ],
)
def test_what_does_not_fit_is_named_with_key_and_fix(tiny_cfg, keys, message):
    cfg = tiny_cfg()
    cfg.merge_from_list(keys)
    with pytest.raises(ValueError, match=message):
        build_model(cfg)


def test_levels_with_unequal_channels_are_named(tiny_cfg):
    cfg = tiny_cfg("MODEL.BACKBONE.NAME", "build_resnet_backbone")
    cfg.merge_from_list([FEATURES, ["res3", "res4"], SIZES, [[32], [64]]])
    with pytest.raises(ValueError, match=r"\[128, 256\] channels: .* or MODEL.RETINANET.IN_FEATURES to levels of one"):
        build_model(cfg)


def test_strides_that_are_not_the_levels_are_named():
    generator = DefaultAnchorGenerator(sizes=[[32]], aspect_ratios=[[1.0]], strides=[8, 16, 32, 64])
    with pytest.raises(ValueError, match=r"strides \[8, 16, 32, 64\], but the levels p3, p4, p5, p6, p7 have \[8, 16"):
        FocalRetinaNet(backbone=regnet(), num_classes=3, anchor_generator=generator)


OCTAVE = [NAME, "OctaveAnchorGenerator", SIZES, [[32], [64], [128], [256], [512]]]
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.RETINANET.NUM_CONVS", 1),
]


@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        ("GeneralizedRCNN", ["MODEL.RPN.IN_FEATURES", PYRAMID, "MODEL.ROI_HEADS.IN_FEATURES", PYRAMID[:4]]),
        ("ProposalNetwork", ["MODEL.RPN.IN_FEATURES", PYRAMID]),
        ("RetinaNet", ["MODEL.RETINANET.IN_FEATURES", PYRAMID]),
    ],
)
def test_detectron2s_architectures_take_our_anchors(batch_of, architecture, keys):
    cfg = get_cfg()
    cfg.merge_from_list([*SMALL, *OCTAVE, *keys, "MODEL.META_ARCHITECTURE", architecture])
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"])
    cfg.merge_from_list(["MODEL.RESNETS.OUT_FEATURES", RESNET])
    cfg.merge_from_list(["MODEL.FPN.IN_FEATURES", RESNET])
    cfg.merge_from_list(["MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"])
    cfg.merge_from_list(["MODEL.ROI_BOX_HEAD.NUM_FC", 1, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7])
    model = build_model(cfg)
    generator = getattr(model, "proposal_generator", model).anchor_generator
    assert type(generator) is OctaveAnchorGenerator
    assert generator.num_anchors == [9] * 5
    assert generator.box_dim == 4
    batch = batch_of((2, 1), size=(64, 96))
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        assert len(model.eval()(batch)) == 2


def test_fcos_has_the_same_losses_with_our_anchors(batch_of):
    backbone = regnet()
    levels = list(backbone.output_shape().values())
    head = FCOSHead(input_shape=levels, num_classes=3, conv_dims=[16])
    theirs = FCOS(backbone=backbone, head=head, num_classes=3, pixel_mean=[128.0] * 3, pixel_std=[64.0] * 3)
    ours, strides = copy.deepcopy(theirs), [level.stride for level in levels]
    # A point is the centre of a square as large as its stride.
    ours.anchor_generator = OctaveAnchorGenerator(
        strides=strides, base_sizes=strides, scales_per_octave=1, aspect_ratios=[1.0], offset=0.5
    )
    losses = []
    for model in (theirs, ours):
        with EventStorage():
            losses.append(model(batch_of((2, 1), size=(64, 64))))
        sum(losses[-1].values()).backward()
    assert losses[0] == losses[1]


# --- padding to a few shapes -----------------------------------------------------------------------------------------

PAD_TO = "MODEL.FOCAL_DET.SPEED.PAD_TO"
FROZEN = ("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.PIXEL_STD", "[500., 500., 500.]")


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((64, 96), (64, 96)),
        ((32, 96), (64, 96)),
        ((96, 32), (96, 64)),
        ((64, 64), (64, 96)),  # of two that are as small, the one that comes first in their order
        ((96, 96), (96, 160)),
        ((160, 160), (160, 160)),  # too large: as it is
    ],
)
def test_a_batch_takes_the_smallest_shape_that_holds_it(size, shape):
    padding = ShapePadding([(96, 160), [64, 96]], 32)
    images = torch.ones(2, 3, *size)
    padded = padding.pad(images)
    assert padded.shape == (2, 3, *shape)
    assert padded[..., : size[0], : size[1]].equal(images)
    assert padded.sum() == images.sum()
    assert padding.too_large == (size == (160, 160))


@pytest.mark.parametrize(
    "shapes", ["[[800, 1333]]", "[[800]]", "[800, 1344]", "[[0, 32]]", "[['a', 32]]", "[True]", "[3.0]"]
)
def test_a_shape_that_is_none_is_named(tiny_cfg, shapes):
    with pytest.raises(ValueError, match=r"PAD_TO has .* not a pair of sides that are multiples of 32"):
        build_model(tiny_cfg(PAD_TO, shapes))


def test_one_shape_holds_all_and_others_are_added_where_they_save_most():
    batches = {(64, 64): 0.2, (64, 96): 0.3, (64, 128): 0.4, (96, 128): 0.1}
    # All at 96x128 = 12288 px. Beside it 64x128 saves .9 * 4096 and 64x96 .5 * 6144; after 64x128, 64x96 saves
    # .5 * 2048 and 64x64 .2 * 4096.
    assert few_shapes(batches, 1) == [(96, 128)]
    assert few_shapes(batches, 2) == [(64, 128), (96, 128)]
    assert few_shapes(batches, 3) == [(64, 96), (64, 128), (96, 128)]
    assert few_shapes(batches, 9) == sorted(batches)
    with torch.device("meta"):
        assert few_shapes({(64, 96): 1.0}, 3) == [(64, 96)]
    exact = 0.2 * 4096 + 0.3 * 6144 + 0.4 * 8192 + 0.1 * 12288
    assert extra_pixels(batches, [(96, 128)]) == pytest.approx(12288 / exact - 1)
    assert extra_pixels(batches, [(64, 96)]) == pytest.approx((exact + 0.2 * 2048) / exact - 1)  # others as they are


def test_batches_of_photographs_have_the_sides_that_detectron2_resizes_to():
    alone = batches_of_photographs([800], 1333, 1)
    assert sum(alone.values()) == pytest.approx(1)
    # 4:3 and 3:2 as they are; 2:1 is cut to 1333, and so is 1.7:1, whose shorter side is then 1333/1.7 = 784
    assert {(800, 800), (800, 1067), (800, 1200), (667, 1333), (784, 1333), (800, 1333)} <= alone.keys()
    assert alone[800, 1067] == pytest.approx(0.5**2 + 2 * 0.5 * (0.02 * 4))  # two of 4:3, or one and a squarer one
    assert (800, 1088) in batches_of_photographs([800], 1333, 32)
    assert min(batches_of_photographs([640, 800], 1333, 32))[0] == 640


RESIZED = ("INPUT.MIN_SIZE_TRAIN", "(800,)", "INPUT.MIN_SIZE_TEST", "800")


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        (RESIZED, 1, {(800, 1344)}),
        (RESIZED, 3, {(800, 1088), (800, 1216), (800, 1344)}),
        ((*RESIZED[:3], "400"), 1, {(800, 1344), (416, 800)}),  # of evaluation, whose longest photograph is 2:1
        ((*RESIZED[:3], "0"), 1, {(800, 1344)}),  # images are evaluated as they are
        (("INPUT.MIN_SIZE_TRAIN", "(0,)", *RESIZED[2:]), 1, {(800, 1344)}),  # images are trained on as they are
        (("INPUT.MIN_SIZE_TRAIN", "(640, 800)", *RESIZED[2:]), 1, {(800, 1344)}),
        ((*RESIZED, "INPUT.MAX_SIZE_TEST", "1600"), 1, {(800, 1344), (800, 1600)}),
        # tiles are squares, most of them; the others are images as a whole
        ((*RESIZED, "MODEL.FOCAL_DET.TILES.SIZE", "640"), 3, {(800, 800), (800, 1216), (800, 1344)}),
        (
            (*RESIZED[:3], "400", "MODEL.FOCAL_DET.TILES.SIZE", "64"),
            2,
            {(800, 800), (800, 1344), (416, 416), (416, 800)},
        ),
        (
            ("INPUT.MIN_SIZE_TRAIN", "(60, 70)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", RESIZED[2], "65"),
            1,
            {(96, 160)},
        ),
    ],
)
def test_a_number_of_shapes_is_chosen_from_the_sizes_of_images(tiny_cfg, sizes, count, expected):
    padding = build_model(tiny_cfg(*sizes, PAD_TO, f"[{count}]")).padding
    assert set(padding.shapes) == expected | {shape[::-1] for shape in expected}


def test_shapes_are_chosen_only_for_images_that_are_resized(tiny_cfg):
    with pytest.raises(ValueError, match=r"PAD_TO is \[3\], .* INPUT.MIN_SIZE_TRAIN is \(0,\); list the shapes"):
        build_model(tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(0,)", "INPUT.MIN_SIZE_TEST", "0", PAD_TO, "[3]"))


def test_for_a_backbone_that_takes_any_sides_shapes_are_multiples_of_32(tiny_cfg):
    sizes = ("INPUT.MIN_SIZE_TRAIN", "(640, 800)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range")
    cfg = tiny_cfg(*sizes, "INPUT.MIN_SIZE_TEST", "800", PAD_TO, "[6]")
    assert shapes_to_pad_to(cfg, 0) == shapes_to_pad_to(cfg, 32)


@pytest.mark.parametrize("count", [0, 17, -1])
def test_a_number_of_shapes_out_of_its_range_is_named(tiny_cfg, count):
    with pytest.raises(ValueError, match=rf"PAD_TO is \[{count}\], but the number of shapes is in \[1, 16\]"):
        build_model(tiny_cfg(PAD_TO, f"[{count}]"))


def test_padding_is_what_a_larger_image_beside_makes_of_a_batch(tiny_cfg, batch_of):
    small, large = batch_of((4,), size=(64, 96)), batch_of((0,), size=(128, 160))
    plain, padded = (
        build_model(tiny_cfg(*FROZEN, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", *options))
        for options in ((), (PAD_TO, "[[128, 160]]"))
    )
    padded.load_state_dict(plain.state_dict())
    (logits, labels), (expected, same) = (model.class_logits_and_labels(small) for model in (padded, plain))
    assert labels.equal(same)  # of as many anchors, and no more
    assert logits.shape == expected.shape
    # Detectron2's own padding: the same image in a batch with a larger one, of which the small one's part is cut out.
    with torch.no_grad():
        maps, _ = plain.network(plain._preprocess(small + large, None).tensor)
    parts = []
    for level, stride in zip(maps, (8, 16, 32, 64, 128), strict=True):
        part = level[:1, :, : -(-64 // stride), : -(-96 // stride)]
        parts.append(part.unflatten(1, (-1, 3)).permute(0, 3, 4, 1, 2).flatten(1, -2))
    torch.testing.assert_close(logits.detach(), torch.cat(parts, dim=1), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(logits, expected, rtol=1e-3, atol=1e-4)  # the border shows, as it does in Detectron2
    step_and_detect(padded, small)
    with torch.no_grad():
        boxes = padded(small)[0]["instances"].pred_boxes.tensor
    assert len(boxes) > 5
    assert boxes.max(dim=0).values[2:].le(torch.tensor([96.0, 64.0])).all()


def test_an_image_as_large_as_a_shape_changes_nothing(tiny_cfg, batch_of):
    batch = batch_of((4, 2), size=(64, 96))
    plain, padded = (build_model(tiny_cfg(*FROZEN, *options)) for options in ((), (PAD_TO, "[[64, 96], [64, 128]]")))
    padded.load_state_dict(plain.state_dict())
    torch.testing.assert_close(padded(batch), plain(batch), rtol=0, atol=0)


def test_maps_of_another_size_are_not_cut():
    with pytest.raises(ValueError, match="cannot be cut back"):
        cut_back(torch.zeros(1, 1, 9, 9), (64, 64), (32, 64), 8)
