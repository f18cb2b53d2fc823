"""The class-balanced focal loss: the weights in exact arithmetic, the paper's formula, and what must not pass."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from focal_det.heirs import class_balanced_focal_loss
from focal_det.heirs.class_balanced import class_weights
from focal_det.losses import focal_loss_reference

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
def test_equals_the_papers_formula_in_value_and_gradient(gamma):
    logits = torch.randn(2, 20, 3, dtype=torch.float64).requires_grad_()
    labels = torch.randint(-1, 4, (2, 20))
    labels[0, :5] = torch.tensor([0, 1, 2, 3, -1])
    expected = sum(balanced_by_loops(*image, COUNTS, 0.99, gamma) for image in zip(logits, labels, strict=True))
    (expected_grad,) = torch.autograd.grad(expected, logits)
    value = class_balanced_focal_loss(logits, labels, class_boxes=COUNTS, beta=0.99, gamma=gamma)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(torch.autograd.grad(value, logits)[0], expected_grad, rtol=1e-8, atol=1e-9)


def test_gradcheck():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, 3, -1])
    assert torch.autograd.gradcheck(lambda x: class_balanced_focal_loss(x, labels, class_boxes=COUNTS), logits)


def test_equal_counts_are_the_focal_loss_without_alpha():
    logits, labels = torch.randn(1, 40, 3), torch.randint(-1, 4, (1, 40))
    found = class_balanced_focal_loss(logits, labels, class_boxes=[7, 7, 7], beta=0.999)
    torch.testing.assert_close(found, focal_loss_reference(logits, labels, alpha=None))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beta": 1.0}, ValueError, r"beta=1.0 is outside \[0, 1\)"),
        ({"beta": "x"}, TypeError, "beta='x' must be a number"),
        ({"class_boxes": [4, 0, 1]}, ValueError, r"class_boxes\[1\]=0 must be a whole number >= 1: give a class"),
        ({"class_boxes": [4, 2.5, 1]}, ValueError, r"class_boxes\[1\]=2.5"),
        ({"class_boxes": [4, 2]}, ValueError, "class_boxes has 2 numbers, and there are 3 classes$"),
        ({"labels": torch.zeros(2, 3)}, TypeError, "the weight is that of the anchor's class"),
        ({"labels": [0, 3]}, TypeError, "labels must be a tensor, not list"),
        ({"class_boxes": 5}, TypeError, "class_boxes=5 must be a sequence"),
        ({"class_boxes": {"a": 4, "b": 2, "c": 1}}, TypeError, "must be a sequence"),
        ({"reduction": "avg"}, ValueError, "reduction='avg' is not one of"),
    ],
)
def test_bad_input_is_named(options, error, message):
    given = {"labels": torch.tensor([0, 3]), "class_boxes": COUNTS} | options
    with pytest.raises(error, match=message):
        class_balanced_focal_loss(torch.zeros(2, 3), **given)


def test_the_counts_may_be_an_array():
    given = torch.zeros(2, 3), torch.tensor([0, 3])
    expected = class_balanced_focal_loss(*given, class_boxes=COUNTS)
    assert class_balanced_focal_loss(*given, class_boxes=np.array(COUNTS)) == expected


def test_a_label_that_is_no_class_counts_as_background_where_it_cannot_be_looked_at():
    def loss(labels):
        return class_balanced_focal_loss(torch.zeros(1, 3), labels, class_boxes=COUNTS)

    of_background = loss(torch.tensor([3]))
    torch.testing.assert_close(torch.vmap(loss)(torch.tensor([[7], [-2]])), of_background.expand(2))
