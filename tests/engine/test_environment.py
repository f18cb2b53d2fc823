"""Version and commit of the code."""

import shutil
import subprocess

import pytest

from focal_det import __version__
from focal_det.engine.environment import commit, source_version


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    """A package in a repository of its own, committed."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "all")
    return package


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")


@needs_git
def test_a_checkout_has_its_commit_and_says_if_it_was_changed(checkout):
    assert source_version(checkout) == f"{__version__}, commit {commit(checkout)}"
    (checkout / "__init__.py").write_text("x = 1\n")
    assert source_version(checkout).endswith(", modified")


@needs_git
def test_an_environment_inside_somebody_elses_checkout_is_none(checkout):
    installed = checkout.parent / "venv" / "focal_det"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert source_version(installed) == f"{__version__}, not a git checkout"


def test_without_git_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_version(tmp_path) == f"{__version__}, not a git checkout"
