"""Time and memory of COCO's scores by hotcoco, Detectron2's COCOeval_opt and pycocotools, and whether bits differ.

python benchmarks/coco_scoring.py --json benchmarks/results/coco_scoring.json     (2 to 4 minutes)

Annotations and detections are drawn: as many objects and crowds an image as in COCO's validation set, 100 detections an
image with scores of two digits, so that many are equal. Each tool scores in a process of its own, from the same lists
of rows in memory to the arrays and the twelve figures.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hotcoco
import numpy as np
from detectron2.evaluation.fast_eval_api import COCOeval_opt
from pycocotools.coco import COCO

from focal_det.environment import hardware, versions
from focal_det.evaluation import coco_arrays

TOOLS = ("hotcoco", "COCOeval_opt", "pycocotools")
LIMITS = (1, 10, 100)


def draw_set(images: int, seed: int, classes: int = 80) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return annotations, 7 an image and one of 100 a crowd, and 100 detections an image, a tenth near an object."""
    rng = np.random.default_rng(seed)

    def rows(number: int) -> list[dict[str, Any]]:
        boxes = np.hstack([rng.uniform(0, 500, (number, 2)), rng.gamma(1.2, 80, (number, 2)) + 1]).round(2)
        columns = rng.integers(1, images + 1, number), rng.integers(1, classes + 1, number), boxes
        return [
            {"image_id": i, "category_id": c, "bbox": b}
            for i, c, b in zip(*(column.tolist() for column in columns), strict=True)
        ]

    annotations = rows(7 * images)
    for number, row in enumerate(annotations, start=1):
        row |= {"id": number, "iscrowd": int(rng.random() < 0.01), "area": 0.7 * row["bbox"][2] * row["bbox"][3]}
    detections = rows(100 * images)
    for row in detections:
        row["score"] = round(float(rng.random()), 2)
        if rng.random() < 0.1:
            near = annotations[rng.integers(len(annotations))]
            moved = np.abs(np.array(near["bbox"]) + rng.normal(0, 6, 4)).round(2).tolist()
            row |= {"image_id": near["image_id"], "category_id": near["category_id"], "bbox": moved}
    truth = {
        "info": {},
        "images": [{"id": i} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": str(i)} for i in range(1, classes + 1)],
        "annotations": annotations,
    }
    return truth, detections


def score(tool: str, truth: dict[str, Any], found: list[dict[str, Any]]) -> Any:
    """Return the evaluator of a tool, summarised."""
    if tool == "COCOeval_opt":
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        scored = COCOeval_opt(coco, coco.loadRes(found), "bbox")  # as Detectron2 calls it
        scored.evaluate()
        scored.accumulate()
    else:
        missing = patch.object(coco_arrays, "hotcoco", lambda: None)
        with missing if tool == "pycocotools" else contextlib.nullcontext():
            scored = coco_arrays.accumulate(truth, found, LIMITS)
    scored.summarize()
    return scored


def measure(tool: str, images: int, seed: int, answers: Any) -> None:
    """Score in this process; answer with the seconds, the growth of its memory in MB, and hashes of all bits."""
    truth, found = draw_set(images, seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.redirect_stdout(io.StringIO()):
        began = time.perf_counter()
        scored = score(tool, truth, found)
        seconds = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    arrays = {name: scored.eval[name] for name in ("precision", "recall", "scores")} | {"stats": scored.stats}
    digests = {name: hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()[:16] for name, a in arrays.items()}
    answers.put({"seconds": seconds, "megabytes": grown, "bits": digests, "AP": float(scored.stats[0])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows: dict[str, Any] = {}
    for tool in TOOLS:
        answers = context.Queue()
        process = context.Process(target=measure, args=(tool, args.images, args.seed, answers))
        process.start()
        rows[tool] = answers.get()
        process.join()
        print(f"{tool:13} {rows[tool]['seconds']:8.2f} s  {rows[tool]['megabytes']:7.0f} MB  AP {rows[tool]['AP']:.6f}")
    slowest = rows["pycocotools"]
    for tool, row in rows.items():
        row["times_faster"] = slowest["seconds"] / row["seconds"]
        row["differ"] = [name for name in row["bits"] if row["bits"][name] != slowest["bits"][name]]
        print(f"{tool}: {row['times_faster']:.1f} times pycocotools' speed; other bits: {row['differ'] or 'none'}")
    if args.json:
        versions_here = f"{versions()}, hotcoco {hotcoco.__version__}"
        head = {"images": args.images, "detections": 100 * args.images, "seed": args.seed}
        head |= {"hardware": hardware(0), "versions": versions_here, "tools": rows}
        args.json.write_text(json.dumps(head, indent=1) + "\n")
    if rows["hotcoco"]["differ"]:
        raise SystemExit("hotcoco's scores are not pycocotools'")


if __name__ == "__main__":
    main()
