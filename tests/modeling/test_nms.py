"""Both ways of suppression against torchvision's `nms` of each class by itself, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import nms

from focal_det.modeling import decode
from focal_det.modeling.decode import _NONE, _Candidates, _suppress_one_by_one, _suppress_together
from focal_det.modeling.nms import FARTHEST, bound_boxes, suppress_in_rounds, suppress_one_image


def plainly(boxes, scores, classes, iou_threshold):
    """The indices of what is kept of one image, best first; of equal scores the first."""
    kept = torch.zeros(len(boxes), dtype=torch.bool)
    for label in classes.unique():
        of_class = (classes == label).nonzero().squeeze(1)
        kept[of_class[nms(boxes[of_class].double(), scores[of_class].double(), iou_threshold)]] = True
    order = scores.argsort(descending=True, stable=True)
    return order[kept[order]]


def candidates(seed, images, count, num_classes, step, levels):
    """Random boxes on a grid of `step` pixels, so that IoUs meet the threshold, and scores of few values."""
    rng = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 30, (images, count, 2), generator=rng) * step
    sides = torch.randint(0, 12, (images, count, 2), generator=rng) * step
    scores = torch.randint(1, levels + 1, (images, count), generator=rng) / (levels + 1)
    filled = torch.randint(0, count + 1, (images, 1), generator=rng)  # the rest is no candidate
    scores = torch.where(torch.arange(count) < filled, scores, _NONE).sort(dim=1, descending=True, stable=True).values
    classes = torch.randint(0, num_classes, (images, count), generator=rng)
    return _Candidates(torch.cat((corners, corners + sides), dim=2).float(), scores, classes)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    images=st.integers(1, 4),
    count=st.integers(0, 60),
    num_classes=st.integers(1, 4),
    step=st.sampled_from([1.0, 0.37, 1e3, 1e6]),
    levels=st.sampled_from([1, 5, 1000]),
    threshold=st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.7, 1.0]),
    most=st.integers(1, 30),
    rounds=st.sampled_from([1, 3, 16]),
)
def test_both_ways_keep_what_torchvision_keeps(seed, images, count, num_classes, step, levels, threshold, most, rounds):
    found = candidates(seed, images, count, num_classes, step, levels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "_FIRST_LOOK", 1)
        patch.setattr(decode, "_FIRST_LOOK_TOGETHER", 2)
        patch.setattr(decode, "_ROUNDS", rounds)
        ways = _suppress_one_by_one(found, threshold, most), _suppress_together(found, threshold, most)
    assert ways[0].is_final.all()
    for i in range(images):
        filled = found.scores[i] > _NONE
        boxes = bound_boxes(found.boxes[i, filled])
        expected = plainly(boxes, found.scores[i, filled], found.classes[i, filled], threshold)[:most].tolist()
        for places, is_there, is_final in ways:
            if is_final[i]:
                assert places[i, is_there[i]].tolist() == expected
                assert is_there[i, : len(expected)].all()


def chain(length):
    """Boxes of which each hides the next: shifted by a quarter, they overlap by 3/5."""
    x = 10.0 * torch.arange(length)
    return torch.stack((x, torch.zeros(length), x + 40, torch.full((length,), 9.0)), dim=1)[None]


def test_a_chain_is_final_after_as_many_rounds_as_it_has_links():
    boxes, classes, every = chain(9), torch.zeros(1, 9, dtype=torch.int64), torch.ones(1, 9, dtype=torch.bool)
    kept, is_final = suppress_in_rounds(boxes, classes, every, 0.5, rounds=9)
    assert kept.tolist() == [[True, False] * 4 + [True]]
    assert is_final.tolist() == [True]
    assert suppress_in_rounds(boxes, classes, every, 0.5, rounds=8)[1].tolist() == [False]


def test_a_look_that_cannot_decide_says_so():
    # Of 30 boxes at one place and one elsewhere, the worst: ten for each detection wanted show one survivor of two.
    boxes = torch.tensor([[0.0, 0, 9, 9]]).repeat(31, 1)
    boxes[30] += 50
    found = _Candidates(boxes[None], torch.linspace(0.9, 0.1, 31)[None], torch.zeros(1, 31, dtype=torch.int64))
    assert _suppress_together(found, 0.5, 2).is_final.tolist() == [False]
    assert _suppress_together(found, 0.5, 1).is_final.tolist() == [True]
    assert _suppress_together(found, 0.5, 4).places[0, :2].tolist() == [0, 30]


def test_nonfinite_and_far_boxes_hide_nothing_near():
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, torch.nan, 9], [-torch.inf, 0, torch.inf, 9], [1e30, 0, 2e30, 9]])
    bounded = bound_boxes(boxes)
    assert bounded.isfinite().all()
    assert bounded.abs().max() == FARTHEST
    scores, classes = torch.tensor([0.1, 0.9, 0.8, 0.7]), torch.zeros(4, dtype=torch.int64)
    assert suppress_one_image(boxes, scores, classes, 0.5).tolist() == [1, 2, 3, 0]
    assert suppress_one_image(boxes[:0], scores[:0], classes[:0], 0.5).tolist() == []
