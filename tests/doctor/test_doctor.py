"""focal-det doctor: what it finds, and that it finds it whatever is missing."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from focal_det.cli import doctor as doctor_command
from focal_det.cli.main import main
from focal_det.doctor import core as diagnosis_core
from focal_det.doctor import pytorch as diagnosis_torch
from focal_det.doctor import system as diagnosis

ROOT = Path(__file__).parents[2]

BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Blocker())
from focal_det.cli.main import main
sys.exit(main(["doctor", "--json"]))
"""


def doctor_without(*blocked):
    """Exit code and findings by name, of a process where some packages cannot be imported."""
    code = BLOCK.format(blocked=blocked)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    answer = json.loads(done.stdout)
    assert answer["training_works"] is (done.returncode == 0)
    return done.returncode, {(found["group"], found["name"]): found for found in answer["findings"]}


def test_without_detectron2_it_says_so_and_how_to_fix_it():
    code, found = doctor_without("detectron2")
    assert code == 1
    detectron2 = found["Detectron2", "detectron2"]
    assert detectron2["state"] == "broken"
    assert detectron2["fix"].startswith("make setup DETECTRON2=")
    assert found["PyTorch", "torch"]["state"] == "ok"


def test_without_pytorch_it_still_looks_at_everything_else():
    code, found = doctor_without("torch", "torchvision", "detectron2", "numpy", "PIL", "yaml", "tqdm", "cv2")
    assert code == 1
    assert found["PyTorch", "torch"]["state"] == "broken"
    assert {("system", "Python"), ("packages", "numpy"), ("devices", "processor"), ("folders", "data sets")} <= set(
        found
    )
    assert not any(group == "speed options" for group, _ in found)


@pytest.fixture
def opencv(monkeypatch):
    """Return a function that looks at OpenCV where these packages of it are installed, and the import raises."""

    def look(*builds, error=None):
        monkeypatch.setattr(diagnosis_core, "installed_version", lambda name: "5.0" if name in builds else None)
        if error is not None:

            def fail(name):
                raise error

            monkeypatch.setattr(diagnosis_core.importlib, "import_module", fail)
        return diagnosis_core._opencv()

    return look


@pytest.mark.parametrize("build", ["opencv-python", "opencv-python-headless"])
def test_either_opencv_is_accepted(opencv, requires, monkeypatch, build):
    assert (opencv(build).state, opencv(build).fix) == ("ok", "")
    requires("opencv-python")
    monkeypatch.setattr(diagnosis, "installed_version", lambda name: "5.0" if name == build else None)
    assert by_name(diagnosis.packages())["opencv-python"].state == "ok"


def test_two_opencvs_at_once_are_named_with_the_command_that_leaves_one(opencv):
    found = opencv("opencv-python", "opencv-python-headless")
    assert found.state == "note"
    assert "opencv-python and opencv-python-headless are installed at once" in found.value
    pip = f"{sys.executable} -m pip"
    both = "opencv-python opencv-python-headless"
    assert found.fix == f"{pip} uninstall -y {both} && {pip} install --no-deps opencv-python"
    broken = opencv("opencv-python", "opencv-python-headless", error=ImportError("no module cv2.cv2"))
    assert (broken.state, broken.fix) == ("broken", found.fix)


def test_an_opencv_that_cannot_be_imported_is_broken(opencv):
    missing = opencv(error=ModuleNotFoundError("No module named 'cv2'"))
    assert (missing.state, missing.fix.endswith("--no-deps opencv-python")) == ("broken", True)
    pip = f"{sys.executable} -m pip"
    no_desktop = opencv("opencv-python", error=ImportError("libGL.so.1: cannot open shared object file"))
    assert no_desktop.state == "broken"
    assert no_desktop.fix == f"{pip} uninstall -y opencv-python && {pip} install --no-deps opencv-python-headless"


def test_where_pytorch_was_never_installed_it_is_absent_and_not_broken(monkeypatch, requires):
    requires("numpy", 'fvcore; extra == "train"')
    for module in (diagnosis, diagnosis_torch):
        monkeypatch.setattr(module, "has_training", lambda: False)
    (torch_finding,), (detectron2,) = diagnosis_torch.pytorch(), diagnosis_torch.detectron2()
    assert [finding.state for finding in (torch_finding, detectron2)] == ["absent", "absent"]
    assert {"fvcore", "setuptools"}.isdisjoint(by_name(diagnosis.packages()))


def test_a_package_without_configurations_is_broken(monkeypatch):
    monkeypatch.setattr(diagnosis, "packaged_configs", list)
    assert by_name(diagnosis.system())["configurations"].state == "broken"


def by_name(findings):
    return {finding.name: finding for finding in findings}


@pytest.fixture
def requires(monkeypatch):
    """Lets focal_det require what is given, whatever is installed."""

    def set_to(*texts):
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: list(texts))

    return set_to


def test_a_package_outside_its_range_or_missing_is_broken_and_the_command_fixes_it(requires):
    requires("numpy<1.0", "pytest>=1", "no-such-package>=2", 'ruff; extra == "dev"', 'old; python_version < "3"')
    found = by_name(diagnosis.packages())
    assert found["numpy"].state == "broken"
    assert found["numpy"].value.endswith("; needs <1.0")
    assert found["numpy"].fix == f'{sys.executable} -m pip install "numpy<1.0"'
    assert found["pytest"].state == "ok"
    assert found["no-such-package"][2:4] == ("missing; needs >=2", "broken")
    assert not {"ruff", "old"} & set(found)


def test_packages_for_training_are_a_group_of_their_own(requires):
    requires("numpy", 'no-such-package; extra == "train"', 'pytest; extra == "export"')
    found = by_name(diagnosis.packages())
    assert found["numpy"].group == "packages"
    assert (found["no-such-package"].group, found["no-such-package"].state) == ("packages for training", "broken")
    assert "pytest" not in found


def test_versions_are_compared_with_the_tested_ones(requires, monkeypatch):
    requires("numpy", "pytest")
    monkeypatch.setattr(diagnosis, "_tested_versions", lambda: {"numpy": "0.1"})
    found = by_name(diagnosis.packages())
    assert found["numpy"].value.endswith(", in the supported range (any); tested 0.1")
    assert found["pytest"].value == importlib.metadata.version("pytest")


def test_tested_versions_are_those_of_the_constraints():
    assert diagnosis._tested_versions()["fvcore"] == "0.1.5.post20221221"


def test_a_python_outside_the_range_is_broken(monkeypatch):
    monkeypatch.setattr(diagnosis.platform, "python_version", lambda: "3.9.1")
    assert by_name(diagnosis.system())["Python"].state == "broken"


def test_setuptools_without_pkg_resources_is_a_note(monkeypatch):
    monkeypatch.setattr(diagnosis.importlib.util, "find_spec", lambda name: None)
    found = diagnosis._setuptools()
    assert (found.state, found.fix.endswith('"setuptools<81"')) == ("note", True)


def test_a_folder_that_cannot_be_written_is_a_note(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "file"))
    (found,) = diagnosis.folders()
    assert (found.state, found.fix.startswith("export DETECTRON2_DATASETS=")) == ("note", True)


def test_compile_needs_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = by_name(diagnosis_torch.speed_options())
    assert found["COMPILE"].state == "note"
    assert "no: torch.compile needs a C++ compiler" in found["COMPILE"].value
    assert found["CHANNELS_LAST"].value == "works here"


@pytest.mark.parametrize(
    ("hidden", "words", "fix"),
    [
        ("", "GPUs are hidden by CUDA_VISIBLE_DEVICES=", "unset CUDA_VISIBLE_DEVICES"),
        (None, "cannot use", "--force-re"),
    ],
)
def test_a_gpu_that_pytorch_does_not_see_is_a_note(monkeypatch, hidden, words, fix):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(diagnosis_torch, "output_of", lambda *command: "550.54")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    driver = by_name(diagnosis_torch.pytorch())["NVIDIA driver"]
    assert driver.state == "note"
    assert words in driver.value
    assert fix in driver.fix


def test_operators_of_another_pytorch_are_broken(monkeypatch):
    def fail(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", fail)
    found = by_name(diagnosis_torch.pytorch())["torchvision"]
    assert found.state == "broken"
    assert "torchvision::nms does not exist" in found.value


def test_the_table_names_what_is_broken_and_how_to_fix_it(monkeypatch, capsys, requires):
    requires("no-such-package")
    for name in ("exported_models", "pytorch", "detectron2", "devices", "speed_options", "folders"):
        monkeypatch.setattr(doctor_command, name, lambda: [])
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "  [BROKEN] no-such-package" in out
    assert f'fix: {sys.executable} -m pip install "no-such-package"' in out
    assert out.endswith('Training does not work here: no-such-package. See "fix" above.\n')


EXPORTED = "Exported models run here (--model)."


@pytest.mark.parametrize(
    ("group", "state", "exported", "last_line"),
    [
        ("PyTorch", "broken", True, f"{EXPORTED} Training does not work here: x."),
        ("packages for training", "absent", True, f"{EXPORTED} Training does not work here: x."),
        ("exported models", "broken", False, "Training does not work here: x."),
        ("packages", "broken", False, "Training does not work here: x."),
        ("exported models", "note", True, "Training works here. 1 note above."),
    ],
)
def test_it_says_whether_exported_models_run(monkeypatch, capsys, group, state, exported, last_line):
    for name in (
        "system",
        "packages",
        "exported_models",
        "pytorch",
        "detectron2",
        "devices",
        "speed_options",
        "folders",
    ):
        monkeypatch.setattr(doctor_command, name, list)
    monkeypatch.setattr(doctor_command, "system", lambda: [diagnosis.Finding(group, "x", "value", state)])
    code = main(["doctor"])
    assert capsys.readouterr().out.splitlines()[-1].startswith(last_line)
    assert main(["doctor", "--json"]) == code == (0 if state == "note" else 1)
    answer = json.loads(capsys.readouterr().out)
    assert (answer["training_works"], answer["exported_models_work"]) == (code == 0, exported)
