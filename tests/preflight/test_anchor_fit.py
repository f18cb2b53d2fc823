"""How well anchors fit: the same as trying all of them, Detectron2's sizes of images, and the paper's anchors."""

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge

from focal_det.assigners.assignment import pairwise_iou
from focal_det.modeling.anchors import cell_anchors, grid_anchors
from focal_det.preflight.anchor_fit import AnchorGrid, AnchorSetup, best_ious, resized

pytestmark = pytest.mark.detectron2

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


@pytest.mark.parametrize(("shorter", "longest"), [(800, 1333), (240, 1333), (600, 601)])
def test_sizes_are_those_of_detectron2s_resizing(shorter, longest):
    sizes = np.random.default_rng(0).integers(30, 3000, (200, 2))
    theirs = [ResizeShortestEdge.get_output_shape(h, w, shorter, longest)[::-1] for w, h in sizes.tolist()]
    found = resized(sizes.astype(float), shorter, longest)
    assert np.abs(found - theirs).max() <= 1  # where a side falls on a half, rounding may differ
    assert (found == theirs).mean() > 0.98


def test_the_papers_anchors_are_those_of_the_default_configuration():
    setup = AnchorSetup.of_paper()
    assert setup.grid.strides == list(STRIDES)
    for found, base in zip(setup.grid.cells, (32, 64, 128, 256, 512), strict=True):
        np.testing.assert_allclose(found, cell_anchors(base, 3, [0.5, 1.0, 2.0]).numpy(), rtol=1e-6)
