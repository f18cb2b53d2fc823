"""focal-det evaluate: COCO's scores of an exported model, without Detectron2."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EXIT_DONE, InputError
from ..files import write_text_whole
from .common import add_outside_flag, add_trust_flag, folder_name, make_folder

if TYPE_CHECKING:
    from ..data.coco_json import CocoFile
    from ..evaluation.coco import Evaluation

_DETECTIONS, _SCORES, _SHEET = "detections.json", "scores.json", "detections.png"

_EPILOG = """examples:
  your own pictures    focal-det evaluate --model mine.onnx --json val.json --images pictures/val
  Pascal VOC           focal-det evaluate --model mine.onnx --voc VOCdevkit/mine:val
  the quickstart       focal-det evaluate --model models/quickstart_int8.onnx --shapes shapes_val_200_128px

A checkpoint is evaluated by train_net.py --eval-only.

exit codes: 0 done; 1 a fault while running or writing; 2 bad input and nothing written
"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add "evaluate"."""
    parser = commands.add_parser(
        "evaluate",
        help="score an exported model against annotations, without Detectron2",
        description="Detect with an exported model on the pictures of an annotation file and print COCO's scores; "
        f"write {_DETECTIONS} (COCO's results format), {_SCORES} and {_SHEET} to --out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, metavar="FILE", help="that focal-det export wrote: .onnx or .pt2")
    add_trust_flag(parser)
    parser.add_argument("--json", metavar="FILE", help="COCO annotations")
    parser.add_argument("--images", metavar="DIR", help="folder of their pictures")
    parser.add_argument("--voc", metavar="DIR[:SPLIT]", help="instead: Pascal VOC's folder (split: val, else test)")
    add_outside_flag(parser)
    parser.add_argument(
        "--skip-bad-images",
        type=int,
        default=0,
        metavar="N",
        help="decode all pictures first and leave out up to N bad ones (default 0)",
    )
    parser.add_argument("--shapes", metavar="NAME", help="instead: generated shapes, drawn if they are not there yet")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="pictures at a time (default 8)")
    parser.add_argument("--draw", type=int, default=16, metavar="N", help="pictures to draw (default 16)")
    parser.add_argument(
        "--draw-score-thresh", type=float, default=0.4, metavar="T", help="least score that is drawn (default 0.4)"
    )
    default = Path("output/evaluation")
    parser.add_argument("--out", type=folder_name, default=default, metavar="DIR", help=f"default: {default}")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier evaluation in --out")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from ..evaluation.coco import evaluate
    from ..evaluation.detect import detect_all
    from ..inference.exported import ExportedDetector
    from ..inference.pictures import PictureError

    _check_options(args)
    detector = ExportedDetector(args.model, trusted=args.trust_model)
    annotations, images, coco_file = _data(args, detector.class_names)
    for note in coco_file.notes:
        print(note)
    make_folder(args.out)
    try:
        detections = detect_all(detector, coco_file.coco, Path(images), batch_size=args.batch_size)
    except PictureError as error:
        raise InputError(str(error)) from error
    scores = evaluate(coco_file.coco, detections)
    write_text_whole(args.out / _DETECTIONS, json.dumps(detections))
    write_text_whole(args.out / _SCORES, json.dumps(_as_json(scores, args.model, annotations), indent=1))
    print(_table(scores))
    for line in scores.explain():
        print(line)
    if args.draw:
        print(f"ground truth beside detections: {_draw(args, coco_file.coco, detections, Path(images))}")
    print(f"{args.out / _DETECTIONS}, {args.out / _SCORES}")
    return EXIT_DONE


def _check_options(args: argparse.Namespace) -> None:
    problems = []
    if (args.json is None) != (args.images is None):
        problems.append("--json and --images go together: both are needed")
    if sum(given is not None for given in (args.json, args.voc, args.shapes)) != 1:
        problems.append("give one of --json FILE --images DIR, --voc DIR[:SPLIT] and --shapes NAME")
    if args.batch_size < 1:
        problems.append(f"--batch-size {args.batch_size} must be at least 1")
    if args.skip_bad_images < 0:
        problems.append(f"--skip-bad-images {args.skip_bad_images} must be at least 0")
    if args.draw < 0:
        problems.append(f"--draw {args.draw} must be at least 0")
    if args.json is not None and Path(args.json).resolve() in [
        (args.out / n).resolve() for n in (_DETECTIONS, _SCORES)
    ]:
        problems.append(f"--out {args.out}: its {Path(args.json).name} is --json itself; name another folder")
    there = [name for name in (_DETECTIONS, _SCORES, _SHEET) if (args.out / name).exists()]
    if there and not args.overwrite:
        problems.append(f"--out {args.out}: holds {', '.join(there)} already; name another, or add --overwrite")
    if not 0 <= args.draw_score_thresh <= 1:
        problems.append(f"--draw-score-thresh {args.draw_score_thresh} must be in [0, 1]")
    if problems:
        raise InputError(problems)


def _data(args: argparse.Namespace, class_names: Sequence[str]) -> tuple[str, str, CocoFile]:
    """Where the annotations are, the folder of pictures, and what was read; VOC's classes in the model's order."""
    from ..data.coco_json import read_coco
    from ..data.folders import datasets_root
    from ..data.shapes import make_shapes, shapes_files
    from ..data.sources import read_sources, voc_source

    checks: dict[str, Any] = {
        "allow_outside": args.allow_outside,
        "skip_bad_images": args.skip_bad_images,
        "decode": args.skip_bad_images > 0,
    }
    if args.voc is not None:
        sets, problems = read_sources(
            {"voc": voc_source("val", args.voc)}, class_names=class_names, allow_outside=args.allow_outside
        )
        if problems:
            raise InputError(problems)
        return sets["voc"].place, sets["voc"].image_dir, sets["voc"].file
    annotations, images = args.json, args.images
    if args.shapes is not None:
        try:
            make_shapes(args.shapes, datasets_root())
        except ValueError as error:
            raise InputError(f"--shapes: {error}") from error
        except OSError as error:
            raise InputError(
                f"--shapes {args.shapes} cannot be drawn under {datasets_root()} ({error}); set DETECTRON2_DATASETS to "
                "a folder that can be written"
            ) from error
        annotations, images = (str(path) for path in shapes_files(args.shapes, datasets_root()))
    return annotations, images, read_coco(annotations, images, **checks)


def _table(scores: Evaluation) -> str:
    from tabulate import tabulate

    rows = [("all", scores.AP, scores.AP50, scores.AR, scores.objects)]
    rows += [(c.name, c.AP, c.AP50, c.AR, c.objects) for c in scores.classes]
    table: str = tabulate(rows, ("class", "AP", "AP50", "recall (AR)", "objects"), floatfmt=".1f")
    return f"{table}\nAP75 {scores.AP75:.1f}, small {scores.APs:.1f}, medium {scores.APm:.1f}, large {scores.APl:.1f}"


def _as_json(scores: Evaluation, model: str, annotations: str) -> dict[str, Any]:
    """JSON has no nan: null instead."""
    figures = {name: getattr(scores, name) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")}
    rows = [figures, *(dataclasses.asdict(c) for c in scores.classes)]
    whole, *classes = ({key: None if value != value else value for key, value in row.items()} for row in rows)
    return {"model": model, "annotations": annotations, **whole, "classes": classes}


def _draw(args: argparse.Namespace, coco: dict[str, Any], detections: list[dict[str, Any]], folder: Path) -> Path:
    from ..evaluation.drawing import draw_beside
    from ..inference.drawing import write_picture

    path: Path = args.out / _SHEET
    picture = draw_beside(coco, detections, folder, count=args.draw, score_thresh=args.draw_score_thresh)
    write_picture(path, picture)
    return path
