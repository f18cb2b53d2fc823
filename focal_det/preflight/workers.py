"""What the workers of the loaders need of this machine: processor cores, and shared memory for their images."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from detectron2.config import CfgNode

from ..data.train_loader import images_ahead
from ..environment import cores_of_each
from ..errors import Findings, counted
from .datasets import DataSets
from .options import TrainOptions

_SHARED_MEMORY = Path("/dev/shm")
_LONGEST_SHAPE = 2  # longer over shorter side; few images are longer, and what is estimated need not hold for them


def check_workers(options: TrainOptions, cfg: CfgNode, data: DataSets) -> Findings:
    """Warn where the workers have too few cores to feed a GPU, or too little shared memory."""
    workers = cfg.DATALOADER.NUM_WORKERS
    if workers == 0:
        return Findings()
    with_workers = f"with {counted(workers, 'loader worker')}"
    several = f"{options.num_gpus} processes on this machine {with_workers} each"
    started = several if options.num_gpus > 1 else f"a process {with_workers}"
    return Findings(warnings=[*_core_warning(options, cfg, started), *_memory_warning(options, cfg, data, started)])


def _core_warning(options: TrainOptions, cfg: CfgNode, started: str) -> list[str]:
    """Warn of fewer cores than workers and processes; on a processor the model takes all that there are anyway."""
    workers, cores = cfg.DATALOADER.NUM_WORKERS, cores_of_each(options.num_gpus)
    if not cfg.MODEL.DEVICE.startswith("cuda") or cores >= workers + 1:
        return []
    return [
        f"{started}, and {cores:.3g} processor cores for each process: a GPU may wait for its images. Give each "
        f"{workers + 1} (srun --cpus-per-task {workers + 1}), or lower DATALOADER.NUM_WORKERS"
    ]


def _memory_warning(options: TrainOptions, cfg: CfgNode, data: DataSets, started: str) -> list[str]:
    if not _SHARED_MEMORY.is_dir():
        return []
    free, needed = shutil.disk_usage(_SHARED_MEMORY).free, options.num_gpus * bytes_ahead(options, cfg, data)
    if needed <= free:
        return []
    size = 2 ** math.ceil(math.log2(needed / 2**20))
    return [
        f"{started} may hold {needed / 1e6:.0f} MB of images in {_SHARED_MEMORY}, which has {free / 1e6:.0f} MB free: "
        "a worker that finds it full is killed by a bus error. Start the container with --ipc=host or "
        f"--shm-size={size}m, or lower DATALOADER.NUM_WORKERS"
    ]


def bytes_ahead(options: TrainOptions, cfg: CfgNode, data: DataSets) -> int:
    """Estimate the images that the workers of one process hold ready: three bytes for each pixel of the largest.

    Those of the training stay while a test set is evaluated, in tiles from images that are not resized. Where others
    are not resized, they are not counted.
    """
    workers = cfg.DATALOADER.NUM_WORKERS
    number = 2 * workers + 1  # PyTorch's, and the one in use
    of_test = _image_bytes(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    if cfg.MODEL.FOCAL_DET.TILES.SIZE:
        tested = [one.content.objects.sizes for one in data.sets if one.content and not one.is_trained_on]
        of_test = max((int(3 * sizes.prod(axis=1).max(initial=0)) for sizes in tested), default=0)
    estimate = number * of_test
    if options.training:
        batch_size = max(1, cfg.SOLVER.IMS_PER_BATCH // options.world_size)
        number = workers * images_ahead(batch_size, workers) + batch_size
        estimate += number * _image_bytes(max(cfg.INPUT.MIN_SIZE_TRAIN, default=0), cfg.INPUT.MAX_SIZE_TRAIN)
    return estimate


def _image_bytes(shorter: int, longest: int) -> int:
    return 3 * shorter * min(longest, _LONGEST_SHAPE * shorter)
