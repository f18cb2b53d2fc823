"""The registered losses: the focal loss against fvcore's; which anchors the miners train, and what they cost."""

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss

from focal_det.losses import cross_entropy_loss, select_hard_examples
from focal_det.losses.focal import focal_formula
from focal_det.modeling import dense_losses
from focal_det.modeling.dense_losses import ElementwiseLoss, FocalLoss, OHEMLoss, OHEMOneToThreeLoss

pytestmark = pytest.mark.detectron2


def case(anchors=500, classes=3):
    corners = torch.rand(anchors, 2) * 80
    boxes = torch.cat([corners, corners + 5 + torch.rand(anchors, 2) * 20], dim=1)
    labels = torch.full((anchors,), classes)
    labels[::20] = torch.arange(len(labels[::20])) % classes
    labels[7::50] = -1
    return torch.randn(anchors, classes), labels, boxes


@pytest.mark.parametrize(("kind", "fraction"), [(OHEMLoss, None), (OHEMOneToThreeLoss, 0.25)])
def test_keeps_the_hardest_by_cross_entropy_and_ignores_the_rest(kind, fraction, monkeypatch):
    monkeypatch.setattr(kind, "_ROWS", 64)  # scored in parts, the last one shorter
    logits, labels, boxes = case()
    mined = kind(batch_size=32, nms_threshold=0.5).select(logits, labels, boxes)
    scores = cross_entropy_loss(logits, labels, reduction="none").sum(dim=1)
    kept = select_hard_examples(
        scores, boxes, labels, batch_size=32, nms_threshold=0.5, positive_fraction=fraction, num_classes=3
    )
    assert (mined >= 0).nonzero().squeeze(1).tolist() == sorted(kept.tolist())
    assert torch.equal(mined[kept], labels[kept])
    assert len(kept) > 8


def test_one_to_three_holds_its_ratio():
    logits, labels, boxes = case()
    mined = OHEMOneToThreeLoss(batch_size=32, nms_threshold=0.9).select(logits, labels, boxes)
    positives, negatives = ((mined >= 0) & (mined < 3)).sum(), (mined == 3).sum()
    assert (positives.item(), negatives.item()) == (8, 24)


def test_objects_everywhere_are_positives_all_the_same():
    logits, labels, boxes = case()
    labels = labels.clamp(max=2).abs()  # no background, so the largest label is a class
    mined = OHEMOneToThreeLoss(batch_size=32, nms_threshold=0.9).select(logits, labels, boxes)
    assert (mined >= 0).sum().item() == 8


def test_scoring_makes_no_gradients(monkeypatch):
    wanted = []

    def recorded(*arguments, **options):
        wanted.append(torch.is_grad_enabled())
        return cross_entropy_loss(*arguments, **options)

    monkeypatch.setattr(dense_losses, "cross_entropy_loss", recorded)
    logits, labels, boxes = case()
    OHEMLoss(batch_size=32, nms_threshold=0.5).select(logits.requires_grad_(), labels, boxes)
    assert wanted == [False]


@pytest.mark.parametrize("kind", [OHEMLoss, OHEMOneToThreeLoss])
def test_the_loss_is_the_cross_entropy_of_what_was_kept(kind):
    logits, labels, boxes = case()
    logits.requires_grad_()
    loss = kind(batch_size=32, nms_threshold=0.5)
    mined = loss.select(logits, labels, boxes)
    value = loss(logits, mined)
    torch.testing.assert_close(value, cross_entropy_loss(logits, mined))
    (grad,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(grad, torch.autograd.grad(cross_entropy_loss(logits, mined), logits)[0])
    assert torch.equal(grad.ne(0).any(dim=1), mined >= 0)


def test_an_image_without_objects_gives_one_to_three_nothing_and_a_graph_all_the_same():
    logits = torch.randn(50, 3, requires_grad=True)
    loss = OHEMOneToThreeLoss(batch_size=32, nms_threshold=0.5)
    mined = loss.select(logits, torch.full((50,), 3), case(anchors=50)[2])
    assert mined.tolist() == [-1] * 50
    value = loss(logits, mined)
    value.backward()  # under DDP every parameter must take part
    assert value.item() == 0
    assert logits.grad.eq(0).all()


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0, -1.0])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_loss_has_fvcores_value_and_gradient_for_every_alpha_that_a_configuration_may_set(tiny_cfg, alpha, gamma):
    keys = ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", str(alpha), "MODEL.RETINANET.FOCAL_LOSS_GAMMA", str(gamma))
    loss = FocalLoss(tiny_cfg(*keys))
    logits = (torch.randn(2, 50, 3) * 3).requires_grad_()
    labels = torch.randint(4, (2, 50))
    targets = F.one_hot(labels, 4)[..., :3].float()
    expected = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma, reduction="sum")
    (expected_grad,) = torch.autograd.grad(expected, logits)
    of_images = sum(map(loss, logits, labels))
    of_batch = loss.batch_loss([logits[:, :20], logits[:, 20:]], labels, torch.ones(2))
    for value in (of_images, of_batch):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(torch.autograd.grad(value, logits)[0], expected_grad, rtol=1e-4, atol=1e-7)
    assert expected_grad[targets == 1].eq(0).all() == (alpha == 0)
    assert expected_grad[targets == 0].eq(0).all() == (alpha == 1)


def test_weights_by_class_run_without_the_kernels_and_the_log_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(dense_losses, "triton_missing", lambda device: None)
    dense_losses._say_once.cache_clear()
    logits, labels, _ = case()
    levels = [logits.unsqueeze(0)]
    by_class = ElementwiseLoss(focal_formula(torch.full((3,), 0.25), 2.0), triton=True)
    with caplog.at_level("WARNING", logger=dense_losses.__name__):
        losses = [by_class.batch_loss(levels, labels.unsqueeze(0), torch.ones(1)) for _ in range(2)]
    torch.testing.assert_close(losses[0], FocalLoss()(logits, labels))
    assert [line.message for line in caplog.records] == [
        "MODEL.FOCAL_DET.SPEED.TRITON is on, but no kernel computes this ElementwiseLoss: the class loss runs "
        "without its kernels"
    ]
