"""Decoding: each step by hand, and the whole against torchvision's parts."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
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
    """Decode one image, with levels of scores (R, K) as probabilities."""
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


@pytest.mark.parametrize("gpu", [False, True])
def test_no_images_give_no_detections(monkeypatch, gpu):
    if gpu:
        on_a_gpu(monkeypatch)
    assert decode_detections([torch.zeros(0, 2, 3)], [torch.zeros(0, 2, 4)], [grid(2)], [], **OPTIONS) == []


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


def on_a_gpu(monkeypatch):
    """Take the steps of a GPU, which a processor can do, too."""
    steps = decode_module._steps(torch.device("cuda"))
    monkeypatch.setattr(decode_module, "_steps", lambda device: steps)


@pytest.mark.parametrize("max_detections", [1, 3, 100])
@pytest.mark.parametrize("topk_per_level", [20, 1000])
@pytest.mark.parametrize(("images", "classes"), [(3, 4), (1, 1), (40, 2)])
def test_the_steps_of_a_gpu_give_the_same(monkeypatch, images, classes, topk_per_level, max_detections):
    logits, deltas, anchors = random_levels(images, classes)
    sizes = [(200 + i, 200) for i in range(images)]
    options = {**OPTIONS, "topk_per_level": topk_per_level, "max_detections": max_detections}
    logits[0][:, 0, 0], logits[0][:, 1, 0], logits[0][-1, 2:, 0] = torch.inf, -torch.inf, -9
    expected = decode_detections(logits, deltas, anchors, sizes, **options)
    assert sum(len(found.scores) for found in expected) >= images
    on_a_gpu(monkeypatch)
    assert_same(decode_detections(logits, deltas, anchors, sizes, **options), expected)
    monkeypatch.setattr(decode_module, "_MAX_PAIRS", 40**2)  # a look at 40 at most, image by image
    assert_same(decode_detections(logits, deltas, anchors, sizes, **options), expected)
    monkeypatch.setattr(decode_module, "_ROUNDS", 1)  # which leaves all but the simplest images undecided
    assert_same(decode_detections(logits, deltas, anchors, sizes, **options), expected)


def test_the_steps_of_a_gpu_find_nothing_where_nothing_is(monkeypatch):
    on_a_gpu(monkeypatch)
    logits, deltas, anchors = random_levels(images=2)
    nothing = [torch.full_like(level, -9) for level in logits]
    found = decode_detections(nothing, deltas, anchors, [(50, 50)] * 2, **OPTIONS)
    assert [one.boxes.shape for one in found] == [(0, 4)] * 2
    assert decode([torch.zeros(0, 3)], [torch.zeros(0, 4)]).boxes.shape == (0, 4)


class _Waits(TorchDispatchMode):
    """Counts the operators for which the host would wait, were the tensors on a GPU."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "equal", "repeat_interleave")

    def __init__(self, monkeypatch):
        super().__init__()
        self.seen = []
        tolist = torch.Tensor.tolist
        monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: self.seen.append("tolist") or tolist(tensor))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0].lstrip("_")
        is_mask = name.startswith("index") and any(
            x is not None and x.dtype == torch.bool for x in args[1] if isinstance(args[1], list)
        )
        if is_mask or any(name.startswith(waiting.lstrip("_")) for waiting in self.NAMES):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_a_gpu_is_waited_for_once(monkeypatch):
    on_a_gpu(monkeypatch)
    logits, deltas, anchors = random_levels(images=4)
    with _Waits(monkeypatch) as waits:
        decode_detections(logits, deltas, anchors, [(50, 70)] * 4, [(100, 140)] * 4, **OPTIONS)
    assert waits.seen == ["tolist"]
    monkeypatch.setattr(decode_module, "_ROUNDS", 1)
    with _Waits(monkeypatch) as waits:
        decode_detections(logits, deltas, anchors, [(50, 70)] * 4, [(100, 140)] * 4, **OPTIONS)
    assert waits.seen.count("tolist") == 3  # after the rounds, for the numbers of candidates, and at the end


@pytest.mark.parametrize("gpu", [False, True])
def test_boxes_are_resized_to_the_output_and_empty_ones_dropped(monkeypatch, gpu):
    if gpu:
        on_a_gpu(monkeypatch)
    boxes = torch.tensor([[0.0, 0, 9, 9], [60, 0, 70, 9], [20, 10, 55, 40]])  # the second is beside the image
    logits = torch.tensor([[[1.0], [3.0], [2.0]]])
    (found,) = decode_detections([logits], [torch.zeros(1, 3, 4)], [boxes], [(50, 50)], [(25, 100)], **OPTIONS)
    assert found.boxes.tolist() == [[40.0, 5.0, 100.0, 20.0], [0.0, 0.0, 18.0, 4.5]]
    assert found.scores.equal(torch.tensor([2.0, 1.0]).sigmoid())


@pytest.mark.parametrize("gpu", [False, True])
def test_a_nan_box_is_an_error(monkeypatch, gpu):
    if gpu:
        on_a_gpu(monkeypatch)
    logits, deltas, anchors = random_levels(images=2)
    deltas[0][1] = torch.nan
    with pytest.raises(FloatingPointError, match="image 1 of the batch: the box of a detection is NaN"):
        decode_detections(logits, deltas, anchors, [(50, 70)] * 2, **OPTIONS)
    logits[0][1] = -9
    assert len(decode_detections(logits, deltas, anchors, [(50, 70)] * 2, **OPTIONS)[1].scores) > 0


@pytest.mark.parametrize("gpu", [False, True])
def test_a_wild_box_of_one_image_leaves_the_others_alone(monkeypatch, gpu):
    if gpu:
        on_a_gpu(monkeypatch)
    boxes = torch.tensor([[0.0, 0, 9, 9], [1e18, 0, 2e18, 9], [0, 0, 9, 9], [0, 0, 9, 8]])
    logits = torch.tensor([[2.0, 1.5, -9, -9], [-9, -9, 1.0, 0.5]]).unsqueeze(2)
    found = decode_detections([logits], [torch.zeros(2, 4, 4)], [boxes], [(50, 50)] * 2, **OPTIONS)
    assert [one.scores.tolist() for one in found] == [
        pytest.approx([torch.sigmoid(torch.tensor(x)).item()]) for x in (2.0, 1.0)
    ]


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
