"""The federated focal loss: which classes count, how often each is drawn, and the loss of those alone."""

import itertools

import pytest
import torch

from focal_det.heirs import federated_focal_loss, sample_classes
from focal_det.losses import focal_loss_reference
from focal_det.losses.focal import focal_formula
from focal_det.losses.fused import batch_loss

IMAGES = torch.tensor([900.0, 100.0, 25.0, 4.0, 1.0])
LABELS = torch.tensor([[5, 5, 3, -1], [5, 5, 5, -1], [0, 1, 2, 4], [5, 0, 0, 5]])


def test_an_image_has_its_own_classes_and_others_up_to_the_number():
    counted = sample_classes(LABELS.repeat(200, 1), IMAGES, num_classes=3).view(200, 4, 5)
    assert counted.sum(dim=2).unique(dim=0).tolist() == [[3, 3, 4, 3]]  # the third has more than three itself
    for image, own in enumerate(([3], [], [0, 1, 2, 4], [0])):
        assert counted[:, image, own].all()
    assert not counted[:, 2, 3].any()
    assert counted[:, 1].any(dim=0).all()


def inclusion(weights, number):
    """How likely each is among the first drawn one after the other without replacement, by all orders."""
    found = [0.0] * len(weights)
    for order in itertools.permutations(range(len(weights)), number):
        chance, left = 1.0, sum(weights)
        for k in order:
            chance, left = chance * weights[k] / left, left - weights[k]
        for k in order:
            found[k] += chance
    return found


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_others_are_drawn_without_replacement_by_the_power_of_their_images(power):
    labels = torch.full((40_000, 1), 5)
    share = sample_classes(labels, IMAGES, num_classes=2, power=power).double().mean(dim=0)
    expected = inclusion([n**power for n in IMAGES.tolist()], 2)
    assert share.tolist() == pytest.approx(expected, abs=0.011)  # four standard deviations


def test_a_label_that_is_no_class_is_no_class_of_the_image():
    torch.manual_seed(3)
    counted = sample_classes(LABELS, IMAGES, num_classes=3)
    torch.manual_seed(3)
    assert torch.equal(sample_classes(LABELS.where(LABELS != 5, 9), IMAGES, num_classes=3), counted)


def test_the_draws_follow_from_the_generator_and_not_from_the_split_into_parts():
    torch.manual_seed(3)
    whole = sample_classes(LABELS, IMAGES, num_classes=3)
    torch.manual_seed(3)
    parts = [sample_classes(part, IMAGES, num_classes=3) for part in LABELS.split([1, 3])]
    assert torch.equal(torch.cat(parts), whole)
    again = [sample_classes(LABELS, IMAGES, num_classes=3) for _ in range(8)]
    assert any(not torch.equal(one, whole) for one in again)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (None, 0.0)])
def test_the_loss_is_that_of_the_classes_that_count(alpha, gamma):
    logits = torch.randn(4, 4, 5, dtype=torch.float64).requires_grad_()
    counted = torch.rand(4, 5) < 0.5
    counted[:, 0], counted[:, 4] = True, False
    expected = sum(
        focal_loss_reference(x[:, c], _among(label, c), alpha=alpha, gamma=gamma)
        for x, label, c in zip(logits, LABELS, counted, strict=True)
    )
    (expected_grad,) = torch.autograd.grad(expected, logits)
    value = federated_focal_loss(logits, LABELS, counted, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(value, expected)
    (grad,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(grad, expected_grad)
    assert grad[~counted.unsqueeze(1).expand_as(grad)].eq(0).all()
    few = logits[:1].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: federated_focal_loss(x, LABELS[:1], counted[:1]), few)


def test_a_class_that_does_not_count_has_no_loss_and_no_gradient_whatever_its_logit_is():
    logits = torch.randn(1, 4, 5)
    logits[0, :, 1], logits[0, :, 2] = torch.inf, torch.nan
    counted = torch.tensor([[True, False, False, True, True]])
    expected = federated_focal_loss(logits.nan_to_num(0, 0, 0), LABELS[:1], counted)
    logits.requires_grad_()
    value = federated_focal_loss(logits, LABELS[:1], counted)
    of_batch = batch_loss(
        [logits * 1], LABELS[:1], torch.ones(1), focal_formula(0.25, 2.0), weights=counted.float().unsqueeze(1)
    )
    for loss in (value, of_batch):
        torch.testing.assert_close(loss, expected)
        (grad,) = torch.autograd.grad(loss, logits)
        assert grad.isfinite().all()
        assert grad[0, :, 1:3].eq(0).all()


def _among(labels, counted):
    """Labels (R,) among the classes that count, (R,): background for those of other classes."""
    place = torch.full((7,), int(counted.sum()))
    place[:5][counted] = torch.arange(int(counted.sum()))
    place[6] = -1
    return place[labels]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, r"num_classes=0 is outside \[1, 100000\]"),
        ({"num_classes": 2.0}, TypeError, "num_classes=2.0 must be an integer, not float"),
        ({"power": -1.0}, ValueError, r"power=-1.0 is outside \[0, 10\]"),
        ({"power": "x"}, TypeError, "power='x' must be a number"),
        ({"class_images": [5, 2]}, TypeError, r"class_images must be a floating point tensor \(K,\), not list"),
        ({"class_images": IMAGES[None]}, TypeError, r"not torch.float32 \(1, 5\)"),
        ({"labels": LABELS.tolist()}, TypeError, "labels must be an int64 tensor"),
        ({"labels": LABELS[0]}, TypeError, r"labels must be an int64 tensor \(N, R\), not torch.int64 \(4,\)"),
        ({"class_images": IMAGES - 4}, ValueError, r"class_images\[3\]=0 must be above 0"),
    ],
)
def test_constants_out_of_range_are_named(options, error, message):
    with pytest.raises(error, match=message):
        sample_classes(**{"labels": LABELS, "class_images": IMAGES} | options)


def test_a_mask_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"counted \(4, 3\) must be \(N, K\) of logits \(N, R, K\), \(4, 4, 5\)"):
        federated_focal_loss(torch.zeros(4, 4, 5), LABELS, torch.ones(4, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"counted": torch.ones(4, 5)}, TypeError, "counted must be a bool tensor, not torch.float32"),
        ({"counted": [[True] * 5] * 4}, TypeError, "counted must be a bool tensor, not list"),
        ({"reduction": "None"}, ValueError, "reduction='None' is not one of"),
        ({"logits": [1.0]}, TypeError, "logits must be a tensor, not list"),
    ],
)
def test_bad_input_is_named(options, error, message):
    given = {"logits": torch.zeros(4, 4, 5), "labels": LABELS, "counted": torch.ones(4, 5, dtype=torch.bool)}
    with pytest.raises(error, match=message):
        federated_focal_loss(**given | options)
