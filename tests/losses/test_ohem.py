"""OHEM and OHEM 1:3 against the rule applied to one pair of boxes after another, over all of them."""

import random
from fractions import Fraction

import pytest
import torch
from torchvision.ops import nms

from focal_det.losses import ohem as mining
from focal_det.losses import select_hard_examples


def overlaps(a, b, threshold):
    """Whether the IoU of two boxes with whole corners is above a fraction, exactly."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared * threshold.denominator > union * threshold.numerator


def oracle(losses, boxes, labels, num_classes, batch_size, nms_threshold, positive_fraction):
    """Section 5.1 word by word: score, suppress all, then take the minibatch."""
    losses, boxes, labels = losses.tolist(), boxes.long().tolist(), labels.tolist()
    nms_threshold = Fraction(str(nms_threshold))
    order = sorted((i for i in range(len(losses)) if labels[i] != -1), key=lambda i: (-losses[i], i))
    survivors = []
    for i in order:
        if not any(overlaps(boxes[i], boxes[j], nms_threshold) for j in survivors):
            survivors.append(i)
    if positive_fraction is None:
        return survivors[:batch_size]
    positives = [i for i in survivors if labels[i] < num_classes][: int(batch_size * Fraction(str(positive_fraction)))]
    negatives = [i for i in survivors if labels[i] == num_classes]
    negatives = negatives[: round(len(positives) * (1 - positive_fraction) / positive_fraction)]
    return [i for i in survivors if i in set(positives + negatives)]


def random_case(seed):
    """Up to 60 boxes with corners on a coarse grid, so that many overlap, some are equal, and IoUs hit thresholds."""
    rng = random.Random(seed)
    count, side, num_classes = rng.randint(0, 60), rng.choice([4, 8, 16]), rng.randint(1, 3)
    origin = rng.choice([0, 0, 2**24 - 40])  # at the last, the largest whole numbers of float32, it knows no halves
    corners = [(origin + rng.randint(0, side), origin + rng.randint(0, side)) for _ in range(count)]
    boxes = [(x, y, x + rng.randint(1, side), y + rng.randint(1, side)) for x, y in corners]
    levels = rng.choice([2, 5, 1000])  # few levels: many equal losses
    losses = [rng.randint(0, levels) / levels for _ in range(count)]
    share = rng.choice([0.0, 0.1, 0.5, 1.0])
    labels = [rng.randrange(num_classes) if rng.random() < share else num_classes for _ in range(count)]
    labels = [-1 if rng.random() < 0.15 else label for label in labels]
    tensors = (torch.tensor(losses), torch.tensor(boxes).float().view(-1, 4), torch.tensor(labels, dtype=torch.int64))
    return *tensors, num_classes, rng


# As exact numbers and as the floats that are passed. At .1, .3, .4, .6, 1/3 float32 rounds up, at .7, .9 down.
THRESHOLDS = [Fraction(k, 20) for k in range(21)] + [Fraction(1, 3), Fraction(2, 3)]


@pytest.mark.parametrize("positive_fraction", [None, 0.25, 0.3, 0.5])
@pytest.mark.parametrize("chunk", [3, 2048])
def test_equals_the_rule_over_all_boxes(monkeypatch, positive_fraction, chunk):
    monkeypatch.setattr(mining, "_CHUNK", chunk)  # small chunks: the walk stops early, deep positives are asked for
    sizes = set()
    for seed in range(400):
        losses, boxes, labels, num_classes, rng = random_case(seed)
        threshold = rng.choice(THRESHOLDS)
        options = {"batch_size": rng.randint(4, 24), "positive_fraction": positive_fraction}
        expected = oracle(losses, boxes, labels, num_classes, nms_threshold=threshold, **options)
        found = select_hard_examples(
            losses, boxes, labels, num_classes=num_classes, nms_threshold=float(threshold), **options
        )
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


def test_the_room_for_positives_is_not_lost_to_rounding():
    boxes, labels = grid_of_boxes(10, 1.0, 2.0), torch.zeros(100, dtype=torch.int64)
    options = {"batch_size": 100, "nms_threshold": 0.5, "num_classes": 1}
    kept = select_hard_examples(torch.rand(100), boxes, labels, positive_fraction=0.29, **options)
    assert len(kept) == 29  # 100 * .29 is 28.999999999999996


def test_without_num_classes_the_largest_label_is_the_background():
    boxes, losses = grid_of_boxes(4, 1.0, 2.0), torch.arange(16.0)
    labels = torch.full((16,), 7)
    labels[3] = 6
    kept = select_hard_examples(losses, boxes, labels, batch_size=8, nms_threshold=0.5, positive_fraction=0.25)
    assert kept.tolist() == [15, 14, 13, 3]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.7])
def test_anchors_whose_iou_is_the_threshold_itself(monkeypatch, threshold):
    # 32 px squares 8 px apart: IoU 24 / 40 = .6 of neighbours, 16 / 48 = 1/3 of the next; none is above .6
    boxes = grid_of_boxes(20, 32.0, 8.0)
    losses, labels = torch.rand(400), torch.ones(400, dtype=torch.int64)
    labels[::10] = 0
    for fraction in (None, 0.25):
        options = {"batch_size": 160, "nms_threshold": threshold, "positive_fraction": fraction}
        expected = oracle(losses, boxes, labels, 1, **options)
        for chunk in (7, 64, 2048):
            monkeypatch.setattr(mining, "_CHUNK", chunk)
            assert select_hard_examples(losses, boxes, labels, **options).tolist() == expected, chunk


def test_the_walk_ends_with_the_last_survivor_that_is_needed(monkeypatch):
    monkeypatch.setattr(mining, "_CHUNK", 10)
    chunks = []
    monkeypatch.setattr(mining, "nms", lambda boxes, *rest: chunks.append(len(boxes)) or nms(boxes, *rest))
    boxes, losses = grid_of_boxes(10, 1.0, 2.0), -torch.arange(100.0)  # none overlaps another
    labels = torch.ones(100, dtype=torch.int64)
    select_hard_examples(losses, boxes, labels, batch_size=15, nms_threshold=0.5)
    assert chunks == [10, 10]
    labels[[0, 99]] = 0
    chunks.clear()
    kept = select_hard_examples(losses, boxes, labels, batch_size=8, nms_threshold=0.5, positive_fraction=0.25)
    assert kept.tolist() == [0, 1, 2, 3, 4, 5, 6, 99]
    assert chunks == [10]  # positive 99 was asked for by itself


@pytest.mark.parametrize("origin", [0.0, 1e7])
def test_a_rival_is_found_as_far_off_as_it_can_be(origin):
    # A box of width 10 overlaps one of width 40 - just above a threshold of .25 - even where it lies at its very end,
    # 14.5 from center to center; 15 is the bound. At 1e7 float32 knows no half pixels: 14 and 40.
    wide = 39.0 if origin == 0 else 38.0
    boxes = torch.tensor([[0.0, 0, wide, 10], [100.0, 0, 110, 10], [0.0, 0, 10, 10]])
    boxes[:, ::2] += origin
    labels = torch.tensor([1, 0, 0])  # the wide one is above both positives
    kept = select_hard_examples(
        torch.tensor([3.0, 2.0, 1.0]), boxes, labels, batch_size=8, nms_threshold=0.25, positive_fraction=0.25
    )
    assert kept.tolist() == [0, 1]
    far = _far_below(boxes, labels)
    assert far == [0, 1]


def _far_below(boxes, labels):
    """The same with a thousand separate negatives between, so that the positives are asked for one by one."""
    x = 1000 + torch.arange(1000.0) * 16 + boxes[0, 0]
    between = torch.stack((x, x * 0, x + 8, x * 0 + 8), dim=1)
    losses = torch.cat([torch.tensor([3000.0]), 2000 - torch.arange(1000.0), torch.tensor([2.0, 1.0])])
    all_boxes = torch.cat([boxes[:1], between, boxes[1:]])
    all_labels = torch.cat([labels[:1], torch.ones(1000, dtype=torch.int64), labels[1:]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mining, "_CHUNK", 10)
        kept = select_hard_examples(
            losses, all_boxes, all_labels, batch_size=8, nms_threshold=0.25, positive_fraction=0.25
        )
    return [i if i == 0 else i - 1000 for i in kept.tolist() if i == 0 or i > 1000]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size=0 must be >= 1"),
        ({"nms_threshold": 1.5}, ValueError, r"nms_threshold=1\.5 is outside \[0, 1\]"),
        ({"nms_threshold": float("nan")}, ValueError, "nms_threshold=nan"),
        ({"positive_fraction": 1.0}, ValueError, r"positive_fraction=1\.0 is outside \(0, 1\)"),
        ({"positive_fraction": 0.0}, ValueError, r"positive_fraction=0\.0"),
        ({"batch_size": 3, "positive_fraction": 0.25}, ValueError, "batch_size=3 has no room .* must be >= 4"),
        (
            {"num_classes": 0, "labels": torch.ones(4, dtype=torch.int64), "positive_fraction": 0.5},
            ValueError,
            "go up to 1",
        ),
        ({"batch_size": 4.0}, TypeError, r"batch_size=4\.0 must be an integer, not float"),
        ({"batch_size": True}, TypeError, "batch_size=True"),
        ({"nms_threshold": "x"}, TypeError, "nms_threshold='x' must be a number"),
        ({"positive_fraction": [1]}, TypeError, "positive_fraction="),
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
