"""A step's images follow from the seed and the step: not from workers, nor from where a run started."""

import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, build_detection_train_loader
from torch.utils.data import IterableDataset

from focal_det.data.train_loader import BrokenImageError, TrainLoader, build_train_loader, named_faults

pytestmark = pytest.mark.detectron2

# Nine images, some high and some wide.
RECORDS = [{"image_id": i, "width": 30 if i % 3 else 20, "height": 25} for i in range(9)]


@pytest.fixture
def as_rank(monkeypatch):
    """Makes this process one rank of several."""

    def become(rank, world_size):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: rank)
        monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: world_size)

    return become


@pytest.fixture
def small_cfg(tiny_cfg):
    DatasetCatalog.register("nine", lambda: RECORDS)
    yield lambda *words: tiny_cfg(
        *("DATASETS.TRAIN", "('nine',)", "DATALOADER.NUM_WORKERS", "0", "SEED", "3", "SOLVER.IMS_PER_BATCH", "4"),
        *words,
    )
    DatasetCatalog.remove("nine")


def drawn(record):
    """In a mapper's place: what a mapper might draw, of every generator."""
    numbers = random.random(), float(np.random.rand()), float(torch.rand(()))
    return {**record, "numbers": numbers}


def batches(cfg, number, *, start=0):
    loader = build_train_loader(cfg, drawn)
    loader.start = start
    return list(itertools.islice(loader, number))


def ids(batches):
    return [[image["image_id"] for image in batch] for batch in batches]


@pytest.mark.parametrize("grouped", ["True", "False"])
def test_workers_change_nothing_and_a_later_start_is_the_same_from_there_on(small_cfg, grouped):
    words = ("DATALOADER.ASPECT_RATIO_GROUPING", grouped)
    whole = batches(small_cfg(*words), 12)
    assert batches(small_cfg(*words, "DATALOADER.NUM_WORKERS", "2"), 12) == whole
    assert batches(small_cfg(*words, "DATALOADER.NUM_WORKERS", "1"), 5, start=7) == whole[7:]
    assert batches(small_cfg(*words, "SEED", "4"), 12) != whole
    # 48 images of 9: each at least five times, each time with other numbers
    numbers = [image["numbers"] for batch in whole for image in batch]
    assert len(set(numbers)) == len(numbers) == 48


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
@pytest.mark.parametrize("grouped", ["True", "False"])
def test_the_order_is_detectron2s(small_cfg, grouped, sampler):
    annotated = [{**r, "annotations": [{"category_id": r["image_id"] % 2}]} for r in RECORDS]
    DatasetCatalog.remove("nine")
    DatasetCatalog.register("nine", lambda: annotated)
    cfg = small_cfg("DATALOADER.ASPECT_RATIO_GROUPING", grouped, "DATALOADER.SAMPLER_TRAIN", sampler)
    theirs = build_detection_train_loader(cfg, mapper=lambda record: record)
    assert ids(batches(cfg, 10)) == ids(itertools.islice(theirs, 10))


def test_any_number_of_ranks_shares_the_same_images(small_cfg, as_rank):
    cfg = small_cfg("DATALOADER.ASPECT_RATIO_GROUPING", "False")
    whole = [sorted(batch, key=str) for batch in batches(cfg, 6)]
    for world_size in (2, 4):
        shares = []
        for rank in range(world_size):
            as_rank(rank, world_size)
            shares.append(batches(cfg, 6, start=0))
        assert all(len(batch) == 4 // world_size for share in shares for batch in share)
        together = [sorted(itertools.chain(*step), key=str) for step in zip(*shares, strict=True)]
        assert together == whole


def test_wide_and_high_images_do_not_meet(small_cfg):
    for batch in batches(small_cfg(), 12):
        assert len({image["width"] > image["height"] for image in batch}) == 1


def test_the_step_has_its_own_random_numbers_whatever_the_images_drew(small_cfg, as_rank):
    def of_steps(number, start=0, workers="0"):
        loader = build_train_loader(small_cfg("DATALOADER.NUM_WORKERS", workers), drawn)
        loader.start = start
        steps = iter(loader)
        return [
            (next(steps), random.random(), float(np.random.rand()), float(torch.rand(())))[1:] for _ in range(number)
        ]

    whole = of_steps(4)
    assert len({number for step in whole for number in step}) == 12
    assert of_steps(2, start=2, workers="2") == whole[2:]
    as_rank(1, 4)
    assert set(of_steps(4)).isdisjoint(whole)


def test_a_stream_is_left_to_detectron2_and_said_to_be_inexact(small_cfg, caplog):
    class Stream(IterableDataset):
        def __iter__(self):
            return itertools.cycle(RECORDS)

    DatasetCatalog.remove("nine")
    DatasetCatalog.register("nine", Stream)
    loader = build_train_loader(small_cfg(), drawn)
    assert not isinstance(loader, TrainLoader)
    assert len(next(iter(loader))) == 4
    assert "nine is a stream: a resumed run starts it anew" in caplog.text


def read(record):
    if record["file_name"] == "b.jpg":
        raise OSError("broken data stream\nmore")
    return record["file_name"]


class Images(torch.utils.data.Dataset):
    def __init__(self, mapper):
        self.mapper = mapper

    def __len__(self):
        return 2

    def __getitem__(self, place):
        return self.mapper({"file_name": "ab"[place] + ".jpg"})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_names_the_image_and_nothing_else_changes(workers):
    loader = iter(torch.utils.data.DataLoader(Images(named_faults(read)), num_workers=workers))
    assert next(loader) == ["a.jpg"]
    with pytest.raises(BrokenImageError) as caught:
        next(loader)
    assert str(caught.value).startswith("'b.jpg': can no longer be read (OSError: broken data stream); replace the")
    assert "\n" not in str(caught.value)


def test_it_goes_to_workers_that_are_started_anew():
    assert pickle.loads(pickle.dumps(named_faults(read)))({"file_name": "a.jpg"}) == "a.jpg"
