"""The class-balanced focal loss: the weights in exact arithmetic, the paper's formula, and what must not pass."""

from fractions import Fraction

import pytest
import torch

from focal_det.heirs.class_balanced import ClassBalancedFocalLoss, class_balanced_focal_loss, class_weights
from focal_det.losses import focal_loss_reference

pytestmark = pytest.mark.detectron2

COUNTS = [5000, 20, 1]


def exact_weights(counts, beta):
    """(1 - beta) / (1 - beta^n), times K over their sum, in fractions of the very float."""
    beta = Fraction(beta)
    weights = [(1 - beta) / (1 - beta**n) for n in counts]
    return [float(w * len(counts) / sum(weights)) for w in weights]


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999, 0.9999])
def test_the_weights_are_those_of_exact_arithmetic_and_sum_to_the_number_of_classes(beta):
    found = class_weights(COUNTS, beta)
    assert found.tolist() == pytest.approx(exact_weights(COUNTS, beta), rel=1e-13)
    assert found.sum().item() == pytest.approx(3, rel=1e-15)
    if beta == 0:
        assert found.tolist() == [1, 1, 1]


def test_a_beta_near_1_weighs_by_the_inverse_of_the_counts():
    found = class_weights([1000, 10], 1 - 1e-12)
    assert found[1].item() / found[0].item() == pytest.approx(100, rel=1e-6)  # where 1 - beta^n would have 4 digits


def balanced_by_loops(logits, labels, counts, beta, gamma):
    """-w_y sum_i (1 - p_t)^gamma log(p_t), anchor by anchor; background has weight 1, the ignored none."""
    total, weights = 0.0, [*exact_weights(counts, beta), 1.0]
    for row, label in zip(logits, labels.tolist(), strict=True):
        for c, x in enumerate(row) if label >= 0 else ():
            p_t = torch.sigmoid(x if c == label else -x)
            total = total - weights[label] * (1 - p_t) ** gamma * p_t.log()
    return total


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_equals_the_papers_formula_in_value_and_gradient_by_function_and_by_module(gamma):
    logits = torch.randn(2, 20, 3, dtype=torch.float64).requires_grad_()
    labels = torch.randint(-1, 4, (2, 20))
    labels[0, :5] = torch.tensor([0, 1, 2, 3, -1])
    expected = sum(balanced_by_loops(*image, COUNTS, 0.99, gamma) for image in zip(logits, labels, strict=True))
    (expected_grad,) = torch.autograd.grad(expected, logits)
    module = ClassBalancedFocalLoss(class_boxes=COUNTS, beta=0.99, gamma=gamma)
    levels = [logits[:, :7], logits[:, 7:]]
    for value, rtol in (
        (class_balanced_focal_loss(logits, labels, class_boxes=COUNTS, beta=0.99, gamma=gamma), 1e-9),
        (sum(map(module, logits, labels)), 1e-6),  # the module's weights are float32
        (module.batch_loss(levels, labels, torch.ones(2)), 1e-6),
    ):
        torch.testing.assert_close(value, expected, rtol=rtol, atol=0)
        torch.testing.assert_close(torch.autograd.grad(value, logits)[0], expected_grad, rtol=10 * rtol, atol=1e-9)


def test_gradcheck():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, 3, -1])
    assert torch.autograd.gradcheck(lambda x: class_balanced_focal_loss(x, labels, class_boxes=COUNTS), logits)


def test_half_precision_gradients_are_rounded_once():
    logits, labels = torch.randn(1, 50, 3), torch.randint(-1, 4, (1, 50))
    module = ClassBalancedFocalLoss(class_boxes=COUNTS, beta=0.99, gamma=2.0)
    for dtype, rounding in ((torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11 * 1.01)):
        half = logits.to(dtype).requires_grad_()
        exact = half.detach().double().requires_grad_()
        losses = [module.batch_loss([x], labels, torch.tensor([3.0])) for x in (half, exact)]
        grads = [torch.autograd.grad(loss, x)[0] for loss, x in zip(losses, (half, exact), strict=True)]
        assert (losses[0].dtype, grads[0].dtype) == (torch.float32, dtype)
        torch.testing.assert_close(grads[0].double(), grads[1], rtol=rounding, atol=2.0**-25)


def test_equal_counts_are_the_focal_loss_without_alpha():
    logits, labels = torch.randn(1, 40, 3), torch.randint(-1, 4, (1, 40))
    module = ClassBalancedFocalLoss(class_boxes=[7, 7, 7], beta=0.999, gamma=2.0)
    found = module.batch_loss([logits], labels, torch.tensor([4.0]))
    torch.testing.assert_close(found, focal_loss_reference(logits, labels, alpha=None) / 4)


def test_the_counts_are_no_part_of_the_checkpoint_and_move_with_the_model():
    module = ClassBalancedFocalLoss(class_boxes=COUNTS, beta=0.99, gamma=2.0)
    assert module.state_dict() == {}
    assert module.to("meta").class_weights.device.type == "meta"


def test_without_counts_it_is_built_and_not_trained():
    module = ClassBalancedFocalLoss(class_boxes=[], beta=0.99, gamma=2.0)
    with pytest.raises(ValueError, match=r"LOSS\.CLASS_BOXES has 0 numbers, and there are 3 classes: a training by"):
        module.batch_loss([torch.zeros(1, 2, 3)], torch.zeros(1, 2, dtype=torch.int64), torch.ones(1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beta": 1.0}, ValueError, r"beta=1.0 is outside \[0, 1\)"),
        ({"beta": "x"}, TypeError, "beta='x' must be a number"),
        ({"class_boxes": [4, 0, 1]}, ValueError, r"class_boxes\[1\]=0 must be a whole number >= 1: give a class"),
        ({"class_boxes": [4, 2.5, 1]}, ValueError, r"class_boxes\[1\]=2.5"),
        ({"class_boxes": [4, 2]}, ValueError, "class_boxes has 2 numbers, and there are 3 classes$"),
        ({"labels": torch.zeros(2, 3)}, TypeError, "the weight is that of the anchor's class"),
    ],
)
def test_bad_input_is_named(options, error, message):
    given = {"labels": torch.tensor([0, 3]), "class_boxes": COUNTS} | options
    with pytest.raises(error, match=message):
        class_balanced_focal_loss(torch.zeros(2, 3), **given)
