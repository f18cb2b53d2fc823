"""Training images by position: a step's images and their augmentation follow from the seed and the step alone.

So a training that resumes at any step sees what it would have seen, with any number of loader workers, and no state of
a sampler or a worker has to be saved. The order of the images is that of Detectron2's sampler.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.data.common import ToIterableDataset
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import TrainingError, first_line
from .augmentation import NAMES, own_steps, training_mapper
from .shared_records import SharedRecords, mapped_part, read_train_records

logger = logging.getLogger(__name__)
Record = dict[str, Any]
# What random numbers are for: the first part of a key, so that no two uses share numbers.
IMAGE, STEP, SAMPLER = 0, 1, 2
_TRIES = 10  # of an augmentation that may act on some images alone
_BOXES = np.array([[0.1, 0.2, 0.4, 0.7], [0.5, 0.3, 0.9, 0.8]])  # as shares of the image that it is tried on


def build_train_loader(cfg: CfgNode, mapper: Callable[[Record], Record] | None = None) -> Iterable[list[Record]]:
    """Build the loader of this process's share of every batch.

    Args:
        cfg: its data sets are registered; SEED is the run's, or negative for one that all processes draw together.
        mapper: from a data set's record to what the model takes; that of `training_mapper` if None. With
            MODEL.FOCAL_DET.TILES another one has to cut the tiles of `cut_records` itself, as `ImageMapper` does.

    Returns:
        A `TrainLoader`. For a registered data set that is a stream, Detectron2's own loader, with a warning, since a
        stream cannot start in its middle.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    # a mapper of the user's may read all of a record
    reduce = _unchanged if mapper else mapped_part(cfg)
    mapper = named_faults(mapper or training_mapper(cfg))
    # Detectron2's loader reads the records itself where it has to add proposals to them.
    records = None if cfg.MODEL.LOAD_PROPOSALS else read_train_records(cfg, reduce)
    # With the identity as mapper: the records are mapped later, by position.
    with _drawing_from(cfg.SEED):
        source = build_detection_train_loader(cfg, mapper=_unchanged, dataset=records)
    while not isinstance(source, ToIterableDataset):
        if not hasattr(source, "dataset"):
            logger.warning(
                f"{', '.join(cfg.DATASETS.TRAIN)} is a stream: a resumed run starts it anew, so it does not end with "
                "the same weights as an uninterrupted one"
            )
            return build_detection_train_loader(cfg, mapper=mapper)
        source = source.dataset
    return TrainLoader(
        records if isinstance(records, SharedRecords) else source.dataset,
        source.sampler,
        mapper,
        seed=cfg.SEED,
        batch_size=cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
        by_orientation=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        # A GPU copies from pinned memory without the processor.
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
    )


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """Let NumPy draw what follows from a seed alone, and continue afterwards as if nothing had been drawn.

    Detectron2's samplers of subsets and weights take no seed: they draw one, the same on all ranks, for the order of
    the images and for which ones are a subset. A resumed run has to draw the same.
    """
    state = np.random.get_state()
    np.random.seed(np.random.SeedSequence((SAMPLER, seed)).generate_state(4, np.uint32))
    try:
        yield
    finally:
        np.random.set_state(state)


class TrainLoader:
    """Batches from the step `start` on, without end; before each the random generators are seeded for its step.

    Args:
        records: of the images.
        sampler: Detectron2's, of this rank: every world-size-th position of a stream that all ranks share.
        mapper: from a record to what the model takes; may draw random numbers.
        seed: of the run, >= 0.
        batch_size: images of this rank in a step, >= 1.
        by_orientation: batches of only wide or only high images, as Detectron2 groups them; each rank groups its own,
            so the number of ranks then affects which images meet in a step.
        num_workers, pin_memory: as of PyTorch's `DataLoader`.
    """

    def __init__(
        self,
        records: Dataset[Record],
        sampler: Iterable[int],
        mapper: Callable[[Record], Record],
        *,
        seed: int,
        batch_size: int,
        by_orientation: bool,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.start = 0
        self.dataset = records
        self._seed = seed
        self._batch_size = batch_size
        self._order = _Order(records, sampler, batch_size, by_orientation)
        self._images: DataLoader[Record] = DataLoader(
            _MappedRecords(records, mapper, seed),
            batch_size=None,
            sampler=self._order,
            num_workers=num_workers,
            prefetch_factor=images_ahead(batch_size, num_workers) if num_workers else None,
            pin_memory=pin_memory,
            collate_fn=_unchanged,
        )

    def __iter__(self) -> Iterator[list[Record]]:
        self._order.skipped = self.start
        images = iter(self._images)
        for step in itertools.count(self.start):
            batch = list(itertools.islice(images, self._batch_size))
            set_random_numbers(STEP, self._seed, step, comm.get_rank())
            yield batch


class _Order(Sampler[tuple[int, int]]):
    """This rank's images in the order of its batches, each by its position in the stream of all ranks and its index."""

    def __init__(self, records: Any, indices: Iterable[int], batch_size: int, by_orientation: bool) -> None:
        self.skipped = 0  # batches
        self._indices = indices
        self._batch_size = batch_size
        shapes = ((records[i]["width"], records[i]["height"]) for i in range(len(records) if by_orientation else 0))
        self._is_wide = [width > height for width, height in shapes] or [True] * len(records)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        positions = itertools.count(comm.get_rank(), comm.get_world_size())
        waiting: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        done = 0
        for position, index in zip(positions, self._indices, strict=False):
            batch = waiting[self._is_wide[index]]
            batch.append((position, index))
            if len(batch) == self._batch_size:
                if done >= self.skipped:
                    yield from batch
                done += 1
                batch.clear()


class _MappedRecords(Dataset[Record]):
    """Images, each mapped with the random numbers of its position."""

    def __init__(self, records: Any, mapper: Callable[[Record], Record], seed: int) -> None:
        self._records = records
        self._mapper = mapper
        self._seed = seed

    def __getitem__(self, item: tuple[int, int]) -> Record:
        position, index = item
        set_random_numbers(IMAGE, self._seed, position)
        return self._mapper(self._records[index])


def images_ahead(batch_size: int, num_workers: int) -> int:
    """Return how many images each worker prepares ahead: two, PyTorch's default, but at least two batches in all."""
    return max(2, math.ceil(2 * batch_size / num_workers))


def _unchanged(value: Any) -> Any:
    return value


def set_random_numbers(*key: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch, and of this process's GPU if it is in use, from a key.

    Equal keys give equal numbers in any process; different keys give independent numbers. Some 20 us.

    Args:
        key: integers >= 0, such as `IMAGE`, the run's seed, and a position.
    """
    python, pytorch, *numpy = (int(seed) for seed in np.random.SeedSequence(key).generate_state(6, np.uint32))
    random.seed(python)
    np.random.seed(numpy)
    torch.default_generator.manual_seed(pytorch)
    if torch.cuda.is_initialized():  # else PyTorch would keep the call, with a stack trace, until it is
        torch.cuda.manual_seed(pytorch)


def check_own_augmentation(cfg: CfgNode) -> None:
    """Try each augmentation of AUGMENT.NAMES on noise of the network's size, and again with the same random numbers.

    Raises:
        ValueError: one fails, or does something else then, so that a resumed run would not be exact.
    """
    height = min(cfg.INPUT.MIN_SIZE_TRAIN)
    noise = np.random.default_rng(0).integers(0, 256, (height, min(2 * height, cfg.INPUT.MAX_SIZE_TRAIN), 3), np.uint8)
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            for name in cfg.MODEL.FOCAL_DET.AUGMENT.NAMES:
                _check_repeats(name, T.AugmentationList(own_steps(name, cfg)), noise)
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _check_repeats(name: str, steps: T.AugmentationList, image: np.ndarray) -> None:
    for position in range(_TRIES):
        found = []
        for _ in range(2):
            set_random_numbers(IMAGE, 0, position)
            tried = T.AugInput(image.copy())
            try:
                boxes = steps(tried).apply_box(_BOXES * np.tile(image.shape[1::-1], 2))
            except Exception as error:  # whatever code of the user's may raise
                reason = f"{type(error).__name__}: {first_line(error)}"
                raise ValueError(f"{name} of {NAMES} fails on an image {image.shape} of uint8 ({reason})") from error
            found.append((tried.image, boxes))
        if not all(map(np.array_equal, *found)):
            raise ValueError(
                f"{name} of {NAMES} has random numbers of its own, which would differ when the run is resumed; draw "
                "them from numpy.random, or seed them from there for each image"
            )


class BrokenImageError(TrainingError):
    """An image that was sound before the run can no longer be read; the message names it.

    PyTorch makes a new error of this class from a loader worker's trace, whose last line is the message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.strip().rpartition(f"{type(self).__name__}: ")[2])


def named_faults(mapper: Callable[[Record], Any]) -> Callable[[Record], Any]:
    """Wrap a data set mapper so that its errors name the image, deleted, replaced or damaged since the checks.

    The wrapped one raises `BrokenImageError` for whatever that one raises, and can be pickled if that one can.
    """
    return partial(_map, mapper)


def _map(mapper: Callable[[Record], Any], record: Record) -> Any:
    try:
        return mapper(record)
    except Exception as error:  # whatever a decoder may raise on somebody's file
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise BrokenImageError(
            f"{record.get('file_name')!r}: can no longer be read ({reason}); replace the image "
            "and continue with --resume; --preflight-only decodes them all"
        ) from error
