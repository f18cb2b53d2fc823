"""Under configs/detectron2_parity.yaml everything is as in Detectron2's own RetinaNet with the same weights."""

import copy

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from focal_det.assigners.assignment import pad_objects

pytestmark = pytest.mark.detectron2

PARITY = "detectron2_parity.yaml"


def octave_sizes():
    return [[base * 2 ** (k / 3) for k in range(3)] for base in (32, 64, 128, 256, 512)]


# Without speed options all is as near as float32 in the same order allows; with all of them sums are in another order.
SPEED_OPTIONS = ["MODEL.FOCAL_DET.SPEED.CHANNELS_LAST", "True", "MODEL.FOCAL_DET.SPEED.FOLD_NORMS", "True"]
# Frozen norms of random weights pass the image's scale on, so it is made small.
FROZEN = ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", "2", "MODEL.PIXEL_STD", "[500., 500., 500.]"]
PIXELS = {"plain": 1e-3, "every speed option": 2e-2}
GRADIENTS = {"plain": 1e-5, "every speed option": 1e-4}  # of the tensor's largest


@pytest.fixture(params=["plain", "every speed option"])
def speed_options(request):
    return request.param


@pytest.fixture
def models(tiny_cfg, speed_options):
    """Ours and Detectron2's."""
    frozen = FROZEN if speed_options == "every speed option" else ()
    return both_models(tiny_cfg(*frozen, *(SPEED_OPTIONS if frozen else ()), base=PARITY))


def both_models(ours_cfg):
    """Make ours and Detectron2's, weights copied, with scores of all heights instead of the prior's."""
    theirs_cfg = ours_cfg.clone()
    theirs_cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    theirs_cfg.MODEL.ANCHOR_GENERATOR.NAME = "DefaultAnchorGenerator"
    theirs_cfg.MODEL.ANCHOR_GENERATOR.SIZES = octave_sizes()
    ours, theirs = build_model(ours_cfg), build_model(theirs_cfg)
    with torch.no_grad():
        for name, parameter in theirs.head.named_parameters():
            if "weight" in name:
                parameter.normal_(std=0.1)
        theirs.head.cls_score.bias.fill_(-2.0)
    loaded = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert loaded.missing_keys == ["criterion.normalizer.ema"]
    assert loaded.unexpected_keys == []
    return ours, theirs


BATCHES = [(3, 5), (0, 4), (0, 0), (1, 40), (7,)]


def test_labels_are_identical(models, batch_of):
    ours, theirs = models
    features = [torch.zeros(1, 16, side, side) for side in (16, 8, 4, 2, 1)]
    anchors = theirs.anchor_generator(features)
    assigned = 0
    for seed, counts in enumerate(BATCHES):
        instances = [x["instances"] for x in batch_of(counts, size=(128, 128), seed=seed)]
        their_labels, their_boxes = theirs.label_anchors(anchors, instances)
        objects = pad_objects([x.gt_boxes.tensor for x in instances], [x.gt_classes for x in instances])
        assignment = ours.criterion.assign([Boxes.cat(anchors).tensor], *objects)
        for image, our_labels, matched, labels, boxes in zip(
            instances, *assignment, their_labels, their_boxes, strict=True
        ):
            assert our_labels.equal(labels)
            is_object = (labels >= 0) & (labels < 3)
            assert image.gt_boxes.tensor[matched[is_object]].equal(boxes[is_object])
            assigned += int(is_object.sum())
    assert assigned > 100


def test_losses_and_gradients_agree_over_several_steps(models, speed_options, batch_of):
    ours, theirs = models
    with EventStorage():
        for seed, counts in enumerate(BATCHES):  # one after the other: the moving average must follow too
            batch = batch_of(counts, seed=seed)
            our_losses, their_losses = ours(copy.deepcopy(batch)), theirs(copy.deepcopy(batch))
            assert our_losses.keys() == their_losses.keys()
            for name, loss in their_losses.items():
                torch.testing.assert_close(our_losses[name], loss, rtol=1e-5, atol=1e-9)
            for model, losses in ((ours, our_losses), (theirs, their_losses)):
                model.zero_grad()
                sum(losses.values()).backward()
            for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
                if not other.requires_grad:
                    continue
                scale = other.grad.abs().max().item()
                allowed = GRADIENTS[speed_options] * scale + 1e-9
                torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=allowed, msg=name)
    assert ours.criterion.normalizer.ema.item() == pytest.approx(theirs.loss_normalizer, rel=1e-6)


@pytest.mark.parametrize("box_loss", ["giou", "diou", "ciou"])
def test_losses_of_boxes_and_their_gradients_agree(tiny_cfg, batch_of, box_loss):
    weights = ("MODEL.RETINANET.BBOX_REG_WEIGHTS", "(2.0, 2.0, 1.0, 0.5)")
    models = both_models(tiny_cfg("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", box_loss, *weights, base=PARITY))
    test_losses_and_gradients_agree_over_several_steps(models, "plain", batch_of)


@pytest.mark.parametrize("seed", range(3))
def test_detections_agree(models, speed_options, batch_of, seed):
    ours, theirs = (model.eval() for model in models)
    batch = batch_of((3, 0), seed=seed)
    batch[0] |= {"height": 480, "width": 640}  # given back at another size, as in evaluation
    with torch.no_grad():
        our_results, their_results = ours(copy.deepcopy(batch)), theirs(copy.deepcopy(batch))
    for our_result, their_result in zip(our_results, their_results, strict=True):
        own, other = our_result["instances"], their_result["instances"]
        assert len(own) == len(other) > 20
        torch.testing.assert_close(own.pred_boxes.tensor, other.pred_boxes.tensor, rtol=0, atol=PIXELS[speed_options])
        torch.testing.assert_close(own.scores, other.scores, rtol=0, atol=1e-5)
        assert own.pred_classes.equal(other.pred_classes)


@pytest.mark.parametrize("norm", ["", "GN", "BN"])
def test_checkpoints_load_both_ways(tiny_cfg, tmp_path, norm):
    options = ("MODEL.RETINANET.NORM", norm, "MODEL.FPN.OUT_CHANNELS", "32")  # GN has 32 groups
    ours_cfg = tiny_cfg(*options, base=PARITY)
    theirs_cfg = tiny_cfg(*options, "MODEL.META_ARCHITECTURE", "RetinaNet", base=PARITY)
    for source_cfg, target_cfg, missing, unexpected in (
        (theirs_cfg, ours_cfg, ["criterion.normalizer.ema"], []),
        (ours_cfg, theirs_cfg, [], ["criterion.normalizer.ema"]),
    ):
        source, target = build_model(source_cfg), build_model(target_cfg)
        DetectionCheckpointer(source, str(tmp_path)).save("saved")
        checkpointer = DetectionCheckpointer(target)
        reports = []
        checkpointer._log_incompatible_keys = reports.append
        checkpointer.load(str(tmp_path / "saved.pth"))
        (report,) = reports
        assert (report.missing_keys, report.unexpected_keys, report.incorrect_shapes) == (missing, unexpected, [])
        weights = target.state_dict()
        assert all(weights[name].equal(value) for name, value in source.state_dict().items() if name in weights)
