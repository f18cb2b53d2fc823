"""Records are read by one process of a machine and shared, and what a mapper does not read of them is not kept."""

import json
import os
import tempfile

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils import comm

from focal_det.data import shared_records
from focal_det.data.catalog import JsonDataset, register_datasets
from focal_det.data.shared_records import build_test_loader, mapped_part, read_evaluated_records, read_once
from focal_det.data.train_loader import build_train_loader
from focal_det.engine.trainer import Trainer

pytestmark = pytest.mark.detectron2

POLYGON = [5.0, 5.0, 25.0, 5.0, 25.0, 20.0]


def unchanged(record):
    return record


@pytest.fixture
def masked(tmp_path):
    """Four images of 40 x 30 px with an object that has a mask each, registered as "masked"."""
    records = []
    for i in range(4):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), np.full((30, 40, 3), 60 * i, np.uint8))
        box = {"bbox": [5, 5, 20, 15], "bbox_mode": BoxMode.XYWH_ABS, "category_id": i % 2, "segmentation": [POLYGON]}
        records.append({"file_name": str(path), "image_id": i, "width": 40, "height": 30, "annotations": [box]})
    DatasetCatalog.register("masked", lambda: records)
    yield records
    DatasetCatalog.remove("masked")
    MetadataCatalog.pop("masked", None)


@pytest.fixture
def masked_cfg(tiny_cfg, masked):
    sets = ("DATASETS.TRAIN", "('masked',)", "DATASETS.TEST", "('masked',)")
    sizes = ("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.IMS_PER_BATCH", "2", "SEED", "1")
    return lambda *words: tiny_cfg(*sets, *sizes, "DATALOADER.NUM_WORKERS", "0", *words)


@pytest.mark.parametrize("mask_on", [False, True])
def test_a_mapper_makes_the_same_of_what_is_kept(masked_cfg, masked, mask_on):
    cfg = masked_cfg("INPUT.RANDOM_FLIP", "none")
    cfg.MODEL.MASK_ON = mask_on  # as for another architecture
    reduced, mapper = [mapped_part(cfg)(record) for record in masked], DatasetMapper(cfg, True)
    kept = ["segmentation" in record["annotations"][0] for record in reduced]
    assert kept == [mask_on] * 4
    for record, whole in zip(reduced, masked, strict=True):
        given, expected = mapper(record), mapper(whole)
        assert given.keys() == expected.keys()
        assert torch.equal(given["image"], expected["image"])
        mine, theirs = given["instances"].get_fields(), expected["instances"].get_fields()
        assert mine.keys() == theirs.keys()
        assert torch.equal(mine["gt_boxes"].tensor, theirs["gt_boxes"].tensor)
    assert masked[0]["annotations"][0]["segmentation"] == [POLYGON]  # the user's own records stay as they are


def test_the_training_keeps_no_mask_and_a_mapper_of_the_users_gets_all(masked_cfg):
    loader = build_train_loader(masked_cfg())
    assert "segmentation" not in loader.dataset[0]["annotations"][0]
    assert loader.dataset[3]["image_id"] == 3
    for image in next(iter(build_train_loader(masked_cfg(), unchanged))):
        assert image["annotations"][0]["segmentation"] == [POLYGON]


def test_a_test_loader_gives_what_detectron2s_gives_without_keeping_annotations(masked_cfg):
    cfg = masked_cfg()
    loader = build_test_loader(cfg, "masked")
    theirs = super(Trainer, Trainer).build_test_loader(cfg, "masked")
    assert len(loader) == len(theirs) == 4
    for (mine,), (expected,) in zip(loader, theirs, strict=True):
        assert mine.keys() == expected.keys()
        assert torch.equal(mine["image"], expected["image"])
    records = loader.dataset._dataset
    assert [sorted(record) for record in records] == [["file_name", "height", "image_id", "width"]] * 4


def test_records_are_a_sequence_that_nobody_can_change(masked_cfg, masked):
    cfg = masked_cfg()
    cfg.MODEL.MASK_ON = True
    records = read_evaluated_records(cfg, "masked")
    records[1]["annotations"].clear()
    assert list(records) == masked
    assert len(records) == 4


# --- several processes -----------------------------------------------------------------------------------------------


def write_coco(folder):
    """Write a COCO file of three images, and return the set."""
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in range(3)]
    row = {"bbox": [1, 2, 3, 4], "category_id": 7, "iscrowd": 0, "area": 12}
    rows = [{**row, "id": i + 1, "image_id": i} for i in range(3)]
    coco = {"info": {}, "images": images, "annotations": rows, "categories": [{"id": 7, "name": "bird"}]}
    (folder / "own.json").write_text(json.dumps(coco))
    return JsonDataset("own", "own.json", str(folder), str(folder / "own.json"))


def be_rank(rank, folder, prepare):
    """Read the set "own" as one of two ranks of a machine; write down what was read, and how often."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    tempfile.tempdir = str(folder / "temporary")
    prepare(rank)
    reads = []

    def read():
        reads.append(rank)
        return DatasetCatalog.get("own")

    records = read_once(["own"], read, unchanged)
    names = MetadataCatalog.get("own").get("thing_classes")
    seen = {"reads": len(reads), "ids": [record["image_id"] for record in records], "names": names}
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


def in_two_ranks(folder, prepare=lambda rank: None):
    (folder / "temporary").mkdir()
    register_datasets([], [write_coco(folder)])
    try:
        mp.start_processes(be_rank, (folder, prepare), nprocs=2, start_method="fork")
    finally:
        DatasetCatalog.remove("own")
        MetadataCatalog.remove("own")
    assert list((folder / "temporary").iterdir()) == []
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    assert [rank["ids"] for rank in ranks] == [[0, 1, 2]] * 2
    assert [rank["names"] for rank in ranks] == [["bird"]] * 2
    return [rank["reads"] for rank in ranks]


def test_the_first_rank_of_a_machine_reads_for_all(tmp_path):
    assert in_two_ranks(tmp_path) == [1, 0]


def test_where_the_file_cannot_be_written_each_rank_reads(tmp_path):
    def prepare(rank):
        original = shared_records._write
        calls = []

        def write(file, *rest):
            calls.append(file)
            if rank == 0 and len(calls) == 1:
                file.write(b"half")
                raise OSError(28, "No space left on device")
            original(file, *rest)

        shared_records._write = write

    assert in_two_ranks(tmp_path, prepare) == [1, 1]


def test_a_rank_that_does_not_see_the_file_reads(tmp_path):
    def prepare(rank):
        if rank == 1:
            shared_records._map = lambda *_: None

    assert in_two_ranks(tmp_path, prepare) == [1, 1]


def test_another_process_of_the_same_number_is_not_taken_for_the_reader(tmp_path):
    def prepare(rank):
        if rank == 1:
            shared_records._identity = lambda _: (0, 0)

    assert in_two_ranks(tmp_path, prepare) == [1, 1]


def test_ranks_that_are_killed_leave_no_file(tmp_path):
    def prepare(rank):
        map_file = shared_records._map

        def look_and_map(*place):
            assert os.listdir(tempfile.tempdir) == []
            return map_file(*place)

        shared_records._map = look_and_map

    assert in_two_ranks(tmp_path, prepare) == [1, 0]


def test_a_function_of_the_users_is_called_by_each_rank(tmp_path):
    def prepare(rank):
        records = DatasetCatalog.get("own")
        DatasetCatalog.remove("own")
        DatasetCatalog.register("own", lambda: records)
        MetadataCatalog.remove("own")
        MetadataCatalog.get("own").set(thing_classes=["bird"])

    assert in_two_ranks(tmp_path, prepare) == [1, 1]
