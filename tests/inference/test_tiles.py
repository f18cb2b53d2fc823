"""What was found in tiles is what is in the image: each object once."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from focal_det.data.tiling import Tiles
from focal_det.inference.detections import Detections
from focal_det.inference.tiles import detect_in_tiles, merge


def found(*rows):
    """Detections of rows x0, y0, x1, y1, score, class; best first."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Detections(table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), table[:, 5].astype(np.int64))


NOTHING = found()
PLACES = np.array([[0, 0, 180, 100], [0, 0, 100, 100], [80, 0, 180, 100]])  # the image, and two tiles


def merged(*parts):
    """The rows that are left, as they were given."""
    kept = merge(parts, PLACES)
    return [
        (*map(int, box), round(float(score), 3), int(label))
        for box, score, label in zip(kept.boxes.tolist(), kept.scores, kept.classes, strict=True)
    ]


@pytest.mark.parametrize(
    ("parts", "left"),
    [
        # what both tiles and the image show whole is there once, with the best score
        ([[(87, 9, 93, 30, 0.5, 0)], [(87, 10, 93, 30, 0.8, 0)], [(87, 9, 94, 30, 0.6, 0)]], [(1, 0)]),
        # of another class, or elsewhere, it is another object
        ([[], [(84, 10, 96, 30, 0.8, 0)], [(84, 10, 96, 30, 0.6, 1)]], [(1, 0), (2, 0)]),
        ([[], [(84, 10, 96, 30, 0.8, 0)], [(84, 20, 96, 40, 0.6, 0)]], [(1, 0), (2, 0)]),
        # within a tile the detector has decided by itself
        ([[], [(10, 10, 30, 30, 0.8, 0), (10, 10, 30, 31, 0.7, 0)], []], [(1, 0), (1, 1)]),
        # a part, cut by the right border of the left tile, of what its neighbour shows whole, however good it looks
        ([[], [(86, 10, 99, 30, 0.9, 0)], [(86, 10, 104, 30, 0.6, 0)]], [(2, 0)]),
        # parts of what is larger than a tile: the whole image shows it
        ([[(9, 10, 170, 90, 0.7, 0)], [(9, 10, 100, 90, 0.8, 0)], [(80, 10, 170, 90, 0.8, 0)]], [(0, 0)]),
        # of two parts by more than half the better one
        ([[], [(70, 10, 100, 30, 0.6, 0)], [(80, 10, 115, 30, 0.9, 0)]], [(2, 0)]),
        # but no weak box of the whole image takes away a good one that happens to reach a border
        ([[(0, 0, 170, 90, 0.3, 0)], [(70, 10, 100, 30, 0.9, 0)], []], [(1, 0), (0, 0)]),
        # and what lies within another one, at no border or at the image's own, is an object of its own
        (
            [[(0, 0, 170, 90, 0.7, 0)], [(0, 10, 20, 30, 0.5, 0), (40, 10, 60, 30, 0.4, 0)], []],
            [(0, 0), (1, 0), (1, 1)],
        ),
    ],
)
def test_each_object_is_left_once(parts, left):
    expected = [tuple(parts[part][row]) for part, row in left]
    assert merged(*(found(*rows) for rows in parts)) == expected


def together(parts):
    """Boxes, scores and classes of all parts."""
    return [np.concatenate([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "classes")]


def merged_slowly(parts, places):
    """The rule of `merge` pair by pair: indices of what is left, best first."""
    part = np.repeat(np.arange(len(parts)), [len(p.scores) for p in parts])
    boxes, scores, classes = (array.astype(np.float64) for array in together(parts))
    cut = []
    for box, of in zip(boxes, places[part], strict=True):
        sides = [box[2] - box[0], box[3] - box[1]] * 2
        cut.append(any(of[i] != places[0][i] and abs(box[i] - of[i]) <= max(1, 0.2 * sides[i]) for i in range(4)))
    kept = []
    for i in np.argsort(-scores * np.where(cut, 0.5, 1), kind="stable"):
        for j in kept:
            width, height = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
            common = max(width, 0) * max(height, 0)
            mine, other = (np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (i, j))
            same = common > 0.5 * (mine + other - common) or (cut[i] and common > 0.5 * mine)
            if same and classes[i] == classes[j] and part[i] != part[j]:
                break
        else:
            kept.append(i)
    return sorted(kept, key=lambda i: (-scores[i], i))


@given(seed=st.integers(0, 10**6), count=st.integers(0, 30))
def test_merging_is_what_comparing_all_pairs_gives(seed, count):
    rng = np.random.default_rng(seed)
    parts = []
    for place in PLACES:
        corners = rng.integers(0, 80, (count, 2)) + place[:2]
        boxes = np.minimum(np.hstack([corners, corners + rng.integers(5, 60, (count, 2))]), np.tile(place[2:], 2))
        rows = np.column_stack([boxes, rng.permutation(count) / 100 + 0.1, rng.integers(0, 2, count)])
        parts.append(found(*rows))
    kept = merge(parts, PLACES)
    boxes, scores, classes = together(parts)
    order = np.array(merged_slowly(parts, PLACES), dtype=int)
    assert (kept.scores == scores[order]).all()
    assert sorted(zip(*kept.boxes.T.tolist(), kept.classes, strict=True)) == sorted(
        zip(*boxes[order].T.tolist(), classes[order], strict=True)
    )


class Finder:
    """Finds bright rectangles, exactly, each as a class by its colour; in an image of more than 150 px large ones."""

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        self.batches.append([image.shape[:2] for image in images])
        return [self.one(image) for image in images]

    def one(self, image):
        rows = []
        for label in (0, 1):
            mask = (image[:, :, label] > 200).astype(np.uint8)
            _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
            for x, y, width, height, _ in stats[1:].tolist():
                if max(image.shape) <= 150 or max(width, height) >= 100:
                    rows.append((x, y, x + width, y + height, 0.5 + 1e-4 * min(width * height, 4000), label))
        return found(*sorted(rows, key=lambda row: -row[4]))


def drawn(objects, height=330, width=500):
    image = np.zeros((height, width, 3), np.uint8)
    for x0, y0, x1, y1, label in objects:
        image[y0:y1, x0:x1, label] = 255
    return image


def boxes_of(detections):
    rows = np.column_stack([detections.boxes, detections.classes]).astype(int)
    return sorted(map(tuple, rows.tolist()))


@given(seed=st.integers(0, 10**6))
def test_objects_up_to_the_overlap_and_larger_ones_than_a_tile_are_found_once_and_in_their_place(seed):
    rng = np.random.default_rng(seed)
    large = (4, 150, 190, 182, 0)  # longer than a tile: the whole image shows it
    objects = []
    for row in range(0, 320, 40):  # cells of 40 px, which the tiles' borders cut
        for column in range(0, 480, 40):
            width, height = rng.integers(3, 34, 2)
            x, y = column + rng.integers(1, 39 - width), row + rng.integers(1, 39 - height)
            objects.append((int(x), int(y), int(x + width), int(y + height), int(rng.integers(2))))
    objects = [o for o in objects if o[0] > 191 or o[3] < 149 or o[1] > 183] + [large]
    finder = Finder()
    (kept,) = detect_in_tiles(finder, [drawn(objects)], Tiles(140, 0.25), 4)  # they overlap by 35 px
    assert boxes_of(kept) == sorted(objects)
    assert (np.diff(kept.scores) <= 0).all()
    assert (kept.boxes.dtype, kept.scores.dtype, kept.classes.dtype) == (np.float32, np.float32, np.int64)


def test_what_one_tile_covers_is_left_as_it_is_and_tiles_come_in_batches():
    finder = Finder()
    small, large = drawn([(5, 5, 20, 20, 1)], 90, 140), drawn([(9, 9, 30, 30, 0)], 140, 400)
    for tiles in (Tiles(), Tiles(140, 0.5)):
        finder.batches.clear()
        assert boxes_of(detect_in_tiles(finder, [small, small], tiles, 3)[1]) == [(5, 5, 20, 20, 1)]
        assert finder.batches == [[(90, 140), (90, 140)]]
    finder.batches.clear()
    found_small, found_large = detect_in_tiles(finder, [small, large], Tiles(140, 0.5), 3)
    assert boxes_of(found_small) == [(5, 5, 20, 20, 1)]
    assert boxes_of(found_large) == [(9, 9, 30, 30, 0)]
    assert finder.batches == [[(90, 140), (140, 400)], [(140, 140)] * 3, [(140, 140)] * 2]
    assert detect_in_tiles(finder, [], Tiles(140, 0.5), 3) == []
    tied = found((0, 0, 9, 9, 0.5, 1), (20, 0, 29, 9, 0.5, 0))
    assert detect_in_tiles(lambda images: [tied], [small], Tiles(140, 0.5), 3)[0] is tied
