"""Annotations that are probably wrong: found, named, the worst first; twins as trying all pairs finds them."""

import numpy as np
import pytest
import torch

from focal_det.assigners.assignment import pairwise_iou
from focal_det.data.suspects import describe_suspects, find_suspects, twins


def coco(*boxes, size=(200, 100)):
    """A file with boxes (class, x, y, width, height[, image]) of images a.png and b.png."""
    rows = []
    for number, (name, *numbers) in enumerate(boxes, start=1):
        image, category = (numbers[4] if len(numbers) > 4 else 1), {"cat": 3, "dog": 7}[name]
        rows.append({"id": number, "image_id": image, "category_id": category, "bbox": numbers[:4], "iscrowd": 0})
    images = [{"id": i, "file_name": f"{n}.png", "width": size[0], "height": size[1]} for i, n in ((1, "a"), (2, "b"))]
    return {"images": images, "annotations": rows, "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]}


def found(kind, *boxes):
    return [str(suspect) for suspect in find_suspects(coco(*boxes))[kind]]


def test_boxes_of_a_pixel_are_named_the_smallest_first():
    boxes = ("cat", 5, 5, 30, 1), ("dog", 5, 40, 0.5, 20), ("cat", 5, 70, 1.1, 20)
    assert found("tiny", *boxes) == ["a.png dog [5, 40, 0.5, 20]", "a.png cat [5, 5, 30, 1]"]


def test_boxes_that_cover_the_image_are_named_the_largest_first():
    # 190 x 100 of 200 x 100 is .95; 300 px wide is as wide as the image
    boxes = ("cat", 0, 0, 190, 100), ("dog", -50, 0, 300, 100), ("cat", 0, 0, 188, 100)
    assert found("covering", *boxes) == ["a.png dog [-50, 0, 300, 100]", "a.png cat [0, 0, 190, 100]"]


def test_twins_are_named_as_pairs_with_their_classes():
    # 9 of 10 px shared of 10 covered: IoU .9; 8 of 10: .8; another image: none
    boxes = ("cat", 0, 0, 10, 10), ("dog", 0, 0, 9, 10), ("dog", 50, 0, 10, 10), ("dog", 50, 0, 8, 10)
    assert found("twins", *boxes, ("cat", 0, 0, 10, 10, 2)) == ["a.png cat [0, 0, 10, 10] and dog [0, 0, 9, 10]"]
    (suspect,) = find_suspects(coco(*boxes))["twins"]
    expected = {"file_name": "a.png", "classes": ["cat", "dog"], "boxes": [[0, 0, 10, 10], [0, 0, 9, 10]]}
    assert suspect.as_json() == {**expected, "measure": 0.9}
    assert list(describe_suspects(find_suspects(coco(*boxes)))) == [
        "pairs of boxes with IoU >= 0.9, probably of one object: 1, 1 of them of two classes (a.png cat [0, 0, 10, 10] "
        "and dog [0, 0, 9, 10])"
    ]


def test_crowds_and_sound_boxes_are_no_suspects():
    file = coco(("cat", 0, 0, 200, 100), ("cat", 0, 0, 200, 100), ("dog", 20, 20, 30, 30))
    for row in file["annotations"][:2]:
        row["iscrowd"] = 1
    assert find_suspects(file) == {"tiny": [], "covering": [], "twins": []}
    assert find_suspects(coco()) == {"tiny": [], "covering": [], "twins": []}


@pytest.mark.parametrize("seed", range(5))
def test_a_box_is_paired_exactly_if_trying_all_before_it_finds_a_twin(seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 12, (300, 2))
    boxes = np.hstack([corners, corners + rng.uniform(8, 30, (300, 2))])
    boxes[150:] = boxes[:150] + rng.uniform(-0.7, 0.7, (150, 4))
    image_ids = rng.integers(0, 3, 300)
    ious = pairwise_iou(torch.tensor(boxes), torch.tensor(boxes)).numpy()
    start = boxes[:, :2].sum(axis=1)
    is_before = (image_ids[:, None] == image_ids) & (start[:, None] > start)
    expected = ((ious >= 0.9) & is_before).any(axis=1).sum()
    pairs, measured = twins(boxes, image_ids)
    assert len(pairs) == len(np.unique(pairs, axis=0)) == expected > 20
    assert (image_ids[pairs[:, 0]] == image_ids[pairs[:, 1]]).all()
    np.testing.assert_allclose(measured, ious[pairs[:, 0], pairs[:, 1]])
    assert measured.min() >= 0.9
    assert (pairs[:, 0] < pairs[:, 1]).all()


def test_many_equal_boxes_take_no_longer_than_many_others():
    pairs, ious = twins(np.tile([[5.0, 5.0, 20.0, 20.0]], (50_000, 1)), np.zeros(50_000, np.int64))
    assert (len(pairs), ious.min()) == (49_999, 1.0)  # all pairs would be 1.2e9
