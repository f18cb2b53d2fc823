"""Boxes of another format are told from boxes of COCO's, in both directions, on sets of every shape."""

import json
from pathlib import Path

import numpy as np
import pytest

from focal_det.data.shapes import draw_image
from focal_det.formats.coco_checks import format_problem, like_corners, percent, reaching_out, without_area

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd" / "instances_train.json"


def random_set(seed):
    """Boxes of a random kind of data set, [x, y, width, height], inside their images, and the images' sizes."""
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
    # Objects that the border cuts off, drawn as if it did not, large enough to be corners as well; on all sides alike.
    for seed in range(50):
        boxes, sizes = random_set(seed)
        boxes[::10, 2:] += 0.2 * sizes[::10]
        boxes[::20, :2] = np.minimum(0, boxes[::20, :2] - 0.2 * sizes[::20])
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
    drawn = [draw_image("train", index, 96, rare=rare)[1] for index in range(40)]
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


def mixed(corners, right=0, left=0):
    """100 boxes in 100 x 100 px: so many that are corners, so many drawn beyond the right or the left border."""
    # As [x, y, w, h]: (10, 10, 5, 5) is inside and no corners, 5 < 10; (60, 60, 90, 90) ends at 150, and is corners.
    boxes = np.full((100, 4), 10.0)
    boxes[:, 2:] = 5
    boxes[:corners] = 60, 60, 90, 90
    boxes[corners : corners + right] = 80, 10, 50, 50  # ends at 130, but 50 < 80 makes no corners
    boxes[corners + right : corners + right + left] = -20, 10, 95, 95
    return boxes, np.full((100, 2), 100.0)


def test_a_part_of_the_boxes_as_corners_is_found_from_a_twentieth_on():
    assert like_corners(*mixed(40)).mean() == 0.4
    for corners in (5, 40):
        problem = format_problem(*mixed(corners))
        assert problem.startswith("a part of the boxes are two corners")
        assert f"{corners} of 100 ({corners}%) reach far out" in problem
    assert format_problem(*mixed(4)) is None
    few, sizes = mixed(4)
    assert format_problem(few[:10], sizes[:10]) is None  # 40 %, but four boxes prove nothing
    assert "the boxes are two corners" in format_problem(*(part[:40] for part in mixed(40)))


def test_boxes_beyond_the_borders_are_no_corners():
    assert not like_corners(*mixed(0, right=50, left=50)).any()
    # Those that could be corners stand against those beyond the left border, where no corner lies.
    assert format_problem(*mixed(10, left=6)) is None
    assert format_problem(*mixed(10, left=5)) is not None


def test_large_objects_drawn_beyond_all_borders_are_no_problem():
    # Objects of .7 to 1.2 of the side with their centre anywhere in the image: half of them stick out far.
    for seed in range(50):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(60, 1000, (300, 2)).astype(float)
        sides, centres = rng.uniform(0.7, 1.2, (300, 2)) * sizes, rng.uniform(0, 1, (300, 2)) * sizes
        assert format_problem(np.hstack([centres - sides / 2, sides]), sizes) is None


def test_fractions_of_the_image_are_found():
    sizes = np.full((6, 2), 100.0)
    assert "lie in 0..1" in format_problem(np.full((6, 4), 0.4), sizes)
    assert format_problem(np.tile([0.0, 0.0, 1.0, 1.0], (6, 1)), sizes) is None  # a pixel in the corner


def test_no_boxes_are_no_problem():
    none = np.zeros((0, 4)), np.zeros((0, 2))
    assert format_problem(*none) is None
    assert without_area(*none).shape == (0,)


def test_a_share_of_some_is_never_nothing():
    assert [percent(share) for share in (0, 0.004, 0.4)] == ["0%", "under 1%", "40%"]
