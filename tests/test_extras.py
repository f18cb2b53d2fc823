"""What is missing is named with the command that installs it here: in a checkout, or where a wheel was installed."""

import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

from focal_det import extras

ROOT = Path(__file__).parents[1]


@pytest.fixture
def of_a_wheel(monkeypatch):
    monkeypatch.setattr(extras, "is_checkout", lambda: False)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.0")


def missing(module):
    return ModuleNotFoundError(f"No module named {module!r}", name=module)


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("torch", "train"),
        ("onnxscript", "export"),
        ("shtab", "completion"),
        ("lvis", "lvis"),
        ("supervision", "results"),
        ("wandb", "wandb"),
    ],
)
def test_an_extra_is_installed_by_name(of_a_wheel, module, extra):
    assert extras.install_command(module) == f"{sys.executable} -m pip install 'focal_det[{extra}]'"
    assert extras.missing_message(missing(module)).startswith(f"No module named '{module}', which this needs; install")


def test_an_index_is_never_asked_for_what_is_not_installed(monkeypatch):
    def not_found(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_found)
    assert extras.install_command("torch") == "make setup"


def test_detectron2_is_only_named_with_where_it_comes_from(of_a_wheel):
    both, one = extras.training_message(missing("torch")), extras.training_message(missing("detectron2.modeling"))
    assert re.search(r"pip install 'focal_det\[train\]'; then Detectron2, .*: .* 'detectron2 @ git\+https://", both)
    assert "[train]" not in one
    assert " --no-deps --no-build-isolation 'detectron2 @ git+https://" in one


def test_of_a_module_that_is_broken_the_doctor_knows_more(of_a_wheel):
    no_desktop = ImportError("libGL.so.1: cannot open shared object file", name="cv2")
    for error in (no_desktop, missing("cv2"), ImportError("libcudart.so.13: cannot open", name="torch")):
        assert extras.missing_message(error) == f"{error}; `focal-det doctor` names what fixes it"
    for error in (missing("focal_det.nothing"), ImportError("says all by itself")):
        assert extras.missing_message(error) == str(error)


def test_repository_and_commit_are_those_of_make_setup():
    text = (ROOT / "tools" / "setup.sh").read_text()
    repository, commit = (re.search(rf"^{name}=(.+)$", text, re.MULTILINE)[1] for name in ("repository", "commit"))
    assert f"detectron2 @ git+{repository}@{commit}" == extras.DETECTRON2
