"""focal-det evaluate: COCO's scores of an exported model, without Detectron2."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.dataset_spec import USES, OwnSet, SetSource
from ..errors import EXIT_DONE, Findings, InputError, print_problems
from ..files import write_text_whole
from ..output_layout import DRAWINGS_SHEET
from ..preflight.own_datasets import NamedSources, name_sets
from .common import add_number, add_out, add_tile_flags, add_trust_flag, make_folder, print_notes, too_low
from .data_flags import add_change_flags, add_data_flags, changes_of, set_flags

if TYPE_CHECKING:
    from ..evaluation.coco_scores import Evaluation
    from ..evaluation.diagnosis import Diagnosis

_DETECTIONS, _SCORES, _SHEET = "detections.json", "scores.json", DRAWINGS_SHEET

_EPILOG = """examples:
  a run's test set     focal-det evaluate --model output/mine.onnx --run output/mine
  your own images      focal-det evaluate --model mine.onnx --json val.json --images images/val
  any format           focal-det evaluate --model mine.onnx --val my_export
  a part set aside     focal-det evaluate --model mine.onnx --train my_export --split-val 0.2
  Pascal VOC           focal-det evaluate --model mine.onnx --voc VOCdevkit/mine:val
  the quickstart       focal-det evaluate --model models/quickstart_int8.onnx --shapes shapes_val_200_128px

--train, --val and what changes the sets mean what they mean in a training, of which one set is evaluated on: with
--split-val the images that were set aside. Several sets to train on are split together, so then evaluate on the file
that the run has written: --json OUTPUT_DIR/annotations/val_data.json. Classes are found by name, whatever their ids.

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
    parser.add_argument(
        "--run",
        dest="run_dir",
        metavar="DIR",
        help="the set that this OUTPUT_DIR of a training was evaluated on, in any format and split as there",
    )
    for flag, metavar in (("json", "FILE"), ("images", "DIR"), ("voc", "DIR[:SPLIT]")):
        text = f"the same as --val-{flag}"
        parser.add_argument(f"--{flag}", dest=f"val_{flag}", action="append", default=[], metavar=metavar, help=text)
    add_data_flags(parser)
    add_change_flags(parser)
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
    from ..evaluation.diagnosis import diagnose
    from ..evaluation.side_by_side import draw_beside
    from ..inference.drawing import write_image
    from ..inference.exported import ExportedDetector
    from ..inference.images import ImageError

    named = _check_options(args)
    options = {"batch_size": args.batch_size, "tile": args.tile, "overlap": args.overlap}
    detector = ExportedDetector(args.model, trusted=args.trust_model, **options)
    annotations, images, coco_file = _read(args, named, detector.class_names)
    print_notes(coco_file.notes)
    make_folder(args.out, _DETECTIONS, _SCORES, _SHEET)
    try:
        detections = detect_all(detector, coco_file.coco, Path(images), batch_size=args.batch_size)
    except ImageError as error:
        raise InputError(str(error)) from error
    scores, diagnosis = evaluate(coco_file.coco, detections), diagnose(coco_file.coco, detections)
    as_json = {**_as_json(scores, args.model, annotations), **_diagnosis_as_json(diagnosis)}
    write_text_whole(args.out / _DETECTIONS, json.dumps(detections))
    write_text_whole(args.out / _SCORES, json.dumps(as_json, indent=1))
    print(_table(scores), *scores.explain(), *_diagnosis_lines(diagnosis), sep="\n")
    if args.draw:
        count, least = args.draw, args.draw_score_thresh
        drawn = draw_beside(coco_file.coco, detections, Path(images), count=count, score_thresh=least)
        write_image(args.out / _SHEET, drawn)
        print(f"ground truth beside detections: {args.out / _SHEET}")
    print(f"{args.out / _DETECTIONS}, {args.out / _SCORES}")
    return EXIT_DONE


def _check_options(args: argparse.Namespace) -> NamedSources:
    """Return the sets that flags name; raise an InputError for what is wrong with the flags."""
    from ..data.tiling import tile_problems

    problems = too_low(args, {"--batch-size": 1, "--skip-bad-images": 0, "--draw": 0})
    problems += tile_problems(args.tile, args.overlap, ("--tile", "--overlap"))
    named, found = name_sets({use: set_flags(args, use) for use in USES}, dict.fromkeys(USES, ()), changes_of(args))
    others = (args.run_dir, args.shapes)
    number = len(named.names["val"]) + sum(other is not None for other in others)
    if len(args.val_json) != len(args.val_images):
        problems.append("--json and --images go together: both are needed")
    elif found.errors:
        problems += found.errors
    elif args.split_val and not named.names["train"]:
        problems.append("--split-val sets images of a set to train on aside; name it by --train")
    elif named.names["train"] and (set_flags(args, "val").are_given or others != (None, None)):
        problems.append("the part of --train for it is evaluated on, and another set is named; leave one of them out")
    elif number != 1:
        of_train = ", since that of --train has no part for it" if args.train_data and not number else ""
        forms = (
            "--run DIR, --val PATH, --train PATH --split-val SHARE, --json FILE --images DIR, --voc DIR[:SPLIT], "
            "--shapes NAME"
        )
        problems.append(f"{number or 'no'} sets to evaluate on are named{of_train}; give one, by one of {forms}")
    written = [os.path.realpath(args.out / name) for name in (_DETECTIONS, _SCORES)]
    if any(os.path.realpath(path) in written for path in args.val_json):
        problems.append(f"--out {args.out}: its {Path(args.val_json[0]).name} is --json itself; name another folder")
    there = [name for name in (_DETECTIONS, _SCORES, _SHEET) if (args.out / name).exists()]
    if there and not args.overwrite:
        problems.append(f"--out {args.out}: holds {', '.join(there)} already; name another, or add --overwrite")
    if not 0 <= args.draw_score_thresh <= 1:
        problems.append(f"--draw-score-thresh {args.draw_score_thresh} must be in [0, 1]")
    Findings(problems).raise_if_errors()
    print_problems(found.warnings, "warning")
    return named


def _read(args: argparse.Namespace, named: NamedSources, class_names: Sequence[str]) -> OwnSet:
    """Read and check the set, with the changes to it; classes that its format does not number get the model's order."""
    from ..data.split import read_sets

    sources: Mapping[str, SetSource] = {name: named.sources[name] for name in named.names["val"]}
    if args.shapes is not None:
        sources = {"shapes": _shapes(args.shapes)}
    if args.run_dir is not None:
        sources = {"run": SetSource("val", "json", *_set_of_run(args.run_dir))}
    skip = args.skip_bad_images
    sets, problems = read_sets(
        sources,
        split=named.changes.split,
        class_map=named.changes.class_map,
        class_names=class_names,
        allow_outside=args.allow_outside,
        skip_bad_images=skip,
        decode=skip > 0,
    )
    Findings(problems).raise_if_errors()
    (own,) = sets.values()
    return own


def _shapes(name: str) -> SetSource:
    """Draw generated shapes if they are not there yet."""
    from ..data.shapes import make_shapes, shapes_files
    from ..files import datasets_root

    try:
        make_shapes(name, datasets_root())
    except ValueError as error:
        raise InputError(f"--shapes: {error}") from error
    except OSError as error:
        place = f"--shapes {name} cannot be drawn under {datasets_root()} ({error})"
        raise InputError(f"{place}; set DETECTRON2_DATASETS to a folder that can be written") from error
    annotations, images = map(str, shapes_files(name, datasets_root()))
    return SetSource("val", "json", annotations, images)


def _set_of_run(run_dir: str) -> tuple[str, str]:
    """Return the file of annotations and the folder of images that a run was evaluated on."""
    from ..report.run_files import read_run

    found = read_run(Path(run_dir)).sets
    sets = [one for one in found if one.annotations is not None and one.image_dir is not None]
    if not sets:
        why = "".join(f" {one.name}: {one.problem}" for one in found if one.problem)
        fix = "name them, where they are now, by --json FILE --images DIR"
        raise InputError(f"--run {run_dir}: has no evaluation with annotations and images; {fix}.{why}")
    if len(sets) > 1:
        each = "; ".join(f"--json {one.file} --images {one.image_dir}" for one in sets)
        raise InputError(f"--run {run_dir}: was evaluated on {len(sets)} sets; name one of them: {each}")
    file, image_dir = str(sets[0].file), os.path.normpath(str(sets[0].image_dir))
    if not os.path.isdir(image_dir):
        now = f"where they are now: --json {file} --images DIR"
        raise InputError(f"--run {run_dir}: its images were in {image_dir}, which is not there; name the folder {now}")
    return file, image_dir


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


def _diagnosis_lines(diagnosis: Diagnosis | None) -> list[str]:
    if diagnosis is None:
        return []
    lines = ["AP50 gained without: " + ", ".join(f"{cause.name} {cause.gain:.1f}" for cause in diagnosis.causes)]
    if best := diagnosis.best_threshold():
        kept = f"precision {best.precision:.2f}, recall {best.recall:.2f}"
        lines.append(f"best F1 {best.f1:.2f} at a least score of {best.threshold:g}: {kept}")
    return lines


def _diagnosis_as_json(diagnosis: Diagnosis | None) -> dict[str, Any]:
    """Return the causes and the threshold with the best F1, null where they cannot be computed."""
    best = diagnosis.best_threshold() if diagnosis else None
    causes = [cause._asdict() for cause in diagnosis.causes] if diagnosis else None
    return {"causes": causes, "best_threshold": best._asdict() if best else None}
