"""What is done after a step: the assignment is logged."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage

from focal_det.engine.hooks import LogAssignment

pytestmark = pytest.mark.detectron2


def test_assigned_anchors_are_logged_every_period():
    criterion = SimpleNamespace(num_assigned=torch.tensor([4, 8]))
    hook = LogAssignment(criterion, period=20)
    with EventStorage(0) as storage:
        for iteration in (18, 19):
            hook.trainer = SimpleNamespace(iter=iteration, storage=storage)
            hook.after_step()
            assert ("num_pos_anchors" in storage.latest()) == (iteration == 19)
    assert storage.latest()["num_pos_anchors"][0] == 6.0
