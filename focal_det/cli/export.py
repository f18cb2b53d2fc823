"""focal-det export: a trained detector as one file that runs without Detectron2, and a card beside it."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..environment import source_version
from ..errors import EXIT_DONE, EXIT_FAULT, Findings, InputError, print_problems
from ..preflight.options import keys_given_twice
from .common import add_number, add_plugin_flag, check_architecture, config_files, too_low
from .data_flags import key_flags

if TYPE_CHECKING:
    import numpy as np

    from ..data.tiling import Tiles
    from ..engine.predictor import Predictor
    from ..inference.exported import Metadata

_EPILOG = """examples:
  a training's best       focal-det export --run output/mine --out mine.onnx --check images/val
  a quarter of the size   focal-det export --run output/mine --out mine.onnx --weights-format int8
  and faster              focal-det export --run output/mine --out mine.onnx --activations-format int8
  for PyTorch             focal-det export --run output/mine --out mine.pt2
  weights alone           focal-det export --run output/mine --out mine.safetensors
  other weights           focal-det export --weights model.pth --config-file mine.yaml --out mine.onnx

The file takes batches of images of any size and includes all post-processing. Before it is kept, its detections
are compared with the model's, image by image; if they differ, no file is written. focal-det evaluate shows what
the rounding of int8 weights costs. Activations in int8 change detections, so then AP is measured before and after
on the set that the run was evaluated on, and no file is written where it falls by more than --max-ap-drop.
FILE.card.json beside the file says what it detects, how it is fed, its AP and where it comes from.

exit codes: 0 done; 1 the exported model differs from the model; 2 bad input and nothing written
"""

_FORMATS = {".onnx": "ONNX", ".pt2": "torch.export", ".safetensors": "safetensors, weights alone"}
_MOST_SCORED = 500  # images, spread evenly over a set: a minute or two on a processor


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], summary: str) -> None:
    """Add "export"."""
    parser = commands.add_parser(
        "export",
        help=summary,
        description="Write a trained detector as one file, .onnx or .pt2, that runs without Detectron2; or its weights "
        "alone, as .safetensors.",
        epilog=_EPILOG,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys to change")
    parser.add_argument("--run", metavar="DIR", dest="run_dir", help="OUTPUT_DIR of a training: its best weights")
    parser.add_argument("--weights", metavar="FILE", help="a checkpoint instead")
    parser.add_argument("--config-file", action="append", metavar="FILE", help="of --weights (default: beside it)")
    parser.add_argument("--out", required=True, metavar="FILE", help="to write: .onnx, .pt2 or .safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace --out and its card if they are there")
    text = "least score that leaves the graph (default: the model's, .05)"
    parser.add_argument("--score-thresh", type=float, metavar="T", help=text)
    text = "int8: convolutions' weights rounded to 8 bits per output channel, ONNX only (default: float32)"
    parser.add_argument("--weights-format", choices=("float32", "int8"), default="float32", help=text)
    text = "int8: convolutions computed in 8 bits, weights too, ONNX only, needs --run (default: float32)"
    parser.add_argument("--activations-format", choices=("float32", "int8"), default="float32", help=text)
    text = "images that give the activations' ranges: a file, folder or pattern (default: the run's training images)"
    parser.add_argument("--calibrate", metavar="INPUT", help=text)
    add_number(parser, "--calibrate-images", 100, "at most")
    add_number(parser, "--max-ap-drop", 1.0, "largest fall of AP by int8 activations that is accepted, in points")
    text = "images to compare on: a file, folder or pattern (default: the run's own, else generated)"
    parser.add_argument("--check", metavar="INPUT", help=text)
    add_number(parser, "--check-pictures", 50, "at most")
    text = "of the weights, for the card, such as CC-BY-4.0 (default: unknown)"
    parser.add_argument("--license", default="unknown", metavar="NAME", help=text)
    add_plugin_flag(parser)
    parser.set_defaults(run=_export)


class _Written(NamedTuple):
    """A file that was written: how it compares with the model, facts for its card, and why not to keep it, if so."""

    summary: str
    facts: dict[str, Any]
    problems: list[str]


def _export(args: argparse.Namespace) -> int:
    out = _checked_out(args)
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..export.card import card_of, make_card, write_card

    predictor, tiles = _predictor(args)
    metadata = _metadata(predictor, tiles)
    write = _write_weights if out.suffix == ".safetensors" else _write_graph
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        partial = Path(folder) / out.name
        written = write(args, predictor, metadata, partial)
        if written.problems:
            *first, reason = written.problems
            print_problems([*first, f"{reason}: {out} was not written"])
            return EXIT_FAULT
        facts = {"format": _FORMATS[out.suffix], **written.facts, **_origin(args, predictor), "license": args.license}
        write_card(card_of(partial), make_card(partial, out.name, metadata, facts))
        card_of(out).unlink(missing_ok=True)  # so that no file ever stands beside the card of another
        partial.replace(out)
        card_of(partial).replace(card_of(out))
    print(written.summary)
    scores = f", scores from {metadata.score_thresh:g}" if write is _write_graph else ""
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {len(metadata.class_names)} classes{scores}")
    print(f"{card_of(out)}: what it detects, how it is fed, and where it comes from")
    return EXIT_DONE


def _write_weights(args: argparse.Namespace, predictor: Predictor, metadata: Metadata, path: Path) -> _Written:
    """Write weights alone and read them back."""
    import torch

    from ..checkpoint.safe_load import load_safetensors
    from ..export.program import export_weights

    export_weights(predictor.model, metadata, path)
    back, ours = load_safetensors(path), predictor.model.state_dict()
    same = back.keys() == ours.keys() and all(torch.equal(back[name], value) for name, value in ours.items())
    summary = f"read back: {len(ours)} tensors, equal in every bit"
    return _Written(summary, {"tensors": len(ours)}, [] if same else ["the weights read back are not the model's"])


def _write_graph(args: argparse.Namespace, predictor: Predictor, metadata: Metadata, path: Path) -> _Written:
    """Write the whole detector, compare it with the model and, where it computes in 8 bits, score both."""
    from ..data.statistics import evenly_spread
    from ..export.ap_check import compare_scores
    from ..export.calibrated import calibrate_onnx
    from ..export.card import scores_of, signature
    from ..export.images_of_run import choose_images, read_images
    from ..export.int8 import round_to_8_bits
    from ..export.parity import compare
    from ..export.program import OPSET, export_onnx, export_torch
    from ..inference.exported import ExportedDetector

    calibrated, images = args.activations_format == "int8", _images_to_compare(args)
    rounded = args.weights_format == "int8" and not calibrated
    chosen = choose_images(Path(args.run_dir), args.calibrate, predictor.cfg.DATASETS.TRAIN) if calibrated else None
    if rounded:
        round_to_8_bits(predictor.model)
    if not any(len(predictor([image])[0]) for image in images):
        raise InputError(
            f"the model finds nothing in the {len(images)} images to compare on, so there is nothing to compare: "
            "name images with objects by --check, or give a lower --score-thresh"
        )
    print(f"exporting to {args.out}: a minute for a large model", flush=True)
    first = path.with_name(f"float32-{path.name}") if calibrated else path
    if path.suffix == ".onnx":
        export_onnx(predictor.model, metadata, first, int8=rounded)
    else:
        export_torch(predictor.model, metadata, first)
    exported, most = ExportedDetector(first, trusted=True, tile=0), predictor.cfg.TEST.DETECTIONS_PER_IMAGE  # ours
    parity = compare(predictor, exported, images, cut=metadata.score_thresh, most=most)
    if parity.problems:
        return _Written("", {}, [*parity.problems, "the exported model differs from the model"])
    inputs, outputs = signature(predictor.cfg)
    facts: dict[str, Any] = {
        "weights": "int8" if rounded or calibrated else "float32",
        "activations": args.activations_format,
        "graph": {**({"opset": OPSET} if path.suffix == ".onnx" else {}), "inputs": inputs, "outputs": outputs},
    }
    summary = f"the same as the model{' with its weights rounded' if rounded else ''}: {parity}"
    if chosen is None:
        return _Written(summary, {**facts, "compared_with_model": str(parity)}, [])
    scored, files = chosen[0].some(_MOST_SCORED), evenly_spread(chosen[1], args.calibrate_images)
    calibrate_onnx(first, read_images("--calibrate", files), path)
    change = compare_scores(ExportedDetector(first), ExportedDetector(path), scored, most=args.max_ap_drop)
    facts["calibrated_on"] = {"images": len(files), "from": args.calibrate or "the run's training images"}
    facts["scores"] = {"measured": "this file", **scores_of(change.after, scored.name)}
    facts["scores_in_float32"] = scores_of(change.before, scored.name)
    in_8_bits = f"in 8 bits, calibrated on {len(files)} images: {change}"
    return _Written(f"in float32 {summary}\n{in_8_bits}", facts, [change.problem] if change.problem else [])


def _metadata(predictor: Predictor, tiles: Tiles) -> Metadata:
    from ..inference.exported import Metadata

    cfg = predictor.cfg
    return Metadata(
        class_names=list(predictor.class_names),
        category_ids=list(predictor.category_ids),
        channels=cfg.INPUT.FORMAT,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        score_thresh=cfg.MODEL.RETINANET.SCORE_THRESH_TEST,
        tile=tiles.size,
        overlap=tiles.overlap,
    )


def _origin(args: argparse.Namespace, predictor: Predictor) -> dict[str, Any]:
    """Return what the card says of the model, of the training that a checkpoint records, and of its AP there."""
    from ..checkpoint.integrity import DamagedError, contents
    from ..checkpoint.run_record import RunRecord
    from ..export.card import facts_of_model

    try:
        held = contents(Path(predictor.cfg.MODEL.WEIGHTS))
    except DamagedError:  # of another format, which says nothing of its training
        held = {}
    record, best = RunRecord.read(held.get("run")), held.get("best")
    facts: dict[str, Any] = {
        **facts_of_model(predictor.cfg, in_graph=Path(args.out).suffix != ".safetensors"),
        "checkpoint": Path(predictor.cfg.MODEL.WEIGHTS).name,
        "training": None,
        "exported_by": f"focal_det {source_version()}",
    }
    if record is not None:
        sets = [{"name": each.name, "images": each.images} for each in record.training_sets]
        facts["training"] = {"focal_det": record.focal_det, "torch": record.torch, "sets": sets}
        facts["training"]["iterations"] = held["iteration"] + 1 if isinstance(held.get("iteration"), int) else None
    changed = args.overrides or args.score_thresh is not None
    if args.activations_format == "float32" and not changed and record is not None and isinstance(best, dict):
        tested, measured = record.tested_on, "the model in float32, by the evaluation in its training"
        facts["scores"] = {"measured": measured, "set": tested.name, "images": tested.images, "AP": best.get("AP")}
    return facts


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
    from ..export.card import card_of

    out = Path(args.out)
    problems = too_low(args, {"--check-pictures": 1, "--calibrate-images": 1})
    problems += keys_given_twice(args.overrides, key_flags(args))
    if out.suffix not in _FORMATS:
        problems.append(f"--out {out}: must end in .onnx, for torch.export in .pt2, or for weights in .safetensors")
    in_8_bits = [flag for flag in ("weights_format", "activations_format") if getattr(args, flag) == "int8"]
    if in_8_bits and out.suffix != ".onnx":
        problems.append(f"--{in_8_bits[0].replace('_', '-')} int8 is for .onnx alone")
    if args.activations_format == "int8" and args.run_dir is None:
        problems.append("--activations-format int8 needs --run, on whose test set AP is measured before and after")
    if args.calibrate is not None and args.activations_format != "int8":
        problems.append("--calibrate is for --activations-format int8; add it, or leave --calibrate out")
    if not args.max_ap_drop >= 0:
        problems.append(f"--max-ap-drop {args.max_ap_drop} must be at least 0")
    if out.suffix == ".safetensors" and (args.check is not None or args.score_thresh is not None):
        problems.append("--check and --score-thresh are for .onnx and .pt2; a .safetensors file has weights alone")
    if out.is_dir():
        problems.append(f"--out {out}: is a folder; name a file")
    elif there := [path for path in (out, card_of(out)) if path.exists() and not args.overwrite]:
        problems.append(f"--out {there[0]}: already exists; name another, or add --overwrite")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        problems.append(f"--out {out}: {out.parent} is not a folder that can be written; make it or name another")
    if args.score_thresh is not None and not 0 <= args.score_thresh < 1:
        problems.append(f"--score-thresh {args.score_thresh} must be in [0, 1)")
    Findings(problems).raise_if_errors()
    return out


def _images_to_compare(args: argparse.Namespace) -> list[np.ndarray[Any, Any]]:
    """Return images (H, W, 3) uint8 BGR: those of --check, else those the run was evaluated on, else generated ones."""
    from ..data.statistics import evenly_spread
    from ..export.images_of_run import annotated_sets, find_images, generated_images, read_images

    if args.check is not None:
        files = find_images("--check", args.check)
    else:
        files = [path for found in annotated_sets(Path(args.run_dir)) for path in found.files] if args.run_dir else []
    if not files:
        return generated_images()
    return list(read_images("--check", dict.fromkeys(evenly_spread(files, args.check_pictures))))
