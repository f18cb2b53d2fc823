"""Boxes of another format are told from boxes of COCO's, in both directions, on sets of every shape."""

import json
from pathlib import Path

import numpy as np
import pytest

from focal_det.data.box_checks import format_problem, like_corners, percent, reaching_out, without_area
from focal_det.data.shapes import draw_picture

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd" / "instances_train.json"


def random_set(seed):
    """Boxes of a random kind of data set, [x, y, width, height], inside their pictures, and the pictures' sizes."""
    rng = np.random.default_rng(seed)
    number = int(rng.integers(1, 400))
    sizes = rng.integers(30, 2000, (number, 2)).astype(float)
    smallest, largest = np.sort(rng.uniform(0.01, 1, 2))
    sides = rng.uniform(smallest, largest, (number, 2)) * sizes
    spread = rng.uniform(0, 1)  # 0: everything in the middle
    corners = (sizes - sides) * (0.5 + spread * (rng.uniform(0, 1, (number, 2)) - 0.5))
    if rng.random() < 0.3:
        corners *= rng.uniform(0, 1)  # towards the upper left, where width > x is the rule
    return np.hstack([corners, sides]), sizes


@pytest.mark.parametrize("seed", range(300))
def test_no_correct_set_is_taken_for_another(seed):
    boxes, sizes = random_set(seed)
    assert format_problem(boxes, sizes) is None
    assert not like_corners(boxes, sizes).any()
    assert not reaching_out(boxes, sizes).any()


def test_a_tenth_of_the_boxes_may_reach_out_of_a_correct_set():
    # Objects that the border cuts off, drawn as if it did not, large enough to be corners as well.
    for seed in range(50):
        boxes, sizes = random_set(seed)
        boxes[::10, 2:] += 0.2 * sizes[::10]
        assert format_problem(boxes, sizes) is None


def test_sets_of_corners_are_found():
    # Centres that lie anywhere: 70 % reach far out. Of few, or in the upper left, nothing can be seen.
    for seed in range(100):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(30, 2000, (60, 2)).astype(float)
        corners = np.sort(rng.uniform(0, 1, (60, 2, 2)), axis=1) * sizes[:, None]
        problem = format_problem(corners.reshape(60, 4), sizes)
        assert problem is not None
        assert "XYXY stored as XYWH" in problem


def as_corners(boxes):
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


@pytest.mark.parametrize("rare", [False, True])
def test_generated_shapes_both_ways(rare):
    drawn = [draw_picture("train", index, 96, rare=rare)[1] for index in range(40)]
    corners = np.concatenate(drawn).astype(float)
    sizes = np.full((len(corners), 2), 96.0)
    boxes = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
    assert format_problem(boxes, sizes) is None
    assert "XYXY" in format_problem(corners, sizes)


@pytest.mark.skipif(not BCCD.is_file(), reason="BCCD is not here")
def test_real_annotations_both_ways():
    boxes = np.array([a["bbox"] for a in json.loads(BCCD.read_text())["annotations"]], float)
    sizes = np.full((len(boxes), 2), (640.0, 480.0))
    assert format_problem(boxes, sizes) is None
    assert "69% of the 3943 would reach" in format_problem(as_corners(boxes), sizes)


def test_a_part_of_the_boxes_as_corners_is_a_share_and_no_verdict():
    # 100 x 100 px. As [x, y, w, h]: (10, 10, 20, 20) is inside; (60, 60, 90, 90) ends at 150, and is a corner pair.
    boxes = np.array([[10, 10, 20, 20.0]] * 12 + [[60, 60, 90, 90.0]] * 8)
    boxes[:4, 2:] = 5  # no corners: 5 < 10, so 80 % are corners, below the 95 % of a verdict
    sizes = np.full((20, 2), 100.0)
    assert like_corners(boxes, sizes).mean() == 0.4
    assert format_problem(boxes, sizes) is None
    assert format_problem(boxes[4:], sizes[4:]) is not None


def test_fractions_of_the_picture_are_found():
    sizes = np.full((6, 2), 100.0)
    assert "lie in 0..1" in format_problem(np.full((6, 4), 0.4), sizes)
    assert format_problem(np.tile([0.0, 0.0, 1.0, 1.0], (6, 1)), sizes) is None  # a pixel in the corner


def test_no_boxes_are_no_problem():
    none = np.zeros((0, 4)), np.zeros((0, 2))
    assert format_problem(*none) is None
    assert without_area(*none).shape == (0,)


def test_a_share_of_some_is_never_nothing():
    assert [percent(share) for share in (0, 0.004, 0.4)] == ["0%", "under 1%", "40%"]
