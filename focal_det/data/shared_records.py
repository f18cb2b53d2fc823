"""The records of data sets, read by one process of each machine and shared by all that run on it.

An annotation file of COCO's size takes gigabytes while it is read. So the first rank of a machine reads it and writes
what is needed of each record into a file, which the ranks and their loader workers map: the machine holds it once.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import IO, Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.utils import comm
from torch.utils.data import Dataset

from .catalog import IDS, registered_files
from .image_mapper import ImageMapper
from .tile_records import cut_records, tiles_of

logger = logging.getLogger(__name__)
Record = dict[str, Any]
Reduce = Callable[[Record], Record]
_LEARNT = ("thing_classes", IDS)  # what Detectron2's metadata of a COCO file has only once it was read


class SharedRecords(Dataset[Record]):
    """Records, each unpickled anew whenever it is asked for, so that nobody can change another's.

    Args:
        content: uint8, as `_write` has written it.
        count: of the records.
    """

    def __init__(self, content: np.ndarray, count: int) -> None:
        self._content = content
        self._places = content[: 8 * (count + 1)].view(np.int64)

    def __len__(self) -> int:
        return len(self._places) - 1

    def __getitem__(self, index: int) -> Record:
        start, end = self._places[index], self._places[index + 1]  # IndexError, which ends a loop, behind the last
        record: Record = pickle.loads(self._content[start:end].data)
        return record


def read_train_records(cfg: CfgNode, reduce: Reduce) -> Any:
    """Read DATASETS.TRAIN, cut into tiles if MODEL.FOCAL_DET.TILES says so; see `read_once`."""
    filter_empty, keypoints = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, cfg.MODEL.ROI_KEYPOINT_HEAD
    fewest = keypoints.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    sets = list(cfg.DATASETS.TRAIN)

    def read() -> Any:
        records = get_detection_dataset_dicts(sets, filter_empty, fewest)
        return cut_records(records, tiles_of(cfg), filter_empty=filter_empty)

    return read_once(sets, read, reduce)


def read_evaluated_records(cfg: CfgNode, name: str) -> Any:
    """Read a test set with the annotations that Detectron2's mapper reads, in the tiles of the training.

    See `read_once`.
    """
    return read_once([name], lambda: cut_records(DatasetCatalog.get(name), tiles_of(cfg)), mapped_part(cfg))


def build_test_loader(cfg: CfgNode, name: str) -> Iterable[list[Record]]:
    """Build Detectron2's loader of a test set, without the annotations, which its mapper would remove."""
    if cfg.MODEL.LOAD_PROPOSALS:
        loader: Iterable[list[Record]] = build_detection_test_loader(cfg, name)
        return loader
    read = partial(get_detection_dataset_dicts, [name], filter_empty=False)
    records, workers = read_once([name], read, partial(_without, ("annotations",))), cfg.DATALOADER.NUM_WORKERS
    loader = build_detection_test_loader(records, mapper=DatasetMapper(cfg, False), num_workers=workers)
    return loader


def build_annotated_loader(cfg: CfgNode, records: Sequence[Record]) -> Iterable[list[Record]]:
    """Build a loader of a test set's images, or tiles, with their objects, resized as for testing."""
    mapper = ImageMapper(cfg, is_train=False)
    mapper.is_train = True  # else it leaves the annotations out
    dataset, workers = DatasetFromList(records, serialize=False), cfg.DATALOADER.NUM_WORKERS
    loader: Iterable[list[Record]] = build_detection_test_loader(dataset, mapper=mapper, num_workers=workers)
    return loader


def mapped_part(cfg: CfgNode) -> Reduce:
    """Return what reduces a record to what Detectron2's mapper reads: without the masks or key points that it ignores.

    They are most of COCO's file.
    """
    read = {"segmentation": cfg.MODEL.MASK_ON, "keypoints": cfg.MODEL.KEYPOINT_ON}
    unread = [name for name, is_read in read.items() if not is_read]

    def reduce(record: Record) -> Record:
        if "annotations" not in record:
            return record
        return {**record, "annotations": [_without(unread, annotation) for annotation in record["annotations"]]}

    return reduce


def _without(names: Sequence[str], row: Record) -> Record:
    return {name: value for name, value in row.items() if name not in names}


def read_once(names: Sequence[str], read: Callable[[], Any], reduce: Reduce) -> Any:
    """Read records on the first process of each machine, and share them with its others; all must call it together.

    Where that is impossible, each process reads. So it does where a set has no annotation file: a function of the
    user's may count on being called by all.

    Args:
        names: of the data sets.
        read: returns a list of records, or one of PyTorch's data sets.
        reduce: from a record to what is kept of it; it must not change the record.

    Returns:
        `SharedRecords`; what `read` has returned if that is no list.
    """
    is_alone = comm.get_world_size() == 1 or comm.get_local_size() == 1
    if is_alone or any(registered_files(name) is None for name in names):
        return _in_memory(read(), reduce)
    file, place, found = None, None, None
    reader = comm.get_rank() - comm.get_local_rank()
    try:
        if comm.get_rank() == reader:
            found = read()
            if isinstance(found, list) and (file := _into_file(found, reduce)):
                place = (f"/proc/{os.getpid()}/fd/{file.fileno()}", _identity(file.fileno()), len(found))
        learnt = {name: _known(name, _LEARNT) for name in names}
        place_of_reader, learnt = comm.all_gather((place, learnt))[reader]
        shared = None if place_of_reader is None else _map(*place_of_reader)
        comm.all_gather(None)  # now all have opened it
    finally:
        if file is not None:
            file.close()
    if shared is None:
        return _in_memory(read() if found is None else found, reduce)
    for name, values in learnt.items():
        MetadataCatalog.get(name).set(**{key: values[key] for key in values.keys() - _known(name, _LEARNT).keys()})
    return shared


def _known(name: str, keys: Iterable[str]) -> dict[str, Any]:
    known = MetadataCatalog.get(name).as_dict()
    return {key: known[key] for key in keys if key in known}


def _in_memory(found: Any, reduce: Reduce) -> Any:
    if not isinstance(found, list):
        return found
    content = io.BytesIO()
    _write(content, found, reduce)
    return SharedRecords(np.frombuffer(content.getbuffer(), np.uint8), len(found))


def _into_file(records: list[Record], reduce: Reduce) -> IO[bytes] | None:
    """Write the records into a file without a name, which no end of a process leaves behind; None if that fails."""
    with ExitStack() as opened:
        try:
            file = opened.enter_context(tempfile.TemporaryFile())
            _write(file, records, reduce)
            file.flush()
        except OSError as error:
            where = tempfile.tempdir or "TMPDIR"
            logger.warning(f"{where}: {error.strerror}: each rank keeps the annotations by itself")
            return None
        opened.pop_all()  # it stays open
        return file


def _map(path: str, identity: tuple[int, int], count: int) -> SharedRecords | None:
    """Map what another process of this machine has written; None if it is out of sight, as in another container."""
    try:
        with open(path, "rb") as file:
            if _identity(file.fileno()) != identity:  # of a process that has the same number here
                return None
            return SharedRecords(np.memmap(file, np.uint8, "r"), count)
    except OSError:
        return None


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _write(file: IO[bytes], records: Sequence[Record], reduce: Reduce) -> None:
    """Write where each record begins and the last one ends, as int64, and the pickled records."""
    places = np.zeros(len(records) + 1, np.int64)
    places[0] = file.seek(places.nbytes)
    for number, record in enumerate(records):
        places[number + 1] = places[number] + file.write(pickle.dumps(reduce(record), pickle.HIGHEST_PROTOCOL))
    file.seek(0)
    file.write(places.tobytes())
