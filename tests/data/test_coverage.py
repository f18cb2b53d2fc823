"""The best anchor of a box, found from the nearest centres alone, is the best of all anchors tried one by one."""

import numpy as np
import pytest
import torch

from focal_det.data.coverage import AnchorGrid, best_ious
from focal_det.data.statistics import sample, statistics
from focal_det.modeling.anchors import cell_anchors, grid_anchors
from focal_det.modeling.assignment import pairwise_iou

STRIDES = (8, 16, 32, 64, 128)


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(8))
def test_equals_trying_every_anchor(seed, offset):
    rng = np.random.default_rng(seed)
    width, height = rng.integers(20, 300, 2)
    cells = [cell_anchors(base, 3, [0.5, 1.0, 2.0]) for base in (16, 32, 64, 128, 256)]
    corners = rng.uniform(0, 0.95, (40, 2)) * (width, height)
    sides = np.minimum(rng.uniform(0.01, 1, (40, 2)) * (width, height), (width, height) - corners)
    boxes = np.hstack([corners, corners + sides])

    padded = [-(-side // 32) * 32 for side in (width, height)]  # as Detectron2 fills up for an FPN to P5
    levels = []
    for level, stride in zip(cells, STRIDES, strict=True):
        across, down = (-(-side // stride) for side in padded)  # P6 and P7 by convolutions that round up
        levels.append(grid_anchors(level.double(), down, across, stride, offset))
    expected = pairwise_iou(torch.tensor(boxes), torch.cat(levels)).amax(dim=1)

    grid = AnchorGrid([level.double().numpy() for level in cells], STRIDES, offset, 32)
    found = best_ious(boxes, np.tile([width, height], (40, 1)), grid)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12)


COCO = {
    "images": [{"id": 5, "width": 100, "height": 80}, {"id": 6, "width": 50, "height": 50}],
    "categories": [{"id": 9, "name": "b"}, {"id": 2, "name": "a"}],
    "annotations": [
        {"image_id": 5, "category_id": 9, "bbox": [90, 10, 20, 30], "area": 600},
        {"image_id": 5, "category_id": 2, "bbox": [0, 0, 10, 10], "area": 50, "iscrowd": 0},
        {"image_id": 6, "category_id": 2, "bbox": [0, 0, 10, 10], "area": 50, "iscrowd": 1},
    ],
}


def test_statistics_count_what_is_trained_on():
    found = statistics(COCO)
    assert (found.pictures, found.with_objects, found.crowds) == (2, 1, 1)
    assert found.class_names == ["a", "b"]  # by id, as the labels are
    assert found.instances.tolist() == [1, 1]
    assert found.objects.boxes.tolist() == [[90, 10, 100, 40], [0, 0, 10, 10]]  # clipped at 100
    assert found.objects.areas.tolist() == [600, 50]


def test_a_sample_goes_evenly_through_the_set():
    objects = statistics(COCO).objects
    assert len(sample(objects, 2).boxes) == 2
    assert sample(objects, 1).classes.tolist() == [1]
