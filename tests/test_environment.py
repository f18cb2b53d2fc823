"""Version and commit of the code, the hardware by its name, and which GPU a process gets."""

import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

from focal_det import __version__, environment
from focal_det.environment import commit, gpu_id, gpu_of, source_version
from focal_det.errors import InputError


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


def test_a_machine_is_its_processor_its_cores_and_the_gpus_that_are_used(monkeypatch):
    monkeypatch.setattr(environment, "processor", lambda: "Fast 9000")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(environment, "output_of", lambda *_: "Card 7\nCard 7")
    assert environment.whole_machine(0) == "Fast 9000, 8 cores, 1 thread"
    assert environment.whole_machine(2) == "Fast 9000, 8 cores, 1 thread, 2 x Card 7"
    monkeypatch.setattr(environment, "output_of", lambda *_: "")  # GPUs that do not tell their name
    assert environment.whole_machine(2) == "Fast 9000, 8 cores, 1 thread"


def test_each_process_its_gpu_or_the_one_that_it_sees():
    assert [gpu_of(rank, 4) for rank in range(4)] == [0, 1, 2, 3]
    assert [gpu_of(rank, 1) for rank in range(4)] == [0] * 4


def test_more_processes_than_gpus_are_refused():
    with pytest.raises(InputError, match="local rank 4 has no GPU, this machine shows 4: start at most 4"):
        gpu_of(4, 4)


def test_a_gpu_without_a_name_is_not_known(monkeypatch):
    seen = [SimpleNamespace(uuid="1-2"), SimpleNamespace()]
    monkeypatch.setattr(torch.cuda, "get_device_properties", seen.__getitem__)
    assert [gpu_id(0), gpu_id(1)] == ["1-2", ""]
