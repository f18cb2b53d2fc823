"""Tiles cover an image, and each shows the objects that it holds enough of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from focal_det.data.tiling import VISIBLE, Tiles, best_views, shown_in, tile_corners
from focal_det.errors import InputError


def test_tiles_lie_row_by_row_and_the_last_are_shifted_inward():
    # Along 250: 0, 80, then 150 instead of 160. Along 90, which is less than a tile: the whole side.
    assert tile_corners(90, 250, Tiles(100, 0.2)).tolist() == [[0, 0, 100, 90], [80, 0, 180, 90], [150, 0, 250, 90]]
    assert tile_corners(64, 96, Tiles(64, 0)).tolist() == [[0, 0, 64, 64], [32, 0, 96, 64]]
    assert tile_corners(128, 64, Tiles(64, 0)).tolist() == [[0, 0, 64, 64], [0, 64, 64, 128]]  # none twice


@pytest.mark.parametrize("tiles", [Tiles(), Tiles(200), Tiles(100_000, 0.99)])
def test_an_image_that_one_tile_covers_is_one_tile(tiles):
    assert tile_corners(120, 200, tiles).tolist() == [[0, 0, 200, 120]]


@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    size=st.integers(32, 200),
    overlap=st.floats(0, 1, exclude_max=True),
)
def test_tiles_cover_the_image_and_overlap_as_asked(height, width, size, overlap):
    corners = tile_corners(height, width, Tiles(size, overlap))
    assert len(np.unique(corners, axis=0)) == len(corners)
    sides = corners[:, 2:] - corners[:, :2]
    assert (sides == [min(size, width), min(size, height)]).all()
    for axis, side in ((0, width), (1, height)):
        starts = np.unique(corners[:, axis])
        assert starts[0] == 0
        assert corners[:, axis + 2].max() == side
        assert (np.diff(starts) <= max(1, size * (1 - overlap) + 0.5)).all()
    assert len(corners) == len(np.unique(corners[:, 0])) * len(np.unique(corners[:, 1]))


@pytest.mark.parametrize(
    ("size", "overlap", "wrong"),
    [
        *((size, None, [f"tile is {size!r}: the side of tiles"]) for size in (31, -64, 1, 640.0, True, "640")),
        *(
            (64, overlap, [f"overlap is {overlap!r}: the overlap of tiles"])
            for overlap in (0.91, 1, 1.5, -0.1, True, "0.2")
        ),
        (64, float("nan"), ["overlap is nan: the overlap of tiles"]),
        (16, 2, ["tile is 16: the side of tiles", "overlap is 2: the overlap of tiles"]),
        (0, 0.3, ["overlap is 0.3, but there are no tiles"]),
        (None, 0.3, ["overlap is 0.3, but there are no tiles"]),
    ],
)
def test_what_no_tile_can_have_is_named(size, overlap, wrong):
    with pytest.raises(InputError) as caught:
        Tiles().replaced(size, overlap)
    assert [p[: len(w)] for p, w in zip(caught.value.problems, wrong, strict=True)] == wrong


def test_what_is_not_given_stays():
    assert Tiles(640, 0.3).replaced(None, None) == Tiles(640, 0.3)
    assert Tiles(640, 0.3).replaced(0, None) == Tiles(0, 0.3)
    assert Tiles(640, 0.3).replaced(None, 0) == Tiles(640, 0.0)
    assert Tiles().replaced(np.int64(32), None) == Tiles(32, 0.2)


def test_what_is_half_there_is_an_object_and_less_is_a_part_of_one():
    # Tiles of 100 px beside one another. From the left: whole; half, .49 and .51 in the first tile; in none of them.
    boxes = np.array([[10, 20, 40, 60], [90, 0, 110, 10], [51, 0, 151, 10], [49, 0, 149, 10], [230, 0, 240, 9]], float)
    left, right = shown_in(boxes, np.array([[0, 0, 100, 100], [100, 0, 200, 100]]))
    assert left.objects.tolist() == [0, 1, 3]
    assert left.boxes.tolist() == [[10, 20, 40, 60], [90, 0, 100, 10], [49, 0, 100, 10]]
    assert left.parts.tolist() == [[51, 0, 100, 10]]
    assert right.objects.tolist() == [1, 2]
    assert right.boxes.tolist() == [[0, 0, 10, 10], [0, 0, 51, 10]]  # in pixels of the tile
    assert right.parts.tolist() == [[0, 0, 49, 10]]


def some_boxes(seed, count, height, width):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, [width, height], (count, 2, 2))
    return np.hstack([corners.min(axis=1), corners.max(axis=1)])


@given(seed=st.integers(0, 10**6), count=st.integers(0, 9), height=st.integers(9, 300), width=st.integers(9, 300))
def test_objects_up_to_the_overlap_are_whole_in_a_tile_and_all_tiles_show_what_they_hold(seed, count, height, width):
    tiles = Tiles(32, 0.5)  # so that there are more than are looked at together
    boxes, corners = some_boxes(seed, count, height, width), tile_corners(height, width, tiles)
    shown = list(shown_in(boxes, corners))
    assert len(shown) == len(corners)
    for tile, part in zip(corners, shown, strict=True):
        low, high = np.tile(tile[:2], 2), np.tile(tile[2:], 2)
        areas = np.array([np.prod(np.clip(b, low, high)[2:] - np.clip(b, low, high)[:2]) for b in boxes])
        shares = areas / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        assert part.objects.tolist() == (shares >= VISIBLE).nonzero()[0].tolist()
        assert len(part.parts) == ((shares > 0) & (shares < VISIBLE)).sum()
        np.testing.assert_allclose(part.boxes + low, np.clip(boxes[part.objects], low, high), atol=1e-9)
    for place, box in enumerate(boxes):
        if (box[2:] - box[:2] <= 16).all():
            views = [p.boxes[p.objects == place] + np.tile(t[:2], 2) for t, p in zip(corners, shown, strict=True)]
            assert any(np.allclose(view, box) for view in np.concatenate(views))


@given(
    seed=st.integers(0, 10**6),
    height=st.integers(9, 300),
    width=st.integers(9, 300),
    tiles=st.sampled_from([Tiles(32, 0.2), Tiles(100, 0.0), Tiles(64, 0.5), Tiles()]),
)
def test_the_best_view_is_the_tile_of_all_that_shows_most_or_the_whole_image(seed, height, width, tiles):
    boxes, corners = some_boxes(seed, 12, height, width), tile_corners(height, width, tiles)
    views = best_views(boxes, np.full((12, 2), (width, height), float), tiles)
    for box, view in zip(boxes, views, strict=True):
        shared = np.minimum(box[2:], corners[:, 2:]) - np.maximum(box[:2], corners[:, :2])
        most = shared.clip(min=0).prod(axis=1).max() / np.prod(box[2:] - box[:2])
        if most < VISIBLE - 1e-9:
            assert view.tolist() == [0, 0, width, height]
        elif most > VISIBLE + 1e-9:
            assert view.tolist() in corners.tolist()
            seen = np.prod(np.minimum(box[2:], view[2:]) - np.maximum(box[:2], view[:2]))
            assert seen == pytest.approx(most * np.prod(box[2:] - box[:2]))
