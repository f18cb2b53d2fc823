"""The detector as a module: initialisation, every batch, every backbone of the configurations."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

from focal_det.config.load import load_config
from focal_det.modeling.head import RetinaNetHead

pytestmark = pytest.mark.detectron2

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
PAPERS = Path(__file__).parents[2] / "configs" / "paper" / "Base-600.yaml"


@pytest.mark.parametrize("prior", [0.01, 0.1, 0.5])
def test_before_training_every_score_is_about_the_prior(tiny_cfg, prior):
    model = build_model(tiny_cfg("MODEL.RETINANET.PRIOR_PROB", str(prior)))
    maps = [torch.randn(1, model.head.cls_subnet[0].in_channels, side, side) for side in (8, 4)]
    with torch.no_grad():
        scores = torch.cat([logits.sigmoid().flatten() for logits in model.head(maps)[0]])
    torch.testing.assert_close(scores, torch.full_like(scores, prior), rtol=0.05, atol=0)
    assert model.head.cls_score.bias.tolist() == pytest.approx([-math.log((1 - prior) / prior)] * 27)
    convs = [layer for layer in model.head.modules() if isinstance(layer, nn.Conv2d)]
    assert all(0.005 < conv.weight.std().item() < 0.015 for conv in convs)
    assert all(conv.bias.eq(0).all() for conv in convs if conv is not model.head.cls_score)


def test_the_prior_changes_the_last_bias_alone_and_not_the_loss(tiny_cfg):
    models = []
    for prior in ("0.01", "0.5"):
        torch.manual_seed(0)
        models.append(build_model(tiny_cfg("MODEL.RETINANET.PRIOR_PROB", prior)))
    one, other = (model.state_dict() for model in models)
    assert [name for name in one if not torch.equal(one[name], other[name])] == ["head.cls_score.bias"]
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 3, -1])
    assert len({model.criterion.class_loss(logits, labels).item() for model in models}) == 1


def test_the_subnets_share_no_parameters():
    head = RetinaNetHead(
        in_channels=8, num_levels=5, num_classes=2, num_anchors=3, num_convs=4, prior_prob=0.01, norm=""
    )
    assert [name for name, _ in head.named_parameters() if name.startswith("cls_subnet") and "weight" in name] == [
        f"cls_subnet.{i}.weight" for i in (0, 2, 4, 6)
    ]
    assert len({id(p) for p in head.parameters()}) == 2 * (2 * 4 + 2)
    logits, deltas = head([torch.zeros(2, 8, 6, 4), torch.zeros(2, 8, 3, 2)])
    assert [tuple(x.shape) for x in logits] == [(2, 6, 6, 4), (2, 6, 3, 2)]
    assert [tuple(x.shape) for x in deltas] == [(2, 12, 6, 4), (2, 12, 3, 2)]


def test_the_papers_pyramid_subnets_and_anchors():
    # Section 4 with its second footnote, from the configuration that the paper's rows share
    cfg = load_config(PAPERS, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.RETINANET.NUM_CLASSES", "80"])
    model = build_model(cfg)
    pyramid, head = model.backbone, model.head
    assert model.in_features == ("p3", "p4", "p5", "p6", "p7")
    assert [(s.channels, s.stride) for s in pyramid.output_shape().values()] == [(256, 2**k) for k in range(3, 8)]
    assert [name for name, _ in pyramid.named_children() if "lateral" in name] == [f"fpn_lateral{k}" for k in (3, 4, 5)]
    top = pyramid.top_block
    c3, c4, c5 = (torch.randn(1, 256 * 2**k, 32 >> k, 16 >> k) for k in (1, 2, 3))
    pyramid.bottom_up = nn.Identity()
    levels = pyramid({"res3": c3, "res4": c4, "res5": c5})
    merged = pyramid.fpn_lateral4(c4) + F.interpolate(pyramid.fpn_lateral5(c5), scale_factor=2)
    torch.testing.assert_close(levels["p4"], pyramid.fpn_output4(merged))
    torch.testing.assert_close(levels["p6"], F.conv2d(c5, top.p6.weight, top.p6.bias, stride=2, padding=1))
    assert levels["p6"].min() < 0
    p7 = F.conv2d(levels["p6"].relu(), top.p7.weight, top.p7.bias, stride=2, padding=1)
    torch.testing.assert_close(levels["p7"], p7)
    new = [layer for name, layer in pyramid.named_modules() if name.startswith("fpn_") or "top_block.p" in name]
    assert len(new) == 8
    for layer in new:  # the authors' XavierFill: uniform, with a variance of 1 / inputs
        bound = math.sqrt(3 / layer.weight[0].numel())
        assert 0.99 * bound < layer.weight.abs().max().item() <= bound
        assert layer.bias.eq(0).all()
    for subnet, last, outputs in (
        (head.cls_subnet, head.cls_score, 9 * 80),
        (head.bbox_subnet, head.bbox_pred, 9 * 4),
    ):
        assert [type(layer) for layer in subnet] == [nn.Conv2d, nn.ReLU] * 4
        assert [tuple(layer.weight.shape) for layer in (*subnet[::2], last)] == [
            *[(256, 256, 3, 3)] * 4,
            (outputs, 256, 3, 3),
        ]
    # An image of 480 x 640 at a shorter side of 600: 600 x 800, padded to 608 x 800; "~100k"
    sizes = [(76, 100), (38, 50), (19, 25), (10, 13), (5, 7)]
    assert sum(map(len, model.anchor_generator.anchors(sizes))) == 91_260


@pytest.mark.parametrize(
    ("change", "message"),
    [({"prior_prob": 1.0}, "prior_prob=1.0"), ({"num_convs": -1}, "num_convs=-1"), ({"norm": "GNN"}, '"GNN"')],
)
def test_bad_head_arguments_are_named(change, message):
    arguments = {"in_channels": 8, "num_levels": 5, "num_classes": 2, "num_anchors": 3, "num_convs": 1}
    with pytest.raises(ValueError, match=message):
        RetinaNetHead(**(arguments | {"prior_prob": 0.01, "norm": ""} | change))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.RETINANET.IOU_THRESHOLDS", [0.4], r"iou_thresholds=\[0\.4\]"),
        ("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", -0.1, "beta=-0.1"),
        ("MODEL.RETINANET.BBOX_REG_WEIGHTS", (1.0, 1.0, 0.0, 1.0), "box_weights="),
        ("MODEL.RETINANET.SCORE_THRESH_TEST", 1.0, "score_thresh=1.0"),
        ("MODEL.RETINANET.NMS_THRESH_TEST", 1.5, "nms_thresh=1.5"),
        ("MODEL.RETINANET.TOPK_CANDIDATES_TEST", 0, "topk_per_level=0"),
        ("TEST.DETECTIONS_PER_IMAGE", 0, "max_detections=0"),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 0.0], "pixel_std="),
    ],
)
def test_a_value_out_of_its_range_is_refused_when_the_model_is_built(tiny_cfg, key, value, message):
    cfg = tiny_cfg()
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        build_model(cfg)


@pytest.mark.parametrize("counts", [(2, 3), (0, 2), (0, 0)])
def test_a_step_reaches_every_parameter(tiny_cfg, batch_of, counts):
    model = build_model(tiny_cfg())
    losses = model(batch_of(counts))
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert losses["loss_cls"] > 0


@pytest.mark.parametrize("amp", [False, True])
def test_it_learns_a_batch_by_heart(tiny_cfg, batch_of, amp):
    model, batch = build_model(tiny_cfg()), batch_of((2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    totals = []
    for _ in range(30):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            total = sum(model(batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert total.dtype == torch.float32
    assert totals[-1] < totals[0] / 2


def test_images_of_different_sizes_are_padded_and_boxes_come_back_in_their_own(tiny_cfg, batch_of):
    model = build_model(tiny_cfg("MODEL.RETINANET.SCORE_THRESH_TEST", "0.005")).eval()
    batch = [*batch_of((0,), size=(64, 96)), *batch_of((0,), size=(96, 64))]
    batch[0] |= {"height": 640, "width": 960}
    with torch.no_grad():
        first, second = (result["instances"] for result in model(batch))
    assert first.image_size == (640, 960)
    assert second.image_size == (96, 64)
    assert first.pred_boxes.tensor[:, 2].max() > 96
    for found, (height, width) in ((first, (640, 960)), (second, (96, 64))):
        assert found.pred_boxes.tensor.min() >= 0
        assert (found.pred_boxes.tensor[:, 2:] <= torch.tensor([width, height])).all()
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_a_class_that_the_model_has_not_names_the_image(tiny_cfg, batch_of):
    (x,) = batch_of((2,))
    x["instances"].gt_classes[1] = 3
    with pytest.raises(ValueError, match=r"image cells\.png: gt_classes go from \d to 3, but .*NUM_CLASSES is 3"):
        build_model(tiny_cfg())([x | {"file_name": "cells.png"}])


def test_a_nonfinite_box_names_the_image(tiny_cfg, batch_of):
    (x,) = batch_of((2,))
    x["instances"].gt_boxes.tensor[0, 3] = torch.nan
    with pytest.raises(ValueError, match=r"image cells\.png: gt_boxes are not finite"):
        build_model(tiny_cfg())([x | {"file_name": "cells.png"}])


def test_training_without_ground_truth_names_the_image(tiny_cfg, batch_of):
    (x,) = batch_of((1,))
    del x["instances"]
    with pytest.raises(ValueError, match=r'image cells\.png: no "instances"'):
        build_model(tiny_cfg())([x | {"file_name": "cells.png"}])


@pytest.mark.parametrize("path", [p for p in CONFIGS if not p.stem.startswith("Base")], ids=lambda p: p.stem)
def test_every_configuration_builds_trains_and_detects(path, batch_of):
    cfg = load_config(path, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    model = build_model(cfg)
    losses = model(batch_of((2,), size=(64, 64)))
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        (result,) = model.eval()(batch_of((2,), size=(64, 64)))
    assert isinstance(result["instances"], Instances)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_configuration_is_headed_by_its_command(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    if path.stem.startswith("Base"):
        assert header
    else:
        assert header[0].startswith(f"# python train_net.py --config-file configs/{path.name}")
        text = " ".join(header)
        assert "Time: " in text
        assert "Expected: " in text
        output_dir = load_config(path).OUTPUT_DIR
        assert output_dir == f"output/{path.stem}"
