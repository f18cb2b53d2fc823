"""Version and commit of the code, the hardware by its name, and which GPU a process gets."""

import mmap
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


@pytest.mark.parametrize(
    ("on_node", "each"),
    [
        (None, 1.0),  # no SLURM: all of the machine share the cores that one sees
        ("8", 1.0),  # tasks that are not bound see all cores of the job
        ("64", 8),  # a task that is bound sees its own
    ],
)
def test_cores_are_shared_unless_slurm_has_given_each_task_its_own(monkeypatch, on_node, each):
    monkeypatch.setattr(environment, "num_cores", lambda: 8)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    if on_node:
        monkeypatch.setenv("SLURM_CPUS_ON_NODE", on_node)
    assert environment.cores_of_each(8) == each


class Driver:
    """A driver of CUDA with one GPU."""

    def __init__(self, refused=""):
        self.refused = refused

    def __getattr__(self, name):
        def call(*arguments):
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 6}[arguments[1]]
            return int(name == self.refused)

        return call


@pytest.mark.parametrize(
    ("refused", "capability"),
    [("", (8, 6)), ("cuInit", None), ("cuDeviceGet", None), ("cuDeviceGetAttribute", None)],
)
def test_the_driver_is_asked_for_the_capability(monkeypatch, refused, capability):
    monkeypatch.setattr(environment.ctypes, "CDLL", {"libcuda.so.1": Driver(refused)}.__getitem__)
    assert environment.compute_capability() == capability


def test_without_a_driver_the_capability_is_not_known(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(environment.ctypes, "CDLL", missing)
    assert environment.compute_capability() is None


@pytest.mark.skipif(not torch.cuda.is_available() or torch.version.hip is not None, reason="needs an NVIDIA GPU")
def test_the_driver_says_what_pytorch_says():
    assert environment.compute_capability() == torch.cuda.get_device_capability(0)


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


def test_free_memory_is_the_machines_or_what_its_group_may_take(monkeypatch, tmp_path):
    files = {"/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    5000 kB", "memory.max": "max", "memory.current": "1"}

    class InTests(type(tmp_path)):
        def is_file(self):
            return self.name in files or str(self) in files

        def read_text(self):
            return files.get(self.name) or files[str(self)]

    monkeypatch.setattr(environment, "Path", InTests)
    assert environment.free_bytes_of_machine() == 5000 * 1024
    files["memory.max"], files["memory.current"] = "3000000\n", "1000000\n"
    files["memory.stat"] = "anon 300000\ninactive_file 400000\nactive_file 5\n"
    assert environment.free_bytes_of_machine() == 2_400_000  # of what is used, cached files are given up
    files.clear()
    assert environment.free_bytes_of_machine() is None  # no Linux
    assert environment.own_bytes() == 0


def test_this_process_knows_what_it_holds():
    held = environment.own_bytes()
    assert 10e6 < held < 100e9
    block = mmap.mmap(-1, 50_000_000)  # memory of its own, where an array may get some that was freed
    block.write(b"1" * len(block))
    assert environment.own_bytes() - held > 0.5 * len(block)


def test_the_fullest_gpu_counts_and_the_driver_is_asked_for_those_that_are_visible(monkeypatch):
    asked = []
    monkeypatch.setattr(environment, "output_of", lambda *words: asked.append(words) or "5000\n3000\n1000")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment.free_bytes_of_gpus(2) == 3000 * 2**20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert environment.free_bytes_of_gpus(3) == 1000 * 2**20
    assert [words[-2:] == ("-i", "4,5,6") for words in asked] == [False, True]
    monkeypatch.setattr(environment, "output_of", lambda *words: "")
    assert environment.free_bytes_of_gpus(1) is None
