"""OHEM and OHEM 1:3 against the rule applied to one pair of boxes after another, over all of them."""

import random

import pytest
import torch

from focal_det.losses import mining, select_hard_examples


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def oracle(losses, boxes, labels, num_classes, batch_size, nms_threshold, positive_fraction):
    """Section 5.1 word by word: score, suppress all, then take the minibatch."""
    losses, boxes, labels = losses.tolist(), boxes.tolist(), labels.tolist()
    order = sorted((i for i in range(len(losses)) if labels[i] != -1), key=lambda i: (-losses[i], i))
    survivors = []
    for i in order:
        if all(iou(boxes[i], boxes[j]) <= nms_threshold for j in survivors):
            survivors.append(i)
    if positive_fraction is None:
        return survivors[:batch_size]
    positives = [i for i in survivors if labels[i] < num_classes][: int(batch_size * positive_fraction)]
    negatives = [i for i in survivors if labels[i] == num_classes]
    negatives = negatives[: round(len(positives) * (1 - positive_fraction) / positive_fraction)]
    return [i for i in survivors if i in set(positives + negatives)]


def random_case(seed):
    """Up to 60 boxes with corners on a coarse grid, so that many overlap, some are equal, and IoUs hit thresholds."""
    rng = random.Random(seed)
    count, side, num_classes = rng.randint(0, 60), rng.choice([4, 8, 16]), rng.randint(1, 3)
    corners = [(rng.randint(0, side), rng.randint(0, side)) for _ in range(count)]
    boxes = [(x, y, x + rng.randint(1, side), y + rng.randint(1, side)) for x, y in corners]
    levels = rng.choice([2, 5, 1000])  # few levels: many equal losses
    losses = [rng.randint(0, levels) / levels for _ in range(count)]
    share = rng.choice([0.0, 0.1, 0.5, 1.0])
    labels = [rng.randrange(num_classes) if rng.random() < share else num_classes for _ in range(count)]
    labels = [-1 if rng.random() < 0.15 else label for label in labels]
    tensors = (torch.tensor(losses), torch.tensor(boxes).float().view(-1, 4), torch.tensor(labels, dtype=torch.int64))
    return *tensors, num_classes, rng


@pytest.mark.parametrize("positive_fraction", [None, 0.25, 0.5])
@pytest.mark.parametrize("chunk", [3, 2048])
def test_equals_the_rule_over_all_boxes(monkeypatch, positive_fraction, chunk):
    monkeypatch.setattr(mining, "_CHUNK", chunk)  # small chunks: the walk stops early, deep positives are asked for
    sizes = set()
    for seed in range(400):
        losses, boxes, labels, num_classes, rng = random_case(seed)
        options = {
            "batch_size": rng.randint(4, 24),
            "nms_threshold": rng.choice([0.0, 0.25, 0.5, 0.7, 1.0]),
            "positive_fraction": positive_fraction,
        }
        expected = oracle(losses, boxes, labels, num_classes, **options)
        found = select_hard_examples(losses, boxes, labels, num_classes=num_classes, **options)
        assert found.tolist() == expected, (seed, options)
        sizes.add(len(expected))
    assert {0, 1, 4} <= sizes  # empty, tiny and full minibatches were among them


def grid_of_boxes(side, size, step):
    """side x side boxes in a grid, neighbours overlapping."""
    y, x = torch.meshgrid(torch.arange(side) * step, torch.arange(side) * step, indexing="ij")
    return torch.stack((x, y, x + size, y + size), dim=-1).reshape(-1, 4).float()


@pytest.mark.parametrize("seed", range(3))
def test_positives_far_below_all_negatives_are_decided_as_by_full_suppression(seed):
    torch.manual_seed(seed)
    boxes = grid_of_boxes(30, 10.0, 2.0)
    losses, labels = torch.rand(900) + 1, torch.ones(900, dtype=torch.int64)
    deep = torch.randperm(900)[:200]
    losses[deep] -= 1
    labels[deep] = 0
    options = {"batch_size": 100, "nms_threshold": 0.5, "positive_fraction": 0.25}
    expected = oracle(losses, boxes, labels, 1, **options)
    assert sum(labels[i] == 0 for i in expected) >= 10  # some survive, some do not
    assert select_hard_examples(losses, boxes, labels, **options).tolist() == expected


def test_a_chain_longer_than_pythons_stack():
    # Each box overlaps the one before it, whose loss is higher, so every other one survives; the positive is the last.
    count = 3001
    x = torch.arange(count).float()
    boxes = torch.stack(
        (x * 4, x * 0, x * 4 + 10, x * 0 + 10), dim=1
    )  # neighbours: 6 / 14 = .43, the next but one: .11
    labels = torch.ones(count, dtype=torch.int64)
    labels[0] = labels[-1] = 0  # the first is taken at once, the last after 1,500 decisions above it
    kept = select_hard_examples(-x, boxes, labels, batch_size=8, nms_threshold=0.4, positive_fraction=0.25)
    assert kept.tolist() == [0, 2, 4, 6, 8, 10, 12, count - 1]


def test_by_hand():
    # Boxes 0 and 1 share 80 of 120 (.67), box 2 stands alone; the hardest of the pair goes first.
    boxes = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60]])
    losses, labels = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([1, 1, 0])
    for threshold, expected in ((0.5, [1, 2]), (0.7, [1, 2, 0])):
        kept = select_hard_examples(losses, boxes, labels, batch_size=8, nms_threshold=threshold)
        assert kept.tolist() == expected
    assert select_hard_examples(losses, boxes, labels, batch_size=1, nms_threshold=0.5).tolist() == [1]


@pytest.mark.parametrize("positive_fraction", [None, 0.25])
@pytest.mark.parametrize("count", [0, 5])
def test_nothing_to_choose_from(positive_fraction, count):
    boxes = grid_of_boxes(5, 1.0, 2.0)[:count]
    kept = select_hard_examples(
        torch.rand(count),
        boxes,
        torch.full((count,), -1),
        batch_size=4,
        nms_threshold=0.5,
        positive_fraction=positive_fraction,
    )
    assert kept.tolist() == []
    assert kept.dtype == torch.int64


def test_one_to_three_without_positives_keeps_nothing_and_with_positives_alone_no_negative():
    boxes = grid_of_boxes(4, 1.0, 2.0)
    options = {"batch_size": 8, "nms_threshold": 0.5, "positive_fraction": 0.25, "num_classes": 1}
    assert select_hard_examples(torch.rand(16), boxes, torch.ones(16, dtype=torch.int64), **options).tolist() == []
    losses = torch.arange(16.0)
    kept = select_hard_examples(losses, boxes, torch.zeros(16, dtype=torch.int64), **options)
    assert kept.tolist() == [15, 14]  # batch_size * 1/4 positives


def test_without_num_classes_the_largest_label_is_the_background():
    boxes, losses = grid_of_boxes(4, 1.0, 2.0), torch.arange(16.0)
    labels = torch.full((16,), 7)
    labels[3] = 6
    kept = select_hard_examples(losses, boxes, labels, batch_size=8, nms_threshold=0.5, positive_fraction=0.25)
    assert kept.tolist() == [15, 14, 13, 3]


def test_no_gradient_reaches_the_scores():
    losses = torch.rand(16, requires_grad=True)
    kept = select_hard_examples(
        losses, grid_of_boxes(4, 1.0, 2.0), torch.ones(16, dtype=torch.int64), batch_size=4, nms_threshold=0.5
    )
    assert not kept.requires_grad


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size=0 must be >= 1"),
        ({"nms_threshold": 1.5}, ValueError, r"nms_threshold=1\.5 is outside \[0, 1\]"),
        ({"nms_threshold": float("nan")}, ValueError, "nms_threshold=nan"),
        ({"positive_fraction": 1.0}, ValueError, r"positive_fraction=1\.0 is outside \(0, 1\)"),
        ({"positive_fraction": 0.0}, ValueError, r"positive_fraction=0\.0"),
        ({"batch_size": 3, "positive_fraction": 0.25}, ValueError, "batch_size=3 has no room .* must be >= 4"),
        ({"losses": torch.rand(4, 2)}, ValueError, r"losses \(4, 2\)"),
        ({"boxes": torch.rand(3, 4)}, ValueError, r"boxes \(3, 4\)"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, ValueError, r"labels \(5,\)"),
        ({"labels": torch.zeros(4)}, TypeError, "float32"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {
        "losses": torch.rand(4),
        "boxes": grid_of_boxes(2, 1.0, 2.0),
        "labels": torch.zeros(4, dtype=torch.int64),
        "batch_size": 4,
        "nms_threshold": 0.5,
    } | change
    tensors = [arguments.pop(name) for name in ("losses", "boxes", "labels")]
    with pytest.raises(error, match=message):
        select_hard_examples(*tensors, **arguments)
