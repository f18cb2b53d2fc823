"""Small objects in large images: scores and time as a whole and in tiles, of a run and of an exported file.

    python benchmarks/tiles.py --run output/quickstart --model models/quickstart_int8.onnx
    python benchmarks/tiles.py --train output/tiles

The images are mosaics of the quickstart's validation scenes (128 px), each with one scene of 512 px among them, so that
objects of 13 to 64 px stand beside some of 51 to 256 px. As a whole they are resized to the 128 px of the training.
With --train two detectors are trained on such mosaics of training scenes, in tiles and as a whole, and compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from focal_det.data.shapes import CLASSES, draw_image
from focal_det.evaluation.coco_scores import evaluate
from focal_det.inference.detections import Detector
from focal_det.inference.exported import ExportedDetector

SCENE, ROW, LARGE = 128, 7, 4  # pixels of a scene, scenes in a row, and how many the large one takes
SHIFT = SCENE // 2  # so that no tile happens to be a scene
SIDE = ROW * SCENE + SHIFT


def mosaic(number: int, split: str = "val") -> tuple[np.ndarray, list[tuple[list[int], int]]]:
    """Draw a mosaic; return image and objects, as XYXY boxes and labels."""
    image = np.full((SIDE, SIDE, 3), 110, np.uint8)
    large = [(1, 1, LARGE)]
    places = large + [
        (x, y, 1) for y in range(ROW) for x in range(ROW) if not (1 <= x < 1 + LARGE and 1 <= y < 1 + LARGE)
    ]
    objects = []
    for scene, (x, y, size) in enumerate(places):
        left, top, side = SHIFT + x * SCENE, SHIFT + y * SCENE, size * SCENE
        pixels, boxes, labels = draw_image(split, 1000 * (number + 1) + scene, side)
        image[top : top + side, left : left + side] = pixels
        objects += list(zip((boxes + np.array([left, top, left, top])).tolist(), labels.tolist(), strict=True))
    return image, objects


def ground_truth(mosaics: list[tuple[np.ndarray, list[tuple[list[int], int]]]]) -> dict[str, list[dict[str, object]]]:
    """Return COCO's form of all mosaics."""
    rows: list[dict[str, object]] = []
    for number, (_, objects) in enumerate(mosaics, 1):
        for (x0, y0, x1, y1), label in objects:
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            rows.append({"id": len(rows) + 1, "image_id": number, "category_id": label + 1, **box})
    images: list[dict[str, object]] = [
        {"id": i + 1, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(len(mosaics))
    ]
    categories: list[dict[str, object]] = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "annotations": rows, "categories": categories}


def trained(folder: Path, count: int, iterations: int) -> dict[str, Path]:
    """Train two detectors on mosaics for as many iterations of as many images; return their folders."""
    images, truth = folder / "images", folder / "train.json"
    images.mkdir(parents=True, exist_ok=True)
    mosaics = [mosaic(number, "train") for number in range(count)]
    for number, (image, _) in enumerate(mosaics):
        cv2.imwrite(str(images / f"{number}.png"), image)
    truth.write_text(json.dumps(ground_truth(mosaics)))
    sets = ["--train-json", truth, "--train-images", images]
    keys = {
        **{"SOLVER.MAX_ITER": iterations, "SOLVER.STEPS": (iterations * 3 // 4, iterations * 93 // 100)},
        **{"TEST.EVAL_PERIOD": 0, "MODEL.FOCAL_DET.DRAW_IMAGES": 0, "MODEL.FOCAL_DET.VAL_LOSS": False},
        **{"DATASETS.TEST": ("shapes_val_2_128px",), "DATALOADER.NUM_WORKERS": 0},
    }
    runs = {}
    for name, flags in (("trained on whole images", []), ("trained on tiles", ["--tile", SCENE])):
        runs[name] = folder / name.replace(" ", "_")
        words = ["train", "--config-file", "focal_det://quickstart.yaml", *sets, *flags, "OUTPUT_DIR", runs[name]]
        words += [word for pair in keys.items() for word in pair]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "focal_det", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
        print(f"{name}: {iterations} iterations, {time.perf_counter() - start:.0f} s with start and end", flush=True)
    return runs


def detector_of(args: argparse.Namespace, given: str | Path, tile: int, overlap: float | None) -> Detector:
    """Build the detector of a run or of the exported file."""
    if given == args.model:
        return ExportedDetector(args.model, trusted=True, tile=tile, overlap=overlap, threads=args.threads)
    import torch

    from focal_det.engine.predictor import Predictor

    torch.set_num_threads(args.threads)
    return Predictor.from_run(given, tile=tile, overlap=overlap, batch_size=4)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="OUTPUT_DIR of the quickstart's training")
    parser.add_argument("--model", help="what focal-det export wrote")
    parser.add_argument("--train", type=Path, metavar="DIR", help="train two detectors there, and compare them")
    parser.add_argument("--mosaics", type=int, default=40, help="to train on (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=250, help="of a training (default: %(default)s)")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    runs = trained(args.train, args.mosaics, args.iterations) if args.train else {"run": args.run}
    mosaics = [mosaic(number) for number in range(args.images)]
    truth = ground_truth(mosaics)
    print(f"{len(mosaics)} images of {SIDE} px, {len(truth['annotations'])} objects")
    print("detector, tile, overlap: AP, AP50, recall (AR), AP of small, medium, large objects; seconds an image")
    for kind, given in (*runs.items(), ("exported", args.model)):
        if given is None:
            continue
        kept = {}
        settings: tuple[tuple[int, float | None], ...] = ((0, None), (SCENE, 0.2), (SIDE, 0.2))
        if not args.train:
            settings = ((0, None), (SCENE, 0.0), (SCENE, 0.2), (SCENE, 0.5), (2 * SCENE, 0.2), (SIDE, 0.2))
        for tile, overlap in settings:
            detector = detector_of(args, given, tile, overlap)
            detector([mosaics[0][0]])
            start = time.perf_counter()
            found = [detector([image])[0] for image, _ in mosaics]
            seconds = (time.perf_counter() - start) / len(mosaics)
            rows = [row for i, one in enumerate(found, 1) for row in one.to_coco(i, [1, 2, 3])]
            kept[tile] = rows
            s = evaluate(truth, rows)
            name = f"{kind}, {tile or 'whole'}, {'-' if overlap is None else overlap}"
            scores = ", ".join(f"{score:.1f}" for score in (s.AP, s.AP50, s.AR, s.APs, s.APm, s.APl))
            print(f"{name}: {scores}; {seconds:.2f}", flush=True)
        is_same = kept[0] == kept[SIDE]
        print(f"{kind}: {'the same' if is_same else 'NOT THE SAME'} to the last bit in one tile as in the whole image")


if __name__ == "__main__":
    main()
