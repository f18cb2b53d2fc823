"""Seeds every test, and sees to what this machine lacks: without Detectron2 the tests that need it are left out."""

import gc
import importlib.util
import logging
import os
import random

# One of several processes, which are as many as there are cores; and processes are forked from it, which would wait for
# OpenMP's threads for ever.
os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from source_tree import needs_detectron2

# Autograd starts its threads at the first backward pass: none on a processor, but one if torch.compile came before it,
# and then no forked rank could train. So it comes first, whatever tests a process is given.
torch.zeros(1, requires_grad=True).sum().backward()

# A forked child never collects what was garbage here: a store or a group would wait there for threads that only this
# process has, for ever or with std::terminate.
os.register_at_fork(before=gc.freeze, after_in_parent=gc.unfreeze)

# The same random inputs in every run, however slow the machine is: a failure is then a change's and not chance's.
settings.register_profile("suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None
REQUIRED = os.environ.get("FOCAL_DET_REQUIRE_DETECTRON2") == "1"
DESELECTED = pytest.StashKey[int]()

# Fixtures of the tests that train: a tiny configuration, runs of the command line, forked ranks.
pytest_plugins = ["time_limit", "made_once", "recorded_graphs"]
if HAS_DETECTRON2:
    pytest_plugins += ["training_fixtures", "rank_fixtures", "export_fixtures"]
    pytest_plugins += ["preflight_fixtures", "reproduce_fixtures"]


def is_left_out(path):
    return not HAS_DETECTRON2 and path.suffix == ".py" and needs_detectron2(path.read_text(encoding="utf-8"))


def pytest_configure(config):
    if REQUIRED and not HAS_DETECTRON2:
        pytest.exit("FOCAL_DET_REQUIRE_DETECTRON2=1, but Detectron2 cannot be imported; run `make setup`", returncode=1)


def pytest_ignore_collect(collection_path):
    return True if is_left_out(collection_path) else None


def pytest_collection_modifyitems(config, items):
    """Without a GPU the kernels' tests run in the interpreter's process alone: see losses/test_triton_loss.py."""
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return
    left_to_it = [item for item in items if item.path.name == "test_triton_loss.py" and "device" in item.fixturenames]
    config.hook.pytest_deselected(items=left_to_it)
    items[:] = [item for item in items if item not in set(left_to_it)]
    if hasattr(config, "workeroutput"):  # a worker's deselected tests are in nobody's summary
        config.workeroutput["deselected"] = len(left_to_it)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    node.config.stash[DESELECTED] = getattr(node, "workeroutput", {}).get("deselected", 0)  # the same in each worker


def pytest_terminal_summary(terminalreporter):
    if count := terminalreporter.config.stash.get(DESELECTED, 0):
        terminalreporter.line(f"{count} deselected: the tests of Triton's kernels, for the interpreter's process alone")
    if not HAS_DETECTRON2:
        files = sorted(filter(is_left_out, (terminalreporter.config.rootpath / "tests").rglob("test_*.py")))
        terminalreporter.section("Detectron2 is missing")
        terminalreporter.line(f"Left out {len(files)} files of tests that need it: {', '.join(f.name for f in files)}.")
        terminalreporter.line("`make setup DETECTRON2=<wheel or checkout>` installs it; then run the tests again.")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


OBJECT = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>{}</object>"
)


@pytest.fixture
def write_voc(tmp_path):
    """Writes a Pascal VOC folder of grey images of 100 x 80 px."""

    def write(annotations, folder="voc", **splits):
        """annotations: by image, objects (class, xmin, ymin, xmax, ymax[, more XML]); splits: their images."""
        folder = tmp_path / folder
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (folder / part).mkdir(parents=True)
        for name, objects in annotations.items():
            body = "".join(OBJECT.format(*thing[:5], "".join(thing[5:])) for thing in objects)
            size = "<size><width>100</width><height>80</height><depth>3</depth></size>"
            (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{body}</annotation>")
            cv2.imwrite(str(folder / "JPEGImages" / f"{name}.jpg"), np.full((80, 100, 3), 128, np.uint8))
        for split, names in splits.items():
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        return folder

    return write


@pytest.fixture
def lines():
    """Return what the package logs, whoever has set up its loggers."""
    kept = []
    handler = logging.Handler()
    handler.emit = lambda record: kept.append(record.getMessage())
    logger = logging.getLogger("focal_det")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield kept
    logger.removeHandler(handler)
    logger.setLevel(level)
