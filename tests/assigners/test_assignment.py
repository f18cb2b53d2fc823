"""Overlaps of boxes, by hand and against torchvision's."""

import pytest
import torch
from torchvision.ops import box_iou

from focal_det.assigners.assignment import paired_iou, pairwise_iou


def boxes(n, side=100.0):
    corners = torch.rand(n, 2) * side
    return torch.cat([corners, corners + torch.rand(n, 2) * side / 2 + 1], dim=1)


def test_iou_by_hand():
    # 2x2 boxes that share 1x2: 2 / (4 + 4 - 2)
    iou = pairwise_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2], [5.0, 5, 6, 6], [0.0, 0, 0, 0]]))
    assert iou.tolist() == [[pytest.approx(1 / 3), 0.0, 0.0]]


def test_iou_equals_torchvision():
    a, b = boxes(20), boxes(30)
    torch.testing.assert_close(pairwise_iou(a, b), box_iou(a, b))


def test_iou_of_pairs_is_the_diagonal_of_that_of_all():
    a, b = boxes(6), boxes(6)
    expected = pairwise_iou(a, b).diagonal()
    assert expected.max() > 0
    assert paired_iou(a, b).equal(expected)
    assert paired_iou(a.view(2, 3, 4), b.view(2, 3, 4)).equal(expected.view(2, 3))
