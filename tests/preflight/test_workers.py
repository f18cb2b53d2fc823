"""Cores and shared memory of the loaders' workers: a warning where they do not suffice, and none where they do."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from focal_det import environment
from focal_det.data.statistics import Objects, SetStatistics
from focal_det.preflight import workers
from focal_det.preflight.datasets import DataSets, DescribedSet
from focal_det.preflight.options import TrainOptions
from focal_det.preflight.workers import bytes_ahead, check_workers

pytestmark = pytest.mark.detectron2

NO_DATA = DataSets((), (), [], {})


@pytest.fixture
def cfg(tiny_cfg):
    sizes = ("INPUT.MIN_SIZE_TRAIN", "(640, 800)", "INPUT.MAX_SIZE_TRAIN", "1333")
    sizes += ("INPUT.MIN_SIZE_TEST", "800", "INPUT.MAX_SIZE_TEST", "1333")
    return lambda *words: tiny_cfg(*sizes, "DATALOADER.NUM_WORKERS", "4", "SOLVER.IMS_PER_BATCH", "16", *words)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Returns a function that pretends a machine's cores and bytes of shared memory."""

    def be(cores, memory):
        monkeypatch.setattr(environment, "num_cores", lambda: cores)
        monkeypatch.setattr(workers, "_SHARED_MEMORY", tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=memory))

    return be


def test_images_ahead_are_those_of_the_training_and_of_an_evaluation(cfg):
    # 4 workers with 2 images each; and the batch of 2, or the one image of an evaluation; 800 x 1333 pixels
    image = 3 * 800 * 1333
    assert bytes_ahead(TrainOptions(num_gpus=8), cfg(), NO_DATA) == (8 + 2 + 8 + 1) * image
    assert bytes_ahead(TrainOptions(num_gpus=8, eval_only=True), cfg(), NO_DATA) == (8 + 1) * image
    # 16 images in one process: 8 for each worker; no image is longer than twice its height
    wide = cfg("INPUT.MAX_SIZE_TRAIN", "100000")
    assert bytes_ahead(TrainOptions(), wide, NO_DATA) == (32 + 16) * 3 * 800 * 1600 + 9 * image


def test_images_that_are_evaluated_in_tiles_are_read_as_they_are(cfg):
    def described(name, *sizes, trained_on=False):
        sizes = np.array(sizes, float).reshape(-1, 2)
        objects = Objects(np.tile([0.0, 0, 9, 9], (len(sizes), 1)), sizes, np.zeros(len(sizes)), np.ones(len(sizes)))
        content = SetStatistics(len(sizes), len(sizes), 0, ["a"], [1], objects)
        return DescribedSet(name, True, ["a"], content, is_trained_on=trained_on)

    sets = [described("c", (9000, 9000), trained_on=True), described("a", (4000, 3000), (5000, 300)), described("b")]
    data = DataSets(("c",), ("a", "b"), [*sets, DescribedSet("d", True, remark="a stream")], {})
    tiled = cfg("MODEL.FOCAL_DET.TILES.SIZE", "640")
    assert bytes_ahead(TrainOptions(num_gpus=8), tiled, data) == (8 + 2) * 3 * 800 * 1333 + 9 * 3 * 4000 * 3000
    assert bytes_ahead(TrainOptions(num_gpus=8), tiled, NO_DATA) == (8 + 2) * 3 * 800 * 1333
    assert bytes_ahead(TrainOptions(num_gpus=8), cfg(), data) == (8 + 2 + 9) * 3 * 800 * 1333


def test_a_container_with_64_mb_is_told_what_to_do(cfg, machine):
    machine(64, 64 * 2**20)
    (warning,) = check_workers(TrainOptions(num_gpus=8), cfg(), NO_DATA).warnings
    assert "8 processes on this machine with 4 loader workers each may hold 486 MB of images" in warning
    assert "which has 67 MB free" in warning
    assert "--ipc=host or --shm-size=512m" in warning
    machine(64, 512 * 2**20)
    assert check_workers(TrainOptions(num_gpus=8), cfg(), NO_DATA).warnings == []


@pytest.mark.parametrize(
    ("cores", "device", "said"),
    [
        (40, "cuda", []),
        (39, "cuda", ["8 processes on this machine with 4 loader workers each, and 4.88 processor cores for each"]),
        (
            8,
            "cuda",
            ["and 1 processor cores for each process: a GPU may wait for its images. Give each 5 (srun --cpus"],
        ),
        (1, "cpu", []),
    ],
)
def test_fewer_cores_than_workers_are_said_where_a_gpu_would_wait(cfg, machine, cores, device, said):
    machine(cores, 2**40)
    found = check_workers(TrainOptions(num_gpus=8), cfg("MODEL.DEVICE", device), NO_DATA)
    assert found.errors == []
    assert len(found.warnings) == len(said)
    assert all(text in warning for text, warning in zip(said, found.warnings, strict=True))


def test_a_task_of_srun_with_cores_of_its_own_is_content(cfg, machine, monkeypatch):
    machine(5, 2**40)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "40")
    assert check_workers(TrainOptions(num_gpus=8), cfg("MODEL.DEVICE", "cuda"), NO_DATA).warnings == []


def test_without_workers_nothing_is_needed(cfg, machine):
    machine(1, 0)
    nothing = cfg("MODEL.DEVICE", "cuda", "DATALOADER.NUM_WORKERS", "0")
    assert check_workers(TrainOptions(num_gpus=8), nothing, NO_DATA).warnings == []
