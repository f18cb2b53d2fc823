"""Fixtures of the tests that need Detectron2: a tiny configuration, random batches, runs of the command line."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import ResNet
from detectron2.structures import Boxes, Instances
from forked import Prepared

import focal_det.plugin  # noqa: F401
from focal_det.config import plugins
from focal_det.config.load import load_config
from focal_det.data.catalog import prepare_shapes, register_datasets
from focal_det.registries import AUGMENTATION_REGISTRY, CONFIG_REGISTRY, DENSE_LOSS_REGISTRY, EVENT_WRITER_REGISTRY

ROOT = Path(__file__).parents[1]

# The smallest detector that has every part: R-18, 16 channels, one convolution in each subnet.
TINY = [
    *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE_AT", "0"),
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.NORM", "GN"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.RETINANET.NUM_CLASSES", "3"),
]
# A backbone whose step takes a quarter of R-18's, which cannot have fewer channels, and its checkpoint a third. Group
# norm allows no fewer.
NARROW = [
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.STEM_OUT_CHANNELS", "32", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "32", "MODEL.RESNETS.NORM", "GN"),
]


def make_shallow(patch):
    """Let each stage of a ResNet have one block, in this process and its forks: a third of the layers to run and save.

    Args:
        patch: what undoes it, a pytest.MonkeyPatch.
    """
    make_stage = ResNet.make_stage

    def make_one(*, num_blocks, stride_per_block, **options):
        return make_stage(num_blocks=1, stride_per_block=stride_per_block[:1], **options)

    patch.setattr(ResNet, "make_stage", staticmethod(make_one))


@pytest.fixture
def few_layers(monkeypatch):
    """For the test `make_shallow`."""
    make_shallow(monkeypatch)


@pytest.fixture(autouse=True)
def _plugins_forgotten(monkeypatch, tmp_path_factory):
    """What a test imports as a plug-in would be part of every later run of this process."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_named", set())
    for registry in (AUGMENTATION_REGISTRY, CONFIG_REGISTRY, DENSE_LOSS_REGISTRY, EVENT_WRITER_REGISTRY):
        monkeypatch.setattr(registry, "_obj_map", {**registry._obj_map})
    before, temporary = set(sys.modules), str(tmp_path_factory.getbasetemp())
    yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(temporary):
            del sys.modules[name]


@pytest.fixture(scope="session")
def tiny_cfg(tmp_path_factory):
    """Return a function that loads a base file, made tiny by a second one, with overrides."""
    tiny = tmp_path_factory.mktemp("configuration") / "tiny.yaml"
    cfg = CfgNode()
    for key, value in zip(TINY[::2], TINY[1::2], strict=True):
        *path, leaf = key.split(".")
        node = cfg
        for part in path:
            node = node.setdefault(part, CfgNode())
        node[leaf] = value
    tiny.write_text(cfg.dump())

    def make(*overrides, base="Base-RetinaNet-FPN.yaml"):
        return load_config([ROOT / "configs" / base, tiny], overrides)

    return make


def random_batch(objects_per_image, *, size=(96, 128), num_classes=3, seed=0):
    """Return a batch as the training loader yields it, with this many random objects in each image.

    Args:
        objects_per_image: for each image the number of its objects.
        size: height and width of all images, in pixels.
    """
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
    """Return `random_batch`."""
    return random_batch


@pytest.fixture
def val_shapes(tmp_path, monkeypatch):
    """Register a test set of 5 generated images; return its name."""
    name = "shapes_val_5_64px"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    prepare_shapes([name])
    register_datasets([name], [])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def wait_for():
    """Return a function that waits until a process has written a file, has ended, or has used up its time."""

    def wait(path, process, seconds=200):
        deadline = time.monotonic() + seconds
        while not path.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def prepared():
    """Return the prepared process, which has imported what train_net.py and focal-det need, and forks runs of them."""
    process = Prepared()
    yield process
    process.close()


@pytest.fixture
def train_net(prepared):
    """Return a function that runs train_net.py in a fork; test_training.py covers what needs a process of its own."""
    return prepared.run
