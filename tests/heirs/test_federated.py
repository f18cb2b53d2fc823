"""The federated focal loss: which classes count, how often each is drawn, and the loss of those alone."""

import itertools

import pytest
import torch

from focal_det.heirs.federated import FederatedFocalLoss, federated_focal_loss, sample_classes
from focal_det.losses import focal_loss, focal_loss_reference
from focal_det.registries import DENSE_LOSS_REGISTRY

pytestmark = pytest.mark.detectron2

LOSS = "MODEL.FOCAL_DET.LOSS."
IMAGES = torch.tensor([900.0, 100.0, 25.0, 4.0, 1.0])
LABELS = torch.tensor([[5, 5, 3, -1], [5, 5, 5, -1], [0, 1, 2, 4], [5, 0, 0, 5]])


def module_of(**options):
    given = {"class_images": [int(n) for n in IMAGES], "num_classes": 3, "power": 0.5, "alpha": 0.25, "gamma": 2.0}
    return FederatedFocalLoss(**given | options)


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
    module = module_of(alpha=alpha, gamma=gamma)
    module.sample = lambda labels, images: counted
    found = federated_focal_loss(logits, LABELS, counted, alpha=alpha, gamma=gamma)
    of_batch = module.batch_loss([logits[:, :1], logits[:, 1:]], LABELS, torch.ones(4))
    for value in (found, of_batch):
        torch.testing.assert_close(value, expected)
        (grad,) = torch.autograd.grad(value, logits)
        torch.testing.assert_close(grad, expected_grad)
        assert grad[~counted.unsqueeze(1).expand_as(grad)].eq(0).all()
    few = logits[:1].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: federated_focal_loss(x, LABELS[:1], counted[:1]), few)


def _among(labels, counted):
    """Labels (R,) among the classes that count, (R,): background for those of other classes."""
    place = torch.full((7,), int(counted.sum()))
    place[:5][counted] = torch.arange(int(counted.sum()))
    place[6] = -1
    return place[labels]


@pytest.mark.parametrize(
    ("key", "value", "shares"),
    [
        ("FED_NUM_CLASSES", "1", [0.75, 0.25, 0.01]),
        ("FED_NUM_CLASSES", "2", [1.0, 0.97, 0.03]),
        ("FED_FREQ_POWER", "0.0", [0.33, 0.33, 0.33]),
        ("CLASS_IMAGES", "[10000, 10000, 1000000000]", [0.0, 0.0, 1.0]),
    ],
)
def test_each_key_changes_which_classes_count(tiny_cfg, key, value, shares):
    own = {"FED_NUM_CLASSES": "1", "CLASS_IMAGES": "[90000, 10000, 10]", key: value}
    words = [word for name, text in own.items() for word in (LOSS + name, text)]
    loss = DENSE_LOSS_REGISTRY.get("FederatedFocalLoss")(tiny_cfg(LOSS + "NAME", "FederatedFocalLoss", *words))
    counted = loss.weights_of(torch.full((20_000, 1), 3), 3).mean(dim=(0, 1))
    assert counted.tolist() == pytest.approx(shares, abs=0.02)


def test_half_precision_gradients_are_rounded_once():
    logits = torch.randn(4, 4, 5)
    for dtype, rounding in ((torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11 * 1.01)):
        half = logits.to(dtype).requires_grad_()
        exact, module = half.detach().double().requires_grad_(), module_of()
        grads = []
        for x in (half, exact):
            torch.manual_seed(1)
            loss = module.batch_loss([x], LABELS, torch.tensor([1.0, 2.0, 3.0, 4.0]))
            grads.append(torch.autograd.grad(loss, x)[0])
        assert grads[0].dtype == dtype
        torch.testing.assert_close(grads[0].double(), grads[1], rtol=rounding, atol=2.0**-25)


def test_an_evaluation_has_all_classes_and_draws_nothing():
    logits, module = torch.randn(4, 4, 5), module_of().eval()
    before = torch.get_rng_state()
    found = module.batch_loss([logits], LABELS, torch.ones(4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(found, focal_loss(logits, LABELS))
    assert module.train()(logits[0], LABELS[0]) < focal_loss(logits[0], LABELS[0])


def test_the_counts_are_no_part_of_the_checkpoint_and_without_them_it_is_not_trained():
    assert module_of().state_dict() == {}
    with pytest.raises(ValueError, match=r"LOSS\.CLASS_IMAGES has 0 numbers, and there are 5 classes: a training by"):
        module_of(class_images=[]).batch_loss([torch.zeros(4, 4, 5)], LABELS, torch.ones(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, r"num_classes=0 is outside \[1, 4\]$"),
        ({"num_classes": 5}, r"num_classes=5 is outside \[1, 4\]: with all classes this is FocalLoss"),
        ({"power": -1.0}, r"power=-1.0 is outside \[0, 10\]"),
        ({"class_images": [3, 2, 0, 1, 1]}, r"class_images\[2\]=0 must be a whole number >= 1"),
    ],
)
def test_constants_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        module_of(**options)


def test_a_mask_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"counted \(4, 3\) must be \(N, K\) of logits \(N, R, K\), \(4, 4, 5\)"):
        federated_focal_loss(torch.zeros(4, 4, 5), LABELS, torch.ones(4, 3, dtype=torch.bool))
