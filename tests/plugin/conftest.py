"""What the tests on Detectron2 share: a tiny configuration, random batches, runs of the command line."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from forked import Prepared

import focal_det.plugin  # noqa: F401
from focal_det.engine.config_file import load_config

ROOT = Path(__file__).parents[2]

# The smallest detector that is still one: R-18, 16 channels, one convolution in each subnet.
TINY = [
    *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE_AT", "0"),
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.NORM", "GN"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.RETINANET.NUM_CLASSES", "3"),
]


@pytest.fixture(scope="session")
def tiny_cfg():
    """Makes the tiny configuration from a base file and overrides."""

    def make(*overrides, base="Base-RetinaNet-FPN.yaml"):
        return load_config(ROOT / "configs" / base, [*TINY, *overrides])

    return make


def random_batch(objects_per_image, *, size=(96, 128), num_classes=3, seed=0):
    """Images with so many random objects each, as the training loader gives them."""
    rng = np.random.default_rng(seed)
    height, width = size
    batch = []
    for count in objects_per_image:
        corners = rng.uniform(0, 0.6, (count, 2)) * (width, height)
        sides = rng.uniform(0.1, 0.4, (count, 2)) * (width, height)
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.tensor(np.hstack([corners, corners + sides]), dtype=torch.float32))
        instances.gt_classes = torch.tensor(rng.integers(num_classes, size=count), dtype=torch.int64)
        image = torch.tensor(rng.integers(0, 256, (3, height, width)), dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


@pytest.fixture(scope="session")
def batch_of():
    return random_batch


@pytest.fixture
def wait_for():
    """Waits until a process has written a file, or has ended, or took too long."""

    def wait(path, process, seconds=200):
        deadline = time.monotonic() + seconds
        while not path.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def prepared():
    """Forks runs of train_net.py and focal-det from a process that has imported all they need."""
    process = Prepared()
    yield process
    process.close()


@pytest.fixture
def train_net(prepared):
    """Runs train_net.py; what a true process has beyond a forked one, `test_training.py` holds."""
    return prepared.run
