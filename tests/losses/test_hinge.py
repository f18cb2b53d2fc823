"""The hinge on p_t: zero beyond its margin, flat for the worst mistakes. See also test_family.py."""

import math

import pytest
import torch

from focal_det.losses import hinge_loss


def value_and_slope(p, label, margin):
    logits = torch.tensor([[math.log(p / (1 - p))]], dtype=torch.float64, requires_grad=True)
    loss = hinge_loss(logits, torch.tensor([label]), margin=margin)
    return loss.item(), torch.autograd.grad(loss, logits)[0].item()


@pytest.mark.parametrize(
    ("p", "label", "margin", "value", "slope"),
    [
        (0.3, 0, 0.5, 0.2, -0.21),  # .5 - .3; -p (1 - p)
        (0.7, 0, 0.5, 0.0, 0.0),  # beyond the margin
        (0.7, 1, 0.5, 0.2, 0.21),  # background: p_t = .3
        (0.1, 1, 0.8, 0.0, 0.0),  # background: p_t = .9
        (0.1, 1, 1.0, 0.1, 0.09),  # a margin of 1 is 1 - p_t
        (0.01, 0, 0.5, 0.49, -0.0099),  # the prior of a positive: hardly a slope
    ],
)
def test_by_hand(p, label, margin, value, slope):
    assert value_and_slope(p, label, margin) == (pytest.approx(value, abs=1e-15), pytest.approx(slope, abs=1e-15))


def test_at_the_margin_itself_there_is_neither_loss_nor_slope():
    assert value_and_slope(0.5, 0, 0.5) == (0.0, 0.0)
