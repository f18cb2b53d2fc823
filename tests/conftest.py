"""Seeds every test; leaves out tests/plugin, and says so, where Detectron2 is missing."""

import importlib.util
import os
import random

import numpy as np
import pytest
import torch

HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None
REQUIRED = os.environ.get("FOCAL_DET_REQUIRE_DETECTRON2") == "1"

collect_ignore = [] if HAS_DETECTRON2 else ["plugin"]


def pytest_configure(config):
    if REQUIRED and not HAS_DETECTRON2:
        pytest.exit("FOCAL_DET_REQUIRE_DETECTRON2=1, but Detectron2 cannot be imported; run `make setup`", returncode=1)


def pytest_collection_modifyitems(config, items):
    """Without a GPU the kernels' tests run in the interpreter's process alone: see losses/test_triton_loss.py."""
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return
    left_to_it = [item for item in items if item.path.name == "test_triton_loss.py" and "device" in item.fixturenames]
    config.hook.pytest_deselected(items=left_to_it)
    items[:] = [item for item in items if item not in set(left_to_it)]


def pytest_terminal_summary(terminalreporter):
    if not HAS_DETECTRON2:
        files = sorted((terminalreporter.config.rootpath / "tests" / "plugin").glob("test_*.py"))
        terminalreporter.section("Detectron2 is missing")
        terminalreporter.line(f"Left out {len(files)} files of tests that need it: {', '.join(f.name for f in files)}.")
        terminalreporter.line("`make setup DETECTRON2=<wheel or checkout>` installs it; then run the tests again.")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
