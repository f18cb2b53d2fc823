"""Adaptive assignment: by hand, against algorithm 1 one object at a time, and in pieces."""

import math
import statistics

import pytest
import torch

from focal_det.assigners import assignment, atss
from focal_det.assigners.assignment import Assignment, pad_objects, pairwise_iou
from focal_det.assigners.atss import assign_by_atss


def level(stride, columns, rows, side=8):
    """One square anchor at each location, with sides of `side` strides."""
    y, x = torch.meshgrid(torch.arange(rows) * stride, torch.arange(columns) * stride, indexing="ij")
    centres = torch.stack([x, y], dim=-1).reshape(-1, 2).float()
    half = stride * side / 2
    return torch.cat([centres - half, centres + half], dim=1)


LEVELS = [level(8, 16, 12), level(16, 8, 6), level(32, 4, 3)]


def objects(n):
    corners = torch.rand(n, 2) * torch.tensor([100.0, 70.0])
    return torch.cat([corners, corners + 2 + torch.rand(n, 2) * 60], dim=1)


def assign(levels, gt_boxes, gt_classes, topk=9):
    """Assign the anchors to the objects of one image."""
    found = assign_by_atss(levels, *pad_objects([gt_boxes], [gt_classes]), num_classes=3, topk=topk)
    return Assignment(*(part[0] for part in found))


def reference(levels, gt_boxes, gt_classes, topk):
    """Algorithm 1 in plain Python, one object at a time: labels, and the object of each positive."""
    claims = [[] for _ in range(sum(map(len, levels)))]
    for g, (x1, y1, x2, y2) in enumerate(gt_boxes.tolist()):
        candidates, start = [], 0
        for anchors in levels:
            centres = [((a + c) / 2, (b + d) / 2) for a, b, c, d in anchors.tolist()]
            away = [math.dist(centre, ((x1 + x2) / 2, (y1 + y2) / 2)) for centre in centres]
            nearest = sorted(range(len(away)), key=lambda i: (away[i], i))[:topk]
            iou = pairwise_iou(anchors, gt_boxes[g : g + 1])[:, 0].tolist()
            candidates += [(start + i, centres[i], iou[i]) for i in nearest]
            start += len(anchors)
        ious = [iou for _, _, iou in candidates]
        threshold = statistics.mean(ious) + (statistics.stdev(ious) if len(ious) > 1 else 0)
        for i, (x, y), iou in candidates:
            if iou >= threshold and x1 < x < x2 and y1 < y < y2:
                claims[i].append((-iou, g))
    owners = [min(claim)[1] if claim else None for claim in claims]
    return [3 if g is None else int(gt_classes[g]) for g in owners], owners


def test_by_hand():
    # Five anchors of 4 x 4 in a row at x = 2, 6, 10, 14, 18; an object at 4..12 x 0..4, its centre at 8. The two
    # nearest are those at 6 and 10, and with a third the first of those at 2 and 14, which touch it at most.
    anchors = torch.tensor([[x - 2.0, 0, x + 2, 4] for x in (2, 6, 10, 14, 18)])
    gt, classes = torch.tensor([[4.0, 0, 12, 4]]), torch.tensor([1])
    # IoU 16 / 32 twice: mean .5, deviation 0
    assert assign([anchors], gt, classes, topk=2).labels.tolist() == [3, 1, 1, 3, 3]
    # IoU 0, .5, .5: mean 1 / 3, deviation sqrt((1 / 9 + 1 / 36 + 1 / 36) / 2) = .289, together .62: none reaches it
    assert assign([anchors], gt, classes, topk=3).labels.tolist() == [3] * 5


def test_a_candidate_whose_centre_is_not_inside_is_background():
    # An object at 8..10, then at 8.5..10.5: the nearest anchor is that at 10, whose IoU is the threshold.
    anchors = torch.tensor([[x - 2.0, 0, x + 2, 4] for x in (2, 6, 10)])
    gt = torch.tensor([[8.0, 0, 10, 4]])  # the centre of the anchor at 10 is on its side
    assert assign([anchors], gt, torch.tensor([0]), topk=1).labels.tolist() == [3, 3, 3]
    gt += torch.tensor([0.5, 0, 0.5, 0])
    assert assign([anchors], gt, torch.tensor([0]), topk=1).labels.tolist() == [3, 3, 0]


def test_of_anchors_at_the_same_distance_the_first_are_candidates():
    anchors = torch.tensor([[0.0, 0, 4, 4], [4.0, 0, 8, 4], [0.0, 4, 4, 8], [4.0, 4, 8, 8]])
    gt = torch.tensor([[0.0, 0, 8, 8]])  # its centre is as far from all four
    for topk, expected in ((1, [0, 3, 3, 3]), (3, [0, 0, 0, 3]), (9, [0, 0, 0, 0])):
        assert assign([anchors], gt, torch.tensor([0]), topk).labels.tolist() == expected


def test_an_anchor_that_several_claim_goes_to_the_highest_iou_and_to_the_first_of_equals():
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    gt = torch.tensor([[0.0, 0, 10, 8], [0.0, 0, 10, 9], [0.0, 1, 10, 10]])  # IoU .8, .9, .9
    found = assign([anchors], gt, torch.tensor([0, 1, 2]))
    assert (found.labels.tolist(), found.matched.tolist()) == ([1], [1])


def test_what_an_ignored_box_claims_is_ignored():
    gt = torch.tensor([[20.0, 20, 80, 80]])
    as_object, ignored = (assign(LEVELS, gt, torch.tensor([label])).labels for label in (1, -1))
    assert (as_object == 1).any()
    assert ignored.equal(torch.where(as_object == 1, -1, as_object))


def test_no_objects_and_no_levels_that_reach():
    assert assign(LEVELS, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).labels.eq(3).all()
    assert assign(LEVELS, torch.tensor([[900.0, 900, 950, 950]]), torch.tensor([0])).labels.eq(3).all()
    empty = [torch.zeros(0, 4), LEVELS[2]]
    assert assign(empty, objects(2), torch.tensor([0, 1])).labels.shape == (12,)


@pytest.mark.parametrize("topk", [1, 4, 9, 40])
@pytest.mark.parametrize("seed", range(4))
def test_equals_algorithm_1_one_object_at_a_time(seed, topk):
    torch.manual_seed(seed)
    gt = objects(12)
    gt[5], gt[6] = gt[2], torch.tensor([24.0, 24, 56, 56])  # the first of equals; a centre on that of an anchor
    classes = torch.randint(-1, 3, (12,))
    found = assign(LEVELS, gt, classes, topk)
    labels, owners = reference(LEVELS, gt, classes, topk)
    assert found.labels.tolist() == labels
    assert [m for m, g in zip(found.matched.tolist(), owners, strict=True) if g is not None] == [
        g for g in owners if g is not None
    ]
    assert any(label in (0, 1, 2) for label in labels)


def test_a_gpu_matches_the_batch_as_a_processor_its_images():
    gt_boxes, _ = pad_objects([objects(n) for n in (7, 0, 2)], [torch.zeros(n, dtype=torch.int64) for n in (7, 0, 2)])
    together = atss._claims(LEVELS, gt_boxes, 9)
    one_by_one = [atss._claims(LEVELS, boxes, 9) for boxes in gt_boxes.split(1)]
    assert (together.iou > 0).any()
    for whole, parts in zip(together, zip(*one_by_one, strict=True), strict=True):
        assert whole.equal(torch.cat(parts))


def test_more_objects_than_one_matrix_holds(monkeypatch):
    gt, classes = objects(50), torch.randint(3, (50,))
    gt[30] = gt[3]  # equal objects in different chunks: the first keeps its anchors
    whole = assign(LEVELS, gt, classes)
    num_pairs = []
    monkeypatch.setattr(atss, "pairwise_iou", lambda a, b: num_pairs.append(a.shape[1] * len(b)) or pairwise_iou(a, b))
    monkeypatch.setitem(assignment.MAX_PAIRS, "cpu", 252 * 7 * 3)  # 48 bytes a pair, of 16: 7 objects
    chunked = assign(LEVELS, gt, classes)
    assert num_pairs == [252 * 7] * 7 + [252]
    assert chunked.labels.equal(whole.labels)
    assert chunked.matched.equal(whole.matched)


@pytest.mark.parametrize("topk", [0, -1, 2.5, True])
def test_a_number_of_candidates_that_is_none_is_named(topk):
    with pytest.raises(ValueError, match=f"topk={topk} must be a whole number from 1 to a million"):
        assign(LEVELS, objects(1), torch.tensor([0]), topk)
