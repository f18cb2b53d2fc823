"""Without Detectron2 the mathematics and the inference work, the rest says what to do, and so do the tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from source_tree import Tree, needs_detectron2

ROOT = Path(__file__).parents[1]
# Python runs a file of this name as it starts: after it, Detectron2 is not to be found.
BLOCKER = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == "detectron2" else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


@pytest.fixture
def python(tmp_path):
    """Return a function that runs a Python without Detectron2."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)

    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "FOCAL_DET_REQUIRE_"))}

    def run(*args, **env):
        command, env = [sys.executable, *args], {**inherited, "PYTHONPATH": path, **env}
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)

    return run


def test_mathematics_and_inference_are_imported(python):
    tree = Tree.read(ROOT)
    names = [file.name for file in tree.package if "detectron2" not in tree.loaded_with([file.name])]
    rooms = ("losses", "heirs", "inference", "evaluation", "report", "doctor")
    needless = [file.name for file in tree.package if file.room in rooms]
    assert {*needless, "focal_det", "focal_det.modeling.criterion", "focal_det.modeling.decode"} <= set(names)
    done = python("-c", f"import importlib\nfor name in {names}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("missing", ["torch", "torchvision"])
@pytest.mark.parametrize("module", ["losses", "heirs.varifocal"])
def test_without_pytorch_too_the_losses_say_what_to_install(python, module, missing):
    done = python("-c", f"import sys; sys.modules['{missing}'] = None; import focal_det.{module}")
    assert done.returncode == 1
    assert "focal_det.losses needs PyTorch and torchvision, which cannot be imported here" in done.stderr


@pytest.mark.parametrize(
    "code",
    ["import focal_det.plugin", "import focal_det; assert 'Predictor' in focal_det.__all__; focal_det.Predictor"],
)
def test_the_plugin_and_the_predictor_say_what_to_do(python, code):
    done = python("-c", code)
    assert done.returncode == 1
    assert "Run `make setup`, with DETECTRON2=" in done.stderr


def test_train_net_without_it_is_bad_input_and_no_stack_trace(python):
    done = python("train_net.py")
    assert done.returncode == 2
    assert done.stderr.startswith("error: focal_det trains and detects through Detectron2")
    assert "Traceback" not in done.stderr


def test_the_suite_leaves_out_the_files_that_need_it_and_says_so_once(python):
    pytest.importorskip("xdist")
    left_out = [path for path in (ROOT / "tests").rglob("test_*.py") if needs_detectron2(path.read_text())]
    done = python("-m", "pytest", "-p", "no:cacheprovider", "-n", "1", "-k", "a_violation_is_seen")
    assert done.returncode == 0, done.stdout[-3000:]  # no file that was left in failed to be imported
    assert done.stdout.count(f"Left out {len(left_out)} files of tests that need it: ") == 1


def test_where_it_is_required_no_test_runs(python):
    done = python("-m", "pytest", "-p", "no:cacheprovider", __file__, FOCAL_DET_REQUIRE_DETECTRON2="1")
    assert done.returncode == 1
    assert "FOCAL_DET_REQUIRE_DETECTRON2=1, but Detectron2 cannot be imported; run `make setup`" in done.stderr
