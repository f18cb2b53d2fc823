"""The heads that the paper decided against: boxes of each class, in training, detection and export; one subnet."""

import pytest
import torch
from detectron2.modeling import build_model
from export_fixtures import FINDING, finding_model

from focal_det.checkpoint.class_rows import ClassRows
from focal_det.export.graph import DetectorGraph
from focal_det.export.suppress import torch_suppression
from focal_det.modeling.box_coding import deltas_of_classes
from focal_det.modeling.head import RetinaNetHead

pytestmark = pytest.mark.detectron2

BY_CLASS = ("MODEL.FOCAL_DET.HEAD_NAME", "ClassSpecificBoxHead")
K = 3


@pytest.fixture
def detector(tiny_cfg):
    return finding_model(tiny_cfg(*FINDING, *BY_CLASS))


@pytest.fixture
def agnostic(tiny_cfg, detector):
    """Makes the class-agnostic detector whose boxes are those that the other has for a class."""

    def of_class(label):
        model = build_model(tiny_cfg(*FINDING)).eval()
        weights = dict(detector.state_dict())
        for name in ("head.bbox_pred.weight", "head.bbox_pred.bias"):
            weights[name] = weights[name].unflatten(0, (-1, K, 4))[:, label].flatten(0, 1)
        model.load_state_dict(weights)
        return model

    return of_class


def one_image(batch_of):
    (image,) = batch_of([2])
    return image


def test_a_seed_draws_all_default_weights_first_and_then_those_of_the_paper():
    """The order is part of what a seed means: another would change the results of every training."""
    torch.manual_seed(7)
    head = RetinaNetHead(in_channels=4, num_levels=2, num_classes=K, num_anchors=2, num_convs=1)
    torch.manual_seed(7)
    convs = [torch.nn.Conv2d(4, channels, kernel_size=3, padding=1) for channels in (4, 4, 2 * K, 2 * 4)]
    for conv in convs:
        torch.nn.init.normal_(conv.weight, std=0.01)
    ours = (head.cls_subnet[0], head.bbox_subnet[0], head.cls_score, head.bbox_pred)
    assert all(torch.equal(one.weight, other.weight) for one, other in zip(ours, convs, strict=True))


def test_each_class_takes_its_four_deltas():
    deltas = torch.arange(24.0).reshape(2, 12)
    assert deltas_of_classes(deltas, torch.tensor([2, 0])).tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert deltas_of_classes(deltas, torch.tensor([-1, 3])).shape == (2, 4)  # ignored and background
    assert deltas_of_classes(deltas[:, :4], torch.tensor([2, 0])).tolist() == deltas[:, :4].tolist()


def test_a_detection_has_the_box_of_its_class(detector, agnostic, batch_of):
    image = one_image(batch_of)
    (found,) = detector([image])
    found = found["instances"]
    assert set(found.pred_classes.tolist()) == set(range(K))
    for label in range(K):
        (expected,) = agnostic(label)([image])
        ours, theirs = (x[x.pred_classes == label] for x in (found, expected["instances"]))
        together = min(len(ours), len(theirs))  # 100 of all classes are kept, so of one more or fewer
        torch.testing.assert_close(ours.scores[:together], theirs.scores[:together])
        torch.testing.assert_close(ours.pred_boxes.tensor[:together], theirs.pred_boxes.tensor[:together])


def test_an_object_trains_the_boxes_of_its_class_alone(detector, agnostic, batch_of):
    image = one_image(batch_of)
    image["instances"].gt_classes[:] = 1
    losses = detector.train()([image])
    losses["loss_box_reg"].backward()
    expected = agnostic(1).train()([image])["loss_box_reg"]
    torch.testing.assert_close(losses["loss_box_reg"], expected)
    by_class = detector.head.bbox_pred.weight.grad.unflatten(0, (-1, K, 4)).abs().sum(dim=(0, 2, 3, 4, 5))
    assert (by_class > 0).tolist() == [False, True, False]


def test_the_exported_graph_has_the_boxes_of_the_model(detector, batch_of):
    image = one_image(batch_of)
    graph = DetectorGraph(detector, torch_suppression(0.5))
    with torch.no_grad():
        boxes, _, classes, counts = graph(image["image"][None].to(torch.uint8), torch.tensor([[96, 128]]))
        (expected,) = detector([image | {"image": image["image"].to(torch.uint8)}])
    found = expected["instances"]
    whole = (boxes[0, :, 2:] > boxes[0, :, :2]).all(dim=1) & (torch.arange(boxes.shape[1]) < counts[0])
    assert len(found) == whole.sum() > 0
    torch.testing.assert_close(boxes[0, whole], found.pred_boxes.tensor, atol=2e-3, rtol=0)
    assert classes[0, whole].tolist() == found.pred_classes.tolist()


def test_other_classes_keep_the_boxes_of_those_that_they_share(detector):
    ours = {name: value.clone() for name, value in detector.state_dict().items()}
    theirs = {name: torch.randn_like(value) for name, value in ours.items()}
    checkpoint = {"model": dict(theirs)}
    ClassRows(model=("a", "b", "c"), files=("c", "a", "x")).keep(checkpoint, ours)
    kept = checkpoint["model"]["head.bbox_pred.weight"].unflatten(0, (-1, K, 4))
    before = theirs["head.bbox_pred.weight"].unflatten(0, (-1, K, 4))
    assert torch.equal(kept[:, 0], before[:, 1])
    assert torch.equal(kept[:, 2], before[:, 0])
    assert torch.equal(kept[:, 1], ours["head.bbox_pred.weight"].unflatten(0, (-1, K, 4))[:, 1])


def test_both_losses_train_the_one_subnet(tiny_cfg, batch_of):
    model = build_model(tiny_cfg("MODEL.FOCAL_DET.HEAD_NAME", "SharedSubnetHead"))
    assert {name.split(".")[0] for name, _ in model.head.named_parameters()} == {"cls_subnet", "cls_score", "bbox_pred"}
    losses = model(batch_of([2]))
    for name in ("loss_cls", "loss_box_reg"):
        model.zero_grad()
        losses[name].backward(retain_graph=True)
        assert model.head.cls_subnet[0].weight.grad.abs().sum() > 0, name
    assert all(parameter.requires_grad for parameter in model.head.parameters())
