"""focal-det export: a trained detector as one file that runs without Detectron2."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.statistics import evenly_spread
from ..errors import EXIT_DONE, EXIT_FAULT, Findings, InputError, print_problems
from ..inference.inputs import find_inputs
from ..output_layout import INFERENCE
from .common import add_number, add_plugin_flag, check_architecture, config_files, too_low

if TYPE_CHECKING:
    from ..data.tiling import Tiles
    from ..engine.predictor import Predictor

_EPILOG = """examples:
  a training's best       focal-det export --run output/mine --out mine.onnx --check images/val
  a quarter of the size   focal-det export --run output/mine --out mine.onnx --weights-format int8
  for PyTorch             focal-det export --run output/mine --out mine.pt2
  other weights           focal-det export --weights model.pth --config-file mine.yaml --out mine.onnx

The file takes batches of images of any size and includes all post-processing. Before it is kept, its detections
are compared with the model's, image by image; if they differ, no file is written. focal-det evaluate shows what
the rounding of int8 costs.

exit codes: 0 done; 1 the exported model differs from the model; 2 bad input and nothing written
"""

_SIDES = ((96, 128), (128, 128), (150, 101), (333, 200), (64, 300), (480, 640), (31, 47), (257, 129))


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], summary: str) -> None:
    """Add "export"."""
    parser = commands.add_parser(
        "export",
        help=summary,
        description="Write a trained detector as one file, .onnx or .pt2, that runs without Detectron2.",
        epilog=_EPILOG,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys to change")
    parser.add_argument("--run", metavar="DIR", dest="run_dir", help="OUTPUT_DIR of a training: its best weights")
    parser.add_argument("--weights", metavar="FILE", help="a checkpoint instead")
    parser.add_argument("--config-file", action="append", metavar="FILE", help="of --weights (default: beside it)")
    parser.add_argument("--out", required=True, metavar="FILE", help="to write: .onnx or .pt2")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it is there")
    text = "least score that leaves the graph (default: the model's, .05)"
    parser.add_argument("--score-thresh", type=float, metavar="T", help=text)
    text = "int8: convolutions' weights rounded to 8 bits per output channel, ONNX only (default: float32)"
    parser.add_argument("--weights-format", choices=("float32", "int8"), default="float32", help=text)
    text = "images to compare on: a file, folder or pattern (default: the run's own, else generated)"
    parser.add_argument("--check", metavar="INPUT", help=text)
    add_number(parser, "--check-pictures", 50, "at most")
    add_plugin_flag(parser)
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    out = _checked_out(args)
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..export.int8 import round_to_8_bits
    from ..export.parity import compare
    from ..inference.exported import ExportedDetector

    (predictor, tiles), images = _predictor(args), _images(args)
    rounded = args.weights_format == "int8"
    if rounded:
        round_to_8_bits(predictor.model)
    if not any(len(predictor([image])[0]) for image in images):
        raise InputError(
            f"the model finds nothing in the {len(images)} images to compare on, so there is nothing to compare: "
            "name images with objects by --check, or give a lower --score-thresh"
        )
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent)) / out.name
    try:
        print(f"exporting to {out}: a minute for a large model", flush=True)
        thresh = _write(predictor, tiles, partial, int8=rounded)
        exported = ExportedDetector(partial, trusted=True, tile=0)  # ours
        parity = compare(predictor, exported, images, cut=thresh, most=predictor.cfg.TEST.DETECTIONS_PER_IMAGE)
        if parity.problems:
            print_problems([*parity.problems, f"the exported model differs from the model: {out} was not written"])
            return EXIT_FAULT
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
        partial.parent.rmdir()
    print(f"the same as the model{' with its weights rounded' if rounded else ''}: {parity}")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {len(predictor.class_names)} classes, scores from {thresh:g}")
    return EXIT_DONE


def _write(predictor: Predictor, tiles: Tiles, path: Path, *, int8: bool) -> float:
    """Write the file and return the score threshold in it."""
    from ..export.program import export_onnx, export_torch
    from ..inference.exported import Metadata

    cfg = predictor.cfg
    metadata = Metadata(
        class_names=list(predictor.class_names),
        category_ids=list(predictor.category_ids),
        channels=cfg.INPUT.FORMAT,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        score_thresh=cfg.MODEL.RETINANET.SCORE_THRESH_TEST,
        tile=tiles.size,
        overlap=tiles.overlap,
    )
    if path.suffix == ".onnx":
        export_onnx(predictor.model, metadata, path, int8=int8)
    else:
        export_torch(predictor.model, metadata, path)
    return metadata.score_thresh


def _predictor(args: argparse.Namespace) -> tuple[Predictor, Tiles]:
    """Build the model in float32 on the processor, as a graph holds it, for whole images; also return its tiles."""
    from ..config.load import load_config
    from ..data.tile_records import tiles_of
    from ..engine.predictor import Predictor, files_of_run

    if (args.run_dir is None) == (args.weights is None):
        raise InputError("give one of --run OUTPUT_DIR and --weights FILE")
    weights = args.weights if args.run_dir is None else files_of_run(Path(args.run_dir))[1]
    off = dict.fromkeys(("BFLOAT16_INFERENCE", "COMPILE", "CUDA_GRAPHS"), "False") | {"PAD_TO": "[]"}
    settings = [word for name, value in off.items() for word in (f"MODEL.FOCAL_DET.SPEED.{name}", value)]
    cfg = load_config(config_files(args.config_file, weights), [*args.overrides, *settings])
    if args.score_thresh is not None:
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = args.score_thresh
    check_architecture(cfg, "exported")
    return Predictor(cfg, weights, device="cpu", tile=0), tiles_of(cfg)


def _checked_out(args: argparse.Namespace) -> Path:
    out = Path(args.out)
    problems = too_low(args, {"--check-pictures": 1})
    if out.suffix not in (".onnx", ".pt2"):
        problems.append(f"--out {out}: must end in .onnx or, for torch.export, .pt2")
    if args.weights_format == "int8" and out.suffix == ".pt2":
        problems.append("--weights-format int8 is for .onnx alone")
    if out.is_dir():
        problems.append(f"--out {out}: is a folder; name a file")
    elif out.exists() and not args.overwrite:
        problems.append(f"--out {out}: already exists; name another, or add --overwrite")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        problems.append(f"--out {out}: {out.parent} is not a folder that can be written; make it or name another")
    if args.score_thresh is not None and not 0 <= args.score_thresh < 1:
        problems.append(f"--score-thresh {args.score_thresh} must be in [0, 1)")
    Findings(problems).raise_if_errors()
    return out


def _images(args: argparse.Namespace) -> list[np.ndarray[Any, Any]]:
    """Return images to compare on, (H, W, 3) uint8 BGR: those of --check, else the run's own, else generated ones."""
    from ..data.shapes import draw_image
    from ..inference.images import ImageError, read_image

    if args.check is not None:
        files = [file.path for file in find_inputs([args.check], (), Path(args.out)).found]
    else:
        files = _own_images(Path(args.run_dir)) if args.run_dir else []
    if not files:
        drawn = [(draw_image("val", i, max(sides))[0], *sides) for i, sides in enumerate(_SIDES)]
        return [np.ascontiguousarray(image[:height, :width]) for image, height, width in drawn]
    try:
        return [read_image(path) for path in dict.fromkeys(evenly_spread(files, args.check_pictures))]
    except ImageError as error:
        raise InputError(f"--check: {error}") from error


def _own_images(run_dir: Path) -> list[Path]:
    """Return the images that the training was evaluated on, as far as they still exist."""
    from ..report.run_files import read_run

    if not (run_dir / INFERENCE).is_dir():
        return []
    files = [
        found.image_dir / image["file_name"]
        for found in read_run(run_dir).sets
        if found.annotations is not None and found.image_dir is not None
        for image in found.annotations["images"]
    ]
    return [path for path in files if path.is_file()]
