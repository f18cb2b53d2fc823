"""Pictures that stand for a whole set."""

from focal_det.data.spread import evenly_spread


def test_they_are_evenly_spread_and_bounded():
    assert evenly_spread(list(range(10)), 4) == [0, 2, 5, 7]  # from 0 in steps of 2.5, rounded down
    assert evenly_spread([1, 2], 4) == [1, 2]
    assert evenly_spread([1, 2], 0) == evenly_spread([], 3) == []
