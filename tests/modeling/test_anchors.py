"""Anchor geometry, with boxes as literals."""

import math

import pytest
import torch

from focal_det.modeling.anchors import cell_anchors, grid_anchors


def test_one_square_anchor():
    assert cell_anchors(32, 1, [1.0]).tolist() == [[-16.0, -16.0, 16.0, 16.0]]


def test_ratios_are_height_over_width_and_keep_the_area():
    # area 64; h / w = 4: w = 4, h = 16
    assert cell_anchors(8, 1, [4.0, 0.25]).tolist() == [[-2.0, -8.0, 2.0, 8.0], [-8.0, -2.0, 8.0, 2.0]]


def test_the_papers_nine_anchors_cover_32_to_813_pixels():
    # section 4: sides of the square ones from 32 to 512 * 2^(2/3) = 812.7
    sides = [cell_anchors(base, 3, [0.5, 1.0, 2.0])[1::3, 2].mul(2).tolist() for base in (32, 512)]
    assert len(cell_anchors(32, 3, [0.5, 1.0, 2.0])) == 9
    assert sides[0] == pytest.approx([32.0, 40.3175, 50.7968], abs=1e-3)
    assert sides[1][2] == pytest.approx(812.749, abs=1e-2)


def test_grid_is_row_major_with_anchors_last():
    cells = torch.tensor([[-1.0, -1.0, 1.0, 1.0], [-2.0, -2.0, 2.0, 2.0]])
    # 1 row, 2 columns, stride 8: both anchors at x = 0, then both at x = 8
    assert grid_anchors(cells, 1, 2, 8, offset=0.0).tolist() == [
        [-1.0, -1.0, 1.0, 1.0],
        [-2.0, -2.0, 2.0, 2.0],
        [7.0, -1.0, 9.0, 1.0],
        [6.0, -2.0, 10.0, 2.0],
    ]


def test_rows_come_after_columns_and_offset_is_in_strides():
    cells = torch.zeros(1, 4)
    centres = grid_anchors(cells, 2, 2, 16, offset=0.5)[:, :2].tolist()
    assert centres == [[8.0, 8.0], [24.0, 8.0], [8.0, 24.0], [24.0, 24.0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3, [1.0]), "base_size=0"),
        ((math.inf, 3, [1.0]), "base_size=inf"),
        ((32, 0, [1.0]), "scales_per_octave=0"),
        ((32, 1.5, [1.0]), "1.5"),
    ]
    + [((32, 3, ratios), "aspect_ratios") for ratios in ([], [1.0, -1.0], [math.inf])],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        cell_anchors(*arguments)
