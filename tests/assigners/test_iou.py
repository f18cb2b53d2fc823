"""Assignment by IoU: by hand, against a plain double loop, and in pieces."""

import re

import pytest
import torch

from focal_det.assigners import assignment, iou
from focal_det.assigners.assignment import Assignment, pad_objects, pairwise_iou
from focal_det.assigners.iou import assign_by_iou

SETTINGS = {"num_classes": 3, "iou_thresholds": (0.4, 0.5), "match_best_anchor": True}


def boxes(n, side=100.0):
    corners = torch.rand(n, 2) * side
    return torch.cat([corners, corners + torch.rand(n, 2) * side / 2 + 1], dim=1)


def assign(anchors, gt_boxes, gt_classes, **changes):
    """Assign the anchors to the objects of one image."""
    outcome = assign_by_iou([anchors], *pad_objects([gt_boxes], [gt_classes]), **{**SETTINGS, **changes})
    return Assignment(*(part[0] for part in outcome))


def reference(anchors, gt_boxes, gt_classes, match_best_anchor):
    """The rules of section 4, one pair at a time."""
    iou = [[pairwise_iou(a[None], g[None]).item() for g in gt_boxes] for a in anchors]
    labels = []
    for row in iou:
        best = max(range(len(row)), key=lambda g: (row[g], -g))
        is_best = match_best_anchor and any(
            row[g] > 0 and row[g] == max(other[g] for other in iou) and (gt_classes[g] >= 0 or gt_classes[best] < 0)
            for g in range(len(row))
        )
        if row[best] >= 0.5 or is_best:
            labels.append(int(gt_classes[best]))
        else:
            labels.append(3 if row[best] < 0.4 else -1)
    return labels


def test_three_bands_by_hand():
    # one object 0..10; anchors share of it 1, .45 and .1: object, ignored, background
    gt = torch.tensor([[0.0, 0, 10, 10]])
    anchors = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 4.5], [0.0, 0, 10, 1]])
    assert assign(anchors, gt, torch.tensor([2])).labels.tolist() == [2, -1, 3]


def test_thresholds_belong_to_the_upper_band():
    # shares of exactly .5 and .4, which float32 divides exactly: 50 / 100 and 40 / 100
    gt = torch.tensor([[0.0, 0, 10, 10], [50.0, 50, 60, 60]])
    anchors = torch.tensor([[0.0, 0, 10, 5], [0.0, 0, 10, 4], [0.0, 0, 10, 10], [50.0, 50, 60, 60]])
    assert assign(anchors, gt, torch.tensor([1, 2])).labels.tolist() == [1, -1, 1, 2]


def test_best_anchor_is_assigned_below_the_threshold_only_if_asked():
    gt = torch.tensor([[0.0, 0, 10, 10]])
    anchors = torch.tensor([[0.0, 0, 10, 3], [0.0, 0, 10, 2]])
    with_best = assign(anchors, gt, torch.tensor([1]))
    without = assign(anchors, gt, torch.tensor([1]), match_best_anchor=False)
    assert with_best.labels.tolist() == [1, 3]
    assert without.labels.tolist() == [3, 3]


def test_ties_for_the_best_anchor_are_all_assigned():
    gt = torch.tensor([[2.0, 0, 4, 2]])
    anchors = torch.tensor([[0.0, 0, 3, 2], [3.0, 0, 6, 2], [50.0, 50, 60, 60]])  # the first two mirror each other
    assert assign(anchors, gt, torch.tensor([0])).labels.tolist() == [0, 0, 3]


def test_the_best_anchor_of_an_ignored_box_is_ignored_and_becomes_no_other_objects():
    # The second anchor has an IoU of 20 / 100 with the ignored box and of 50 / 150 with the object, whose it is not.
    # Without it the third, with an IoU of 10 / 60, is the ignored box's best.
    gt, classes = torch.tensor([[0.0, 0, 10, 10], [10.0, 0, 12, 10]]), torch.tensor([2, -1])
    anchors = torch.tensor([[0.0, 0, 10, 10], [5.0, 0, 15, 10], [11.0, 0, 16, 10]])
    assert assign(anchors, gt, classes).labels.tolist() == [2, 3, 3]
    assert assign(anchors[[0, 2]], gt, classes).labels.tolist() == [2, -1]


def test_an_object_that_no_anchor_touches_takes_none():
    gt = torch.tensor([[500.0, 500, 510, 510]])
    assert assign(boxes(9), gt, torch.tensor([0])).labels.tolist() == [3] * 9


def test_no_objects_is_all_background():
    labels, matched = assign(boxes(5), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert labels.tolist() == [3] * 5
    assert matched.tolist() == [0] * 5


@pytest.mark.parametrize("match_best_anchor", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_equals_the_rules_one_pair_at_a_time(seed, match_best_anchor):
    torch.manual_seed(seed)
    anchors, gt = boxes(60), boxes(7)
    classes = torch.randint(-1, 3, (7,))
    ours = assign(anchors, gt, classes, match_best_anchor=match_best_anchor)
    assert ours.labels.tolist() == reference(anchors, gt, classes, match_best_anchor)


def test_a_batch_gives_what_its_images_give():
    anchors = boxes(60)
    gt_boxes, gt_classes = zip(*[(boxes(n), torch.randint(3, (n,))) for n in (7, 0, 2)], strict=True)
    together = assign_by_iou([anchors], *pad_objects(gt_boxes, gt_classes), **SETTINGS)
    for i in range(3):
        one = assign(anchors, gt_boxes[i], gt_classes[i])
        assert together.labels[i].equal(one.labels)
        assert together.matched[i].equal(one.matched)


@pytest.mark.parametrize("match_best_anchor", [True, False])
def test_a_gpu_matches_the_batch_as_a_processor_its_images(match_best_anchor):
    anchors = boxes(60)
    objects = pad_objects([boxes(n) for n in (7, 0, 2)], [torch.randint(-1, 3, (n,)) for n in (7, 0, 2)])
    together = iou._match(anchors, *objects, match_best_anchor)
    one_by_one = [iou._match(anchors, *(part[i : i + 1] for part in objects), match_best_anchor) for i in range(3)]
    for whole, parts in zip(together, zip(*one_by_one, strict=True), strict=True):
        assert whole.equal(torch.cat(parts))


def test_more_objects_than_one_matrix_holds(monkeypatch):
    anchors, gt, classes = boxes(200), boxes(50), torch.randint(3, (50,))
    gt[30] = gt[3]  # equal objects in different chunks: the first keeps its anchors
    whole = assign(anchors, gt, classes)
    monkeypatch.setitem(assignment.MAX_PAIRS, "cpu", 200 * 7)  # 8 chunks
    chunked = assign(anchors, gt, classes)
    assert chunked.labels.equal(whole.labels)
    assert chunked.matched.equal(whole.matched)


@pytest.mark.parametrize("thresholds", [(0.6, 0.5), (0.0, 0.5), (0.5, 1.5)])
def test_thresholds_out_of_order_are_named(thresholds):
    with pytest.raises(ValueError, match=re.escape(f"iou_thresholds={list(thresholds)} must be [background")):
        assign(boxes(2), boxes(1), torch.tensor([0]), iou_thresholds=thresholds)
