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


THREE = [{"image_id": 10 + i, "width": 30, "height": 25, "annotations": [{"category_id": 1}]} for i in range(3)]
SAMPLERS = {
    "RandomSubsetTrainingSampler": ("DATALOADER.RANDOM_SUBSET_RATIO", "0.5"),
    "WeightedTrainingSampler": ("DATASETS.TRAIN_REPEAT_FACTOR", "[('three', 2.5)]"),
    "WeightedCategoryTrainingSampler": (
        *("DATASETS.TRAIN_REPEAT_FACTOR", "[('three', 2.5)]"),
        *("DATALOADER.REPEAT_THRESHOLD", "0.5", "DATALOADER.REPEAT_SQRT", "False"),
    ),
}


@pytest.fixture
def two_sets(small_cfg):
    """Returns a function that makes the configuration of a sampler on nine images, of a rare class and a frequent one,
    and three others."""
    annotated = [{**r, "annotations": [{"category_id": r["image_id"] % 8 > 0}]} for r in RECORDS]
    DatasetCatalog.remove("nine")
    DatasetCatalog.register("nine", lambda: annotated)
    DatasetCatalog.register("three", lambda: THREE)
    both = ("DATASETS.TRAIN", "('nine', 'three')", "DATALOADER.ASPECT_RATIO_GROUPING", "False")
    yield lambda sampler, *words: small_cfg(
        *both, "DATALOADER.SAMPLER_TRAIN", sampler, *SAMPLERS[sampler], *words, "SOLVER.IMS_PER_BATCH", "6"
    )
    DatasetCatalog.remove("three")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_resumes_exactly_and_is_shared_by_any_number_of_ranks(two_sets, as_rank, monkeypatch, sampler):
    monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda data: [data])
    whole = batches(two_sets(sampler), 8)
    assert batches(two_sets(sampler), 3, start=5) == whole[5:]
    assert ids(batches(two_sets(sampler, "SEED", "4"), 8)) != ids(whole)
    shares = []
    for rank in range(2):
        as_rank(rank, 2)
        np.random.seed(rank)  # whatever was drawn before on each rank
        shares.append(batches(two_sets(sampler), 8))
    together = [sorted(itertools.chain(*step), key=str) for step in zip(*shares, strict=True)]
    assert together == [sorted(batch, key=str) for batch in whole]


def test_building_the_loader_leaves_the_random_numbers_as_they_are(two_sets):
    np.random.seed(5)
    first = np.random.rand()
    np.random.seed(5)
    build_train_loader(two_sets("RandomSubsetTrainingSampler"), drawn)
    assert np.random.rand() == first


def counts_of(cfg, number):
    found = [image for batch in ids(batches(cfg, number)) for image in batch]
    return {image: found.count(image) for image in range(13) if image in found}


def test_a_subset_is_a_share_of_the_images_that_the_seed_chooses(two_sets):
    # int(12 * 0.5) = 6 images are an epoch of one batch, so 10 batches have each of them 10 times
    chosen = counts_of(two_sets("RandomSubsetTrainingSampler"), 10)
    assert list(chosen.values()) == [10] * 6
    assert counts_of(two_sets("RandomSubsetTrainingSampler", "SEED", "5"), 10).keys() != chosen.keys()


def test_images_of_a_weighted_set_come_more_often(two_sets):
    # an epoch has each of the 9 once, and each of the 3 twice or three times, 2.5 in the mean: 16.5 images
    counts = counts_of(two_sets("WeightedTrainingSampler"), 110)  # 40 epochs
    assert all(38 <= counts[image] <= 42 for image in range(9))
    assert all(90 <= counts[image] <= 110 for image in range(10, 13))


def test_weights_of_sets_and_of_classes_are_multiplied(two_sets):
    # Of the 9, two have class 0: a frequency of 2/9, so a factor of (1/2)/(2/9) = 2.25 against 1; the 3 have 2.5.
    counts = counts_of(two_sets("WeightedCategoryTrainingSampler"), 76)  # 7 + 2 * 2.25 + 3 * 2.5 = 19: 24 epochs
    assert all(22 <= counts[image] <= 26 for image in range(1, 8))
    assert all(45 <= counts[image] <= 63 for image in (0, 8))
    assert all(52 <= counts[image] <= 68 for image in range(10, 13))


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
