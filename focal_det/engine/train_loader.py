"""Training pictures by place: a step's pictures, and how they are augmented, follow from the seed and the step alone.

So a training that goes on from any step sees what it would have seen, with any number of loader workers, and nothing
of a sampler's or a worker's state has to be kept. Which pictures come in which order is Detectron2's sampler's choice.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data.common import ToIterableDataset
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.named_faults import named_faults
from .random_numbers import PICTURE, STEP, set_random_numbers

Picture = dict[str, Any]


def build_train_loader(cfg: CfgNode, mapper: Callable[[Picture], Picture] | None = None) -> Iterable[list[Picture]]:
    """The loader of this process's share of every batch.

    Args:
        cfg: its data sets are registered; SEED is the run's, or negative for one that all processes draw together.
        mapper: of a data set's record to what the model takes; Detectron2's for training if None.

    Returns:
        A `TrainLoader`. Of a registered data set that is a stream Detectron2's own loader, with a warning: where it is
        cannot be set.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    mapper = named_faults(mapper or DatasetMapper(cfg, True))
    # The records as they are: they are mapped later, by place.
    source = build_detection_train_loader(cfg, mapper=_as_it_is)
    while not isinstance(source, ToIterableDataset):
        if not hasattr(source, "dataset"):
            logging.getLogger(__name__).warning(
                f"{', '.join(cfg.DATASETS.TRAIN)} is a stream: a resumed run starts it anew, and does not end exactly "
                "where an uninterrupted one would"
            )
            return build_detection_train_loader(cfg, mapper=mapper)
        source = source.dataset
    return TrainLoader(
        source.dataset,
        source.sampler,
        mapper,
        seed=cfg.SEED,
        batch_size=cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
        by_orientation=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        # From pinned memory a GPU copies by itself.
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),
    )


class TrainLoader:
    """Batches from the step `start` on, without end; before each the random numbers of its step are set.

    Args:
        records: of the pictures.
        sampler: Detectron2's, of this rank: every world-size-th place of a stream that all ranks share.
        mapper: of a record to what the model takes; may draw random numbers.
        seed: >= 0, of the run.
        batch_size: pictures of this rank in a step, >= 1.
        by_orientation: only pictures that are all wide or all high in one batch, as Detectron2 groups them; each rank
            groups its own, so that then the number of ranks has a part in which pictures meet in a step.
        num_workers, pin_memory: PyTorch's `DataLoader`'s.
    """

    def __init__(
        self,
        records: Dataset[Picture],
        sampler: Iterable[int],
        mapper: Callable[[Picture], Picture],
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
        self._pictures: DataLoader[Picture] = DataLoader(
            _Placed(records, mapper, seed),
            batch_size=None,
            sampler=self._order,
            num_workers=num_workers,
            # two pictures ahead for each worker, as PyTorch has it, but at least two batches in all
            prefetch_factor=max(2, math.ceil(2 * batch_size / num_workers)) if num_workers else None,
            pin_memory=pin_memory,
            collate_fn=_as_it_is,
        )

    def __iter__(self) -> Iterator[list[Picture]]:
        self._order.skipped = self.start
        pictures = iter(self._pictures)
        for step in itertools.count(self.start):
            batch = list(itertools.islice(pictures, self._batch_size))
            set_random_numbers(STEP, self._seed, step, comm.get_rank())
            yield batch


class _Order(Sampler[tuple[int, int]]):
    """This rank's pictures in the order of its batches: the place in the stream of all ranks, and the record there."""

    def __init__(self, records: Any, indices: Iterable[int], batch_size: int, by_orientation: bool) -> None:
        self.skipped = 0  # batches
        self._indices = indices
        self._batch_size = batch_size
        self._is_wide = [_is_wide(records[i]) if by_orientation else True for i in range(len(records))]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        places = itertools.count(comm.get_rank(), comm.get_world_size())
        waiting: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        done = 0
        for place, index in zip(places, self._indices, strict=False):
            batch = waiting[self._is_wide[index]]
            batch.append((place, index))
            if len(batch) == self._batch_size:
                if done >= self.skipped:
                    yield from batch
                done += 1
                batch.clear()


class _Placed(Dataset[Picture]):
    """Pictures, each mapped with the random numbers of its place."""

    def __init__(self, records: Any, mapper: Callable[[Picture], Picture], seed: int) -> None:
        self._records = records
        self._mapper = mapper
        self._seed = seed

    def __getitem__(self, item: tuple[int, int]) -> Picture:
        place, index = item
        set_random_numbers(PICTURE, self._seed, place)
        return self._mapper(self._records[index])


def _is_wide(record: Picture) -> bool:
    return bool(record["width"] > record["height"])


def _as_it_is(thing: Any) -> Any:
    return thing
