"""Decoding: each step by hand, and the whole against torchvision's parts."""

import math

import pytest
import torch
from torchvision.ops import batched_nms

from focal_det.modeling import decode as decode_module
from focal_det.modeling.box_coding import decode_boxes
from focal_det.modeling.decode import decode_detections

OPTIONS = {
    "score_thresh": 0.05,
    "topk_per_level": 1000,
    "nms_thresh": 0.5,
    "max_detections": 100,
    "box_weights": (1, 1, 1, 1),
}


def logit(p):
    return math.log(p / (1 - p))


def grid(n, side=10.0, gap=20.0):
    x = torch.arange(n) * gap
    return torch.stack([x, torch.zeros(n), x + side, torch.full((n,), side)], dim=1)


def decode(scores, anchors, image_size=(1000, 10000), deltas=None, **options):
    """Of one image, with levels of scores (R, K) as probabilities."""
    logits = [torch.logit(level)[None] for level in scores]
    deltas = deltas or [torch.zeros(len(level), 4) for level in scores]
    (found,) = decode_detections(
        logits, [level[None] for level in deltas], anchors, [image_size], **{**OPTIONS, **options}
    )
    return found


def test_keeps_what_is_above_the_threshold_best_first():
    found = decode([torch.tensor([[0.04, 0.3], [0.9, 0.01], [0.049, 0.05]])], [grid(3)])
    assert found.scores.tolist() == pytest.approx([0.9, 0.3])
    assert found.classes.tolist() == [0, 1]
    assert found.boxes.tolist() == [[20.0, 0.0, 30.0, 10.0], [0.0, 0.0, 10.0, 10.0]]


def test_suppression_is_per_class():
    same_place = grid(1).repeat(3, 1)
    found = decode([torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.0, 0.7]])], [same_place])
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])
    assert found.classes.tolist() == [0, 1]


def test_each_level_keeps_its_best():
    first, second = torch.tensor([[0.9], [0.8], [0.7]]), torch.tensor([[0.3], [0.2]])
    found = decode([first, second], [grid(3), grid(2) + 500], topk_per_level=2)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.3, 0.2])


def test_the_number_of_detections_is_capped():
    assert decode([torch.full((50, 2), 0.9)], [grid(50)], max_detections=7).scores.shape == (7,)


def test_boxes_are_clipped_to_the_image():
    deltas = [torch.tensor([[0.0, 0.0, math.log(4.0), 0.0]])]  # 40 wide around x = 5
    found = decode([torch.tensor([[0.9]])], [grid(1)], image_size=(8, 20), deltas=deltas)
    assert found.boxes.tolist() == [[0.0, 0.0, 20.0, 8.0]]


def test_nothing_found_is_empty():
    found = decode([torch.full((5, 3), 0.01)], [grid(5)])
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.classes.shape == (0,)


def test_no_anchors_at_all_is_empty():
    assert decode([torch.zeros(0, 3)], [torch.zeros(0, 4)]).boxes.shape == (0, 4)


def test_threshold_zero_keeps_every_finite_logit():
    assert len(decode([torch.full((3, 1), 1e-30)], [grid(3)], score_thresh=0.0).scores) == 3


def test_equals_the_steps_done_plainly():
    levels = [torch.rand(300, 4), torch.rand(80, 4)]
    anchors = [torch.rand(len(level), 4) * 50 + torch.tensor([0.0, 0, 60, 60]) for level in levels]
    deltas = [torch.randn(len(level), 4) * 0.2 for level in levels]
    boxes, scores, classes = [], [], []
    for level, level_anchors, level_deltas in zip(levels, anchors, deltas, strict=True):
        flat = level.flatten()
        order = flat.argsort(descending=True)[:50]
        order = order[flat[order] > 0.5]
        boxes.append(decode_boxes(level_deltas[order // 4], level_anchors[order // 4], weights=(1, 1, 1, 1)))
        scores.append(flat[order])
        classes.append(order % 4)
    boxes, scores, classes = torch.cat(boxes), torch.cat(scores), torch.cat(classes)
    keep = batched_nms(boxes, scores, classes, 0.5)[:20]
    found = decode(levels, anchors, deltas=deltas, score_thresh=0.5, topk_per_level=50, max_detections=20)
    torch.testing.assert_close(found.boxes, boxes[keep].clamp(min=0))
    torch.testing.assert_close(found.scores, scores[keep])
    assert found.classes.equal(classes[keep])


def test_half_precision_logits_give_single_precision_scores():
    (found,) = decode_detections(
        [torch.tensor([[[3.0]]]).half()], [torch.zeros(1, 1, 4).half()], [grid(1)], [(50, 50)], **OPTIONS
    )
    assert found.scores.dtype == found.boxes.dtype == torch.float32


def random_levels(images, classes=4, sizes=(300, 80, 5)):
    anchors = [torch.rand(size, 4) * 50 + torch.tensor([0.0, 0, 60, 60]) for size in sizes]
    logits = [torch.randn(images, size, classes) * 2 for size in sizes]
    return logits, [torch.randn(images, size, 4) * 0.2 for size in sizes], anchors


def assert_same(found, expected):
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own.boxes, other.boxes, rtol=0, atol=0)
        torch.testing.assert_close(own.scores, other.scores, rtol=2e-7, atol=0)  # of sigmoid, by place in the vector
        assert own.classes.equal(other.classes)


@pytest.mark.parametrize("topk_per_level", [20, 1000])
def test_a_batch_gives_what_its_images_give(topk_per_level):
    logits, deltas, anchors = random_levels(images=3)
    for level in logits:
        level[1] = -9  # an image without a candidate between two with many
    options = {**OPTIONS, "topk_per_level": topk_per_level}
    together = decode_detections(logits, deltas, anchors, [(50, 70), (60, 60), (90, 90)], **options)
    for i, size in enumerate([(50, 70), (60, 60), (90, 90)]):
        one = [[level[i : i + 1] for level in levels] for levels in (logits, deltas)]
        assert_same(together[i : i + 1], decode_detections(*one, anchors, [size], **options))
    assert [len(found.scores) > 0 for found in together] == [True, False, True]


@pytest.mark.parametrize("max_detections", [1, 3, 100])
@pytest.mark.parametrize("topk_per_level", [20, 1000])
def test_the_steps_of_a_gpu_give_the_same(monkeypatch, topk_per_level, max_detections):
    logits, deltas, anchors = random_levels(images=3)
    sizes = [(200, 200)] * 3
    options = {**OPTIONS, "topk_per_level": topk_per_level, "max_detections": max_detections}
    expected = decode_detections(logits, deltas, anchors, sizes, **options)
    monkeypatch.setattr(decode_module, "_above_first", decode_module._best_first)
    monkeypatch.setattr(decode_module, "_suppress_one_by_one", decode_module._suppress_together)
    assert_same(decode_detections(logits, deltas, anchors, sizes, **options), expected)
    empty = [torch.full_like(level, -9) for level in logits]
    assert [len(found.scores) for found in decode_detections(empty, deltas, anchors, sizes, **options)] == [0, 0, 0]


def test_a_wild_box_of_one_image_leaves_the_others_alone(monkeypatch):
    boxes = torch.tensor([[0.0, 0, 9, 9], [1e18, 0, 2e18, 9], [0.0, 0, torch.nan, 9], [0, 0, 9, 9], [0, 0, 9, 8]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    logits, deltas = torch.logit(scores).view(1, 5, 1), torch.zeros(1, 5, 4)
    for suppress in (decode_module._suppress_together, decode_module._suppress_one_by_one):
        monkeypatch.setattr(decode_module, "_suppress_one_by_one", suppress)
        both = [torch.cat([logits, logits]), torch.cat([deltas, deltas])]
        both[0][0, 3:], both[0][1, :3] = -9, -9
        found = decode_detections(both[:1], both[1:], [boxes], [(50, 50)] * 2, **OPTIONS)
        assert found[1].scores.tolist() == pytest.approx([0.6])


def test_a_nonfinite_logit_hides_no_other_class():
    logits = torch.tensor([[[torch.nan, 2.0], [1.0, -9.0]]])
    (found,) = decode_detections([logits], [torch.zeros(1, 2, 4)], [grid(2)], [(50, 50)], **OPTIONS)
    assert found.classes.tolist() == [1, 0]


def test_half_precision_does_not_move_the_threshold():
    # logit -2.9375 is a score of .0503; bfloat16 rounds the threshold, -2.9444, to -2.9375
    logits = torch.tensor([[[-2.9375], [-2.953125]]], dtype=torch.bfloat16)
    (found,) = decode_detections([logits], [torch.zeros(1, 2, 4)], [grid(2)], [(50, 50)], **OPTIONS)
    assert found.scores.tolist() == pytest.approx([0.05032], rel=1e-3)


def test_suppression_that_looks_at_the_best_first_finds_what_it_would_of_all(monkeypatch):
    logits, deltas, anchors = random_levels(images=2, sizes=(900, 300))
    sizes = [(200, 200)] * 2
    expected = decode_detections(logits, deltas, anchors, sizes, **OPTIONS)
    for first_look in (0, 1, 1000):
        monkeypatch.setattr(decode_module, "_FIRST_LOOK", first_look)
        assert_same(decode_detections(logits, deltas, anchors, sizes, **OPTIONS), expected)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("score_thresh", -0.1), ("score_thresh", 1.0), ("nms_thresh", -0.1), ("nms_thresh", 1.1)),
        *(("topk_per_level", 0), ("max_detections", 0)),
    ],
)
def test_an_option_out_of_its_range_is_named(option, value):
    with pytest.raises(ValueError, match=f"{option}={value} "):
        decode([torch.zeros(1, 1)], [grid(1)], **{option: value})
