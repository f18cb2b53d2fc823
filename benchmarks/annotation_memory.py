"""Memory of the ranks of one machine that build the loaders of a training on an annotation file of COCO's size.

    python benchmarks/annotation_memory.py [--ranks 8] [--in-turns] [--images 118000] [--boxes 860000] [--folder DIR]

Writes the files that are not in the folder yet: 118,000 images with 860,000 polygons, as in COCO's train2017, and a
24th of it to evaluate on. Each rank, over gloo, builds the loaders of both as the trainer does; no image is read.
`--in-turns` lets one rank after another read, where all at once need more memory than there is; it is for versions in
which every rank reads by itself.

Prints one JSON object, in MB: the most that all ranks together held at one time (`peak_sum`, shared pages counted once,
sampled) and at the end (`steady_sum`); the highest peak of one rank (`peak_of_one`), and the most that is one rank's
own at the end (`steady_own`). All are less what they held before they read, in sum `idle_sum`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import launch
from detectron2.utils import comm

from focal_det.config.load import load_config
from focal_det.engine.trainer import Trainer

PARTS = {"train": 1, "val": 24}  # and by how much each is smaller
CLASSES = 80
OWN = ("Private_Clean", "Private_Dirty")


def write_annotations(path: Path, images: int, boxes: int) -> None:
    """Write a COCO file whose polygons have 21 corners in the mean, with the two decimals of COCO's."""
    random = np.random.default_rng(0)
    places = np.sort(random.integers(images, size=boxes)).tolist()
    corners = random.uniform(0, 400, (boxes, 2)).round(2)
    sides = random.uniform(8, 240, (boxes, 2)).round(2)
    lengths = random.integers(3, 40, boxes).tolist()
    annotations = []
    for number, (image, (x, y), (w, h), length) in enumerate(
        zip(places, corners.tolist(), sides.tolist(), lengths, strict=True)
    ):
        polygon = (random.random((length, 2)) * (w, h) + (x, y)).round(2).ravel().tolist()
        annotations.append(
            {
                "segmentation": [polygon],
                "area": round(w * h * 0.6, 4),
                "iscrowd": 0,
                "image_id": image,
                "bbox": [x, y, w, h],
                "category_id": number % CLASSES + 1,
                "id": number + 1,
            }
        )
    address = "http://images.cocodataset.org/train2017/{:012d}.jpg"
    rows = [
        {
            "license": 3,
            "file_name": f"{i:012d}.jpg",
            "coco_url": address.format(i),
            "height": 480 + 160 * (i % 4 == 0),
            "width": 640 - 160 * (i % 4 == 0),
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": address.format(i),
            "id": i,
        }
        for i in range(images)
    ]
    categories = [{"supercategory": "thing", "id": i + 1, "name": f"class {i}"} for i in range(CLASSES)]
    coco = {"info": {}, "licenses": [], "images": rows, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(coco))


def held(pid: int | str, *kinds: str) -> float:
    """Return MB of a process's memory by the kinds of Linux's account of it, in all."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.split(":")[0] in kinds) / 1e3


def resident(kind: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1e3


def build_loaders(folder: str, in_turns: bool, pids: Any, are_idle: Any, results: Any) -> None:
    """Build a rank's loaders; put what it held when they were built into the queue."""
    for part in PARTS:
        register_coco_instances(f"like_coco_{part}", {}, f"{folder}/{part}.json", folder)
    overrides = ["DATASETS.TRAIN", "('like_coco_train',)", "DATASETS.TEST", "('like_coco_val',)", "SEED", "1"]
    cfg = load_config((), [*overrides, "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", str(2 * comm.get_world_size())])
    rank = comm.get_rank()
    pids[rank] = multiprocessing.current_process().pid
    comm.synchronize()
    if rank == 0:
        are_idle.wait()
    comm.synchronize()
    idle = held("self", *OWN), resident("VmRSS")
    started = time.perf_counter()
    kept = []
    for turn in range(comm.get_world_size() if in_turns else 1):
        if turn == rank or not in_turns:
            kept = [Trainer.build_train_loader(cfg), Trainer.build_test_loader(cfg, "like_coco_val")]
        comm.synchronize()
    seconds, own, peak = time.perf_counter() - started, held("self", *OWN) - idle[0], resident("VmHWM") - idle[1]
    results.put((held("self", "Pss"), own, peak, seconds, len(kept)))
    comm.synchronize()


def watch(pids: Any, are_idle: Any, is_over: threading.Event, sums: list[float]) -> None:
    """Add up what the ranks hold, at first before they read and then ten times a second."""
    while not is_over.is_set():
        if all(pids):
            try:
                sums.append(sum(held(pid, "Pss") for pid in pids))
            except OSError:  # one has ended
                return
            are_idle.set()
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--in-turns", action="store_true")
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--boxes", type=int, default=860_000)
    parser.add_argument("--folder", help="of the files, which are kept; a temporary one by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        for part, share in PARTS.items():
            if not (folder / f"{part}.json").is_file():
                write_annotations(folder / f"{part}.json", args.images // share, args.boxes // share)
        size = (folder / "train.json").stat().st_size / 1e6
        spawn = multiprocessing.get_context("spawn")
        pids, are_idle, results = spawn.Array("l", args.ranks), spawn.Event(), spawn.SimpleQueue()
        is_over, sums = threading.Event(), []
        watcher = threading.Thread(target=watch, args=(pids, are_idle, is_over, sums))
        watcher.start()
        try:
            launch(
                build_loaders, args.ranks, dist_url="auto", args=(str(folder), args.in_turns, pids, are_idle, results)
            )
        finally:
            is_over.set()
            watcher.join()
        steady, own, peaks, seconds, _ = zip(*(results.get() for _ in range(args.ranks)), strict=True)
        idle = sums[0]
        figures = {
            "file": size,
            "idle_sum": idle,
            "peak_sum": max(sums) - idle,
            "steady_sum": sum(steady) - idle,
            "peak_of_one": max(peaks),
            "steady_own": max(own),
            "seconds": max(seconds),
        }
        print(json.dumps({"ranks": args.ranks, **{name: round(value, 1) for name, value in figures.items()}}))


if __name__ == "__main__":
    main()
