"""focal-det evaluate: COCO's scores of an exported model, without Detectron2."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EXIT_DONE, Findings, InputError, visible
from ..files import write_text_whole
from ..output_layout import DRAWINGS_SHEET
from .common import add_number, add_out, add_outside_flag, add_tile_flags, add_trust_flag, make_folder, too_low

if TYPE_CHECKING:
    from ..data.dataset_spec import OwnSet
    from ..evaluation.coco_scores import Evaluation

_DETECTIONS, _SCORES, _SHEET = "detections.json", "scores.json", DRAWINGS_SHEET

_EPILOG = """examples:
  your own images      focal-det evaluate --model mine.onnx --json val.json --images images/val
  Pascal VOC           focal-det evaluate --model mine.onnx --voc VOCdevkit/mine:val
  the quickstart       focal-det evaluate --model models/quickstart_int8.onnx --shapes shapes_val_200_128px

A checkpoint is evaluated by train_net.py --eval-only, in tiles with MODEL.FOCAL_DET.TILES.SIZE.

exit codes: 0 done; 1 a fault while running or writing; 2 bad input and nothing written
"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], summary: str) -> None:
    """Add "evaluate"."""
    parser = commands.add_parser(
        "evaluate",
        help=summary,
        description="Detect with an exported model on the images of an annotation file and print COCO's scores; "
        f"write {_DETECTIONS} (COCO's results format), {_SCORES} and {_SHEET} to --out.",
        epilog=_EPILOG,
    )
    parser.add_argument("--model", required=True, metavar="FILE", help="that focal-det export wrote: .onnx or .pt2")
    add_trust_flag(parser)
    parser.add_argument("--json", metavar="FILE", help="COCO annotations")
    parser.add_argument("--images", metavar="DIR", help="folder of their images")
    parser.add_argument("--voc", metavar="DIR[:SPLIT]", help="instead: Pascal VOC's folder (split: val, else test)")
    add_outside_flag(parser)
    add_number(parser, "--skip-bad-images", 0, "decode all images first and leave out up to N bad ones")
    parser.add_argument("--shapes", metavar="NAME", help="instead: generated shapes, drawn if they are not there yet")
    add_number(parser, "--batch-size", 8, "images or tiles at a time")
    add_tile_flags(parser)
    add_number(parser, "--draw", 16, "images to draw")
    add_number(parser, "--draw-score-thresh", 0.4, "least score that is drawn")
    add_out(parser, "output/evaluation")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier evaluation in --out")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from ..evaluation.coco_scores import evaluate
    from ..evaluation.detect import detect_all
    from ..evaluation.side_by_side import draw_beside
    from ..inference.drawing import write_image
    from ..inference.exported import ExportedDetector
    from ..inference.images import ImageError

    _check_options(args)
    detector = ExportedDetector(args.model, trusted=args.trust_model, tile=args.tile, overlap=args.overlap)
    annotations, images, coco_file = _data(args, detector.class_names)
    print("".join(f"{visible(note)}\n" for note in coco_file.notes), end="")
    make_folder(args.out)
    try:
        detections = detect_all(detector, coco_file.coco, Path(images), batch_size=args.batch_size)
    except ImageError as error:
        raise InputError(str(error)) from error
    scores = evaluate(coco_file.coco, detections)
    write_text_whole(args.out / _DETECTIONS, json.dumps(detections))
    write_text_whole(args.out / _SCORES, json.dumps(_as_json(scores, args.model, annotations), indent=1))
    print(_table(scores), *scores.explain(), sep="\n")
    if args.draw:
        count, least = args.draw, args.draw_score_thresh
        drawn = draw_beside(coco_file.coco, detections, Path(images), count=count, score_thresh=least)
        write_image(args.out / _SHEET, drawn)
        print(f"ground truth beside detections: {args.out / _SHEET}")
    print(f"{args.out / _DETECTIONS}, {args.out / _SCORES}")
    return EXIT_DONE


def _check_options(args: argparse.Namespace) -> None:
    from ..data.tiling import tile_problems

    problems = too_low(args, {"--batch-size": 1, "--skip-bad-images": 0, "--draw": 0})
    problems += tile_problems(args.tile, args.overlap, ("--tile", "--overlap"))
    if (args.json is None) != (args.images is None):
        problems.append("--json and --images go together: both are needed")
    if sum(given is not None for given in (args.json, args.voc, args.shapes)) != 1:
        problems.append("give one of --json FILE --images DIR, --voc DIR[:SPLIT] and --shapes NAME")
    written = [os.path.realpath(args.out / name) for name in (_DETECTIONS, _SCORES)]
    if args.json is not None and os.path.realpath(args.json) in written:
        problems.append(f"--out {args.out}: its {Path(args.json).name} is --json itself; name another folder")
    there = [name for name in (_DETECTIONS, _SCORES, _SHEET) if (args.out / name).exists()]
    if there and not args.overwrite:
        problems.append(f"--out {args.out}: holds {', '.join(there)} already; name another, or add --overwrite")
    if not 0 <= args.draw_score_thresh <= 1:
        problems.append(f"--draw-score-thresh {args.draw_score_thresh} must be in [0, 1]")
    Findings(problems).raise_if_errors()


def _data(args: argparse.Namespace, class_names: Sequence[str]) -> OwnSet:
    """Read and check the annotations; VOC's classes get the model's order."""
    from ..data.dataset_spec import OwnSet, read_sources, voc_source
    from ..data.shapes import make_shapes, shapes_files
    from ..files import datasets_root
    from ..formats.coco import read_coco

    if args.voc is not None:
        sources = {"voc": voc_source("val", args.voc)}
        sets, problems = read_sources(sources, class_names=class_names, allow_outside=args.allow_outside)
        Findings(problems).raise_if_errors()
        return sets["voc"]
    annotations, images = args.json, args.images
    if args.shapes is not None:
        try:
            make_shapes(args.shapes, datasets_root())
        except ValueError as error:
            raise InputError(f"--shapes: {error}") from error
        except OSError as error:
            place = f"--shapes {args.shapes} cannot be drawn under {datasets_root()} ({error})"
            raise InputError(f"{place}; set DETECTRON2_DATASETS to a folder that can be written") from error
        annotations, images = (str(path) for path in shapes_files(args.shapes, datasets_root()))
    skip, outside = args.skip_bad_images, args.allow_outside
    file = read_coco(annotations, images, allow_outside=outside, skip_bad_images=skip, decode=skip > 0)
    return OwnSet(annotations, images, file)


def _table(scores: Evaluation) -> str:
    from tabulate import tabulate

    rows = [("all", scores.AP, scores.AP50, scores.AR, scores.objects)]
    rows += [(c.name, c.AP, c.AP50, c.AR, c.objects) for c in scores.classes]
    table = tabulate(rows, ("class", "AP", "AP50", "recall (AR)", "objects"), floatfmt=".1f")
    return f"{table}\nAP75 {scores.AP75:.1f}, small {scores.APs:.1f}, medium {scores.APm:.1f}, large {scores.APl:.1f}"


def _as_json(scores: Evaluation, model: str, annotations: str) -> dict[str, Any]:
    """Return the scores as plain data, with null for nan, which JSON lacks."""
    figures = {name: getattr(scores, name) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")}
    rows = [figures, *(dataclasses.asdict(c) for c in scores.classes)]
    all_classes, *classes = ({key: None if value != value else value for key, value in row.items()} for row in rows)
    return {"model": model, "annotations": annotations, **all_classes, "classes": classes}
