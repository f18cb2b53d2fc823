"""Exported detectors beside the model they come from: the same detections, and how many images a second.

    python benchmarks/exported.py [--run output/quickstart] [--json FILE] [--repeats 5] [--threads 2] [--calibrated]

Exports the run as ONNX, ONNX with weights in 8 bits, and PyTorch's program; compares each with the model on 50
generated images of ten sizes, and times them in turns, image by image. Exits with 1 if one differs from the model.

With --calibrated instead: ONNX in float32, with weights in 8 bits, and with activations in 8 bits too, calibrated on
100 of the run's training images, on the run's test set in its own size: AP, file size, and images a second, in turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from measure import in_turns
from tabulate import tabulate

from focal_det.data.shapes import draw_image
from focal_det.data.statistics import evenly_spread
from focal_det.engine.predictor import Predictor, files_of_run
from focal_det.environment import commit, hardware, versions
from focal_det.evaluation.coco_scores import evaluate
from focal_det.evaluation.detect import detect_all
from focal_det.export.calibrated import calibrate_onnx
from focal_det.export.images_of_run import choose_images, read_images
from focal_det.export.int8 import round_to_8_bits
from focal_det.export.parity import compare
from focal_det.export.program import export_onnx, export_torch
from focal_det.inference.exported import ExportedDetector, Metadata

# Height and width; the first is the quickstart's own.
SIZES = (
    *((128, 128), (96, 160), (160, 96), (200, 200), (240, 320)),
    *((320, 240), (64, 64), (333, 500), (480, 640), (51, 203)),
)
EACH = 5


def random_images() -> list[np.ndarray]:
    """Return images (H, W, 3) uint8 BGR of the validation split."""
    found = []
    for number, (height, width) in enumerate(SIZES):
        for index in range(EACH):
            drawn, _, _ = draw_image("val", number * EACH + index, max(height, width))
            found.append(np.ascontiguousarray(drawn[:height, :width]))
    return found


def main() -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("output/quickstart"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--calibrated", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.calibrated:
        rows = calibrated_rows(args.run, args.repeats, args.threads)
        write(rows, calibrated_table(rows), args.json)
        return 0
    # In the images' own sizes, so that the network sees all of them.
    options: dict[str, Any] = {"overrides": ["INPUT.MIN_SIZE_TEST", "0"], "device": "cpu"}
    model, rounded = (Predictor(*files_of_run(args.run), **options) for _ in range(2))
    round_to_8_bits(rounded.model)
    cfg = model.cfg
    cut, most = cfg.MODEL.RETINANET.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE
    metadata = Metadata(model.class_names, model.category_ids, cfg.INPUT.FORMAT, 0, cfg.INPUT.MAX_SIZE_TEST, cut)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / file for name, file in (("ONNX", "m.onnx"), ("ONNX, 8 bits", "m8.onnx"))}
        files["torch.export"] = Path(folder) / "m.pt2"
        export_onnx(model.model, metadata, files["ONNX"], int8=False)
        export_onnx(rounded.model, metadata, files["ONNX, 8 bits"], int8=True)
        export_torch(model.model, metadata, files["torch.export"])
        megabytes = {name: path.stat().st_size / 1e6 for name, path in files.items()}
        detectors = {name: ExportedDetector(path, trusted=True, threads=args.threads) for name, path in files.items()}
    sample = random_images()
    parities = {
        name: compare(rounded if "8 bits" in name else model, detector, sample, cut=cut, most=most)
        for name, detector in detectors.items()
    }
    everyone = {"the model, PyTorch": model, **detectors}

    def detect(detector: Any) -> None:
        for image in sample:
            detector([image])

    times = in_turns({name: partial(detect, d) for name, d in everyone.items()}, torch.device("cpu"), args.repeats)
    rows = []
    for name, time in times.items():
        row: dict[str, Any] = {"detector": name, "images_per_s": len(sample) / time["s"], **time}
        row["speed"] = times["the model, PyTorch"]["s"] / time["s"]
        if name in parities:
            row |= {"MB": megabytes[name], **parities[name]._asdict()}
        rows.append(row)
    write(rows, table(rows), args.json)
    for parity in parities.values():
        for problem in parity.problems:
            print(problem, file=sys.stderr)
    return int(any(parity.problems for parity in parities.values()))


def calibrated_rows(run: Path, repeats: int, threads: int) -> list[dict[str, Any]]:
    """Export a run in three ways, score each on its test set, and time them in turns on up to 50 of those images."""
    plain, rounded = (Predictor(*files_of_run(run), device="cpu") for _ in range(2))
    round_to_8_bits(rounded.model)
    cfg = plain.cfg
    sizes = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    cut = cfg.MODEL.RETINANET.SCORE_THRESH_TEST
    metadata = Metadata(plain.class_names, plain.category_ids, cfg.INPUT.FORMAT, *sizes, cut)
    scored, files = choose_images(run, None, cfg.DATASETS.TRAIN)
    calibration = evenly_spread(files, 100)
    with tempfile.TemporaryDirectory() as folder:
        names = ("float32", "weights in int8", "weights and activations in int8")
        paths = dict(zip(names, (Path(folder) / f"{i}.onnx" for i in range(3)), strict=True))
        export_onnx(plain.model, metadata, paths[names[0]], int8=False)
        export_onnx(rounded.model, metadata, paths[names[1]], int8=True)
        calibrate_onnx(paths[names[0]], read_images("--run", calibration), paths[names[2]])
        megabytes = [path.stat().st_size / 1e6 for path in paths.values()]
        detectors = {name: ExportedDetector(path, threads=threads) for name, path in paths.items()}
    sample = list(read_images("--run", evenly_spread(scored.files, 50)))

    def detect(detector: Any) -> None:
        for image in sample:
            detector([image])

    scores = [evaluate(scored.coco, detect_all(each, scored.coco, scored.folder)) for each in detectors.values()]
    times = in_turns({name: partial(detect, each) for name, each in detectors.items()}, torch.device("cpu"), repeats)
    rows = []
    for (name, time), size, score in zip(times.items(), megabytes, scores, strict=True):
        figures = {"AP": score.AP, "AP50": score.AP50, "AP75": score.AP75, "images_scored": score.images, "MB": size}
        calibrated = len(calibration) if name == names[2] else 0
        rows.append({"detector": name, "calibrated_on": calibrated, **figures, **time})
        rows[-1] |= {"images_per_s": len(sample) / time["s"], "speed": times[names[0]]["s"] / time["s"]}
    return rows


def calibrated_table(rows: list[dict[str, Any]]) -> str:
    """Return the rows of `calibrated_rows` as a table in Markdown."""
    names = {"AP": ".2f", "AP50": ".2f", "AP75": ".2f", "MB": ".1f", "images_per_s": ".1f", "speed": ".2f"}
    cells = [(row["detector"], *(format(row[name], how) for name, how in names.items())) for row in rows]
    heads = ("ONNX", "AP", "AP50", "AP75", "MB", "images/s", "speed")
    return str(tabulate(cells, heads, tablefmt="github", disable_numparse=True))


def write(rows: list[dict[str, Any]], text: str, path: Path | None) -> None:
    """Print the table; write it beside the JSON, with what it was measured by and on."""
    figures = {
        "command": "python benchmarks/exported.py " + " ".join(sys.argv[1:]),
        "commit": commit(Path(__file__).parent),
        "hardware": hardware(0),
        "versions": f"{versions()}, onnxruntime {onnxruntime.__version__}",
        "sizes": SIZES,
        "rows": rows,
    }
    print(text)
    if path:
        path.write_text(json.dumps(figures, indent=1) + "\n")
        head = f"`{figures['command']}`: {figures['hardware']}; {figures['versions']}"
        path.with_suffix(".md").write_text(f"{head}\n\n{text}\n")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    cells = [
        (
            row["detector"],
            f"{row['images_per_s']:.1f}",
            f"{row['speed']:.2f}",
            f"{row['MB']:.1f}" if "MB" in row else "",
            f"{row['detections']}" if "MB" in row else "",
            f"{row['box_difference']:.1e} px, {row['score_difference']:.1e}" if "MB" in row else "",
        )
        for row in rows
    ]
    heads = ("detector", "images/s", "speed", "MB", "detections compared", "largest difference of a box, of a score")
    return str(tabulate(cells, heads, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    sys.exit(main())
