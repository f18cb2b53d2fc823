"""Box coding: by hand, there and back, bounded."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_det.modeling.box_coding import decode_boxes, encode_boxes

ONES = (1, 1, 1, 1)
ANCHOR = torch.tensor([[0.0, 0.0, 10.0, 20.0]])


def test_deltas_by_hand():
    # anchor centre (5, 10), sides (10, 20); box centre (10, 10), sides (20, 20): dx = 5/10, dy = 0, dw = log 2, dh = 0
    deltas = encode_boxes(torch.tensor([[0.0, 0.0, 20.0, 20.0]]), ANCHOR, weights=ONES)
    assert deltas.tolist() == [pytest.approx([0.5, 0.0, math.log(2), 0.0])]


def test_weights_multiply_the_deltas():
    box = torch.tensor([[1.0, 2.0, 20.0, 20.0]])
    plain, weighted = encode_boxes(box, ANCHOR, weights=ONES), encode_boxes(box, ANCHOR, weights=(10, 10, 5, 5))
    torch.testing.assert_close(weighted, plain * torch.tensor([10.0, 10.0, 5.0, 5.0]))
    torch.testing.assert_close(decode_boxes(weighted, ANCHOR, weights=(10, 10, 5, 5)), box)


side = st.floats(1, 60)
corner = st.floats(-500, 500)


@settings(max_examples=200, deadline=None)
@given(st.tuples(corner, corner, side, side), st.tuples(corner, corner, side, side))
def test_there_and_back(box, anchor):
    box, anchor = (torch.tensor([[x, y, x + w, y + h]], dtype=torch.float64) for x, y, w, h in (box, anchor))
    torch.testing.assert_close(
        decode_boxes(encode_boxes(box, anchor, weights=ONES), anchor, weights=ONES), box, rtol=1e-9, atol=1e-7
    )


def test_predicted_sides_are_bounded():
    boxes = decode_boxes(torch.tensor([[0.0, 0.0, 1e9, 1e9]]), ANCHOR, weights=ONES)
    sides = boxes[0, 2:] - boxes[0, :2]
    assert sides.tolist() == pytest.approx([10 * 62.5, 20 * 62.5])  # 1000 / 16 times the anchor's


def test_half_precision_deltas_decode_in_single():
    assert decode_boxes(torch.zeros(1, 4, dtype=torch.float16), ANCHOR, weights=ONES).dtype == torch.float32


@pytest.mark.parametrize("weights", [(1, 1), (1, 1, 1, 0), (1, 1, 1, math.inf)])
def test_weights_out_of_their_range_are_named(weights):
    with pytest.raises(ValueError, match=r"box_weights=\[1, 1.*must be four finite numbers > 0"):
        encode_boxes(ANCHOR, ANCHOR, weights=weights)
