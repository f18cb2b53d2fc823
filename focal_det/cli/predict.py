"""focal-det predict: what a detector finds in images and videos."""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..errors import EXIT_DONE, EXIT_FAULT, Findings, InputError, counted, is_out_of_memory, print_problems
from ..preflight.options import keys_given_twice
from .common import (
    add_number,
    add_out,
    add_plugin_flag,
    add_tile_flags,
    add_trust_flag,
    config_files,
    list_of,
    make_folder,
    too_low,
)
from .data_flags import key_flags

if TYPE_CHECKING:
    from ..inference.detections import Detector
    from ..inference.predicting import PredictionSummary

_EPILOG = """examples:
  a training's best model      focal-det predict images --run output/mine
  a checkpoint                 focal-det predict a.jpg b.png --weights model.pth --config-file configs/bccd.yaml
  a pattern, quoted            focal-det predict 'images/**/*.jpg' --run output/mine --score-thresh 0.6
  large images, small objects  focal-det predict images --run output/mine --tile 640 --overlap 0.2
  every tenth frame            focal-det predict clip.mp4 --run output/mine --every 10
  files for other tools        focal-det predict images --run output/mine --write coco,csv,yolo,crops
  a camera, a stream           focal-det predict 0 --run output/mine --seconds 60
  a list                       find images -newer last | focal-det predict - --run output/mine
  without Detectron2           focal-det predict images --model model.onnx

A folder stands for its images and those of its subfolders, except hidden ones and links to folders. Names in
detections.json and of the drawings are relative to the folder that all inputs share, so with one folder as INPUT
detections.json is an annotation file of it. Its images are those that could be read, its scores at least
--score-thresh; a video's frames are named clip.mp4#0, clip.mp4#10, ... Nothing is overwritten without --overwrite,
and an input never is.

--write takes coco (detections.json), csv (detections.csv), yolo (a data set in yolo/), crops (of objects, in crops/)
and drawings. A camera's number or an address (http, https, rtsp, rtmp, udp) is the only INPUT: its newest frame is
taken each time, until --frames, --seconds or Ctrl-C; a lost connection is made again within two minutes, or it ends
with 1.

exit codes: 0 done, also where some images could not be read or drawn (each is named) or nothing was found; 1 a
            fault while running, or no image could be read; 2 bad input and nothing written; 130 and 143 stopped by
            Ctrl-C or SIGTERM, with what was done until then written
"""

_KEY = re.compile(r"[A-Z][A-Z0-9_]*\.[A-Z]")  # how one begins, and how DSC1.JPG does
_LEAST_SCORE = 0.05  # the detector also gives scores down to here, so that the highest can be named if none is kept


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], summary: str) -> None:
    """Add "predict"."""
    parser = commands.add_parser(
        "predict",
        help=summary,
        description="Detect objects in images, videos, a camera or a stream; write what was found to --out.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="image, video, folder, pattern, camera; - for a list"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys to change, at the end")
    model = parser.add_argument_group("the detector: one of")
    text = "OUTPUT_DIR of a training: its best weights, else model_final.pth"
    model.add_argument("--run", dest="run_dir", metavar="DIR", help=text)
    model.add_argument("--weights", metavar="FILE", help="checkpoint")
    text = "what focal-det export wrote, .onnx or .pt2, which needs no Detectron2"
    model.add_argument("--model", metavar="FILE", help=text)
    add_trust_flag(model)
    parser.add_argument("--config-file", action="append", metavar="FILE", help="of --weights (default: beside them)")
    add_out(parser, "output/predictions")
    add_number(parser, "--score-thresh", 0.4, "keep detections with at least this score, in [0, 1]")
    add_number(
        parser, "--batch-size", 4, "images or tiles at a time; those of one size go through the network together"
    )
    add_tile_flags(parser)
    add_number(parser, "--every", 1, "take every Nth frame of a video")
    parser.add_argument("--frames", type=int, metavar="N", help="end after so many frames of a camera or stream")
    parser.add_argument("--seconds", type=float, metavar="T", help="end after so many seconds of a camera or stream")
    text = "kinds of output, with commas between: coco, csv, yolo, crops, drawings (default: coco,drawings)"
    parser.add_argument("--write", type=list_of(_kind, "kinds of output"), metavar="KINDS", help=text)
    parser.add_argument("--no-draw", action="store_true", help="short for --write coco")
    parser.add_argument("--overwrite", action="store_true", help="replace files of an earlier prediction in --out")
    add_plugin_flag(parser)
    parser.set_defaults(run=_predict)


def _kind(text: str) -> str:
    from ..inference.outputs import KINDS

    if text not in KINDS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of the kinds of output, {', '.join(KINDS)}")
    return text


def _predict(args: argparse.Namespace) -> int:
    from ..inference.inputs import Inputs, count_frames, find_inputs, read_frames
    from ..inference.outputs import Drawings, drawing_files, make_writers, output_problems
    from ..inference.predicting import StopSignals, predict_all
    from ..inference.streams import find_stream

    args.inputs, args.overrides = _split_overrides(args)
    problems = _argument_problems(args)
    try:
        stream = find_stream(args.inputs)
        if stream is None:
            files = find_inputs(args.inputs, _standard_input(), args.out)
        else:
            files = Inputs([stream.file], Path.cwd(), [])
    except InputError as error:
        raise InputError([*problems, *error.problems]) from error
    if stream is None and (args.frames, args.seconds) != (None, None):
        problems.append("--frames and --seconds are for a camera or a stream; --every takes fewer frames of a video")
    kinds = args.write or (("coco",) if args.no_draw else ("coco", "drawings"))
    drawings = drawing_files(files.found, args.out)
    problems += output_problems(kinds, drawings, args.out, overwrite=args.overwrite)
    Findings(problems).raise_if_errors()
    if stream is not None:
        stream.open()
    detector, more_notes = _detector(args)
    print_problems([*files.notes, *more_notes], "warning")
    make_folder(args.out)
    outcome = None  # what it stays where a second signal interrupts
    total = count_frames(files.found, args.every) if stream is None else args.frames
    with StopSignals() as stop, tqdm(total=total, unit="image", disable=None) as bar:

        def say(line: str) -> None:
            bar.write(f"warning: {line}", file=sys.stderr)

        if stream is None:
            frames, batch_size, ahead = read_frames(files.found, args.every), args.batch_size, 2 * args.batch_size
        else:  # whose frames are looked at while they are new
            bounds = {"every": args.every, "most": args.frames, "seconds": args.seconds}
            frames = stream.frames(**bounds, is_stopped=lambda: stop.number is not None, say=say)
            batch_size = ahead = 1
        drawn = Drawings(drawings, args.every, stream.rate if stream is not None else None)
        try:
            outcome = predict_all(
                detector,
                frames,
                make_writers(kinds, detector, args.out, drawn),
                score_thresh=args.score_thresh,
                batch_size=batch_size,
                read_ahead_of=ahead,
                stop=stop,
                on_image=bar.update,
                on_bad=say,
            )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise OSError("out of memory; give a lower --batch-size or a lower INPUT.MIN_SIZE_TEST") from error
    if stop.number is not None:
        print(f"stopped by {signal.Signals(stop.number).name}", file=sys.stderr)
    print_problems([*(outcome.notes if outcome else ()), *(stream.notes() if stream else ())], "warning")
    if outcome is not None:
        print(_summary(outcome, args, files.base))
    if stop.number is not None:
        return 128 + stop.number
    if stream is not None and stream.is_lost:
        print_problems([f"INPUT {stream.shown}: the connection is lost; what was found until then is written"])
        return EXIT_FAULT
    return EXIT_DONE if outcome and outcome.images else EXIT_FAULT


def _standard_input() -> Iterable[str]:
    """Return its lines as names of files, in which bytes that are not UTF-8 are kept."""
    binary = getattr(sys.stdin, "buffer", None)
    return sys.stdin if binary is None else map(os.fsdecode, binary)


def _split_overrides(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Split into inputs and KEY VALUE, at the first argument that begins like a key and is not a file."""
    from ..formats.image_files import SUFFIXES
    from ..inference.inputs import VIDEO_SUFFIXES

    def is_key(text: str) -> bool:
        named_so = _KEY.match(text) and Path(text).suffix.lower() not in (*SUFFIXES, *VIDEO_SUFFIXES)
        return bool(named_so) and not os.path.lexists(text)

    given = [*args.inputs, *args.overrides]
    first = next((i for i, text in enumerate(given) if is_key(text)), len(given))
    return given[:first], given[first:]


def _argument_problems(args: argparse.Namespace) -> list[str]:
    from ..data.tiling import tile_problems

    problems = too_low(args, {"--batch-size": 1, "--every": 1, "--frames": 1})
    if args.seconds is not None and not 0 < args.seconds < math.inf:
        problems.append(f"--seconds {args.seconds} must be a number above 0")
    if args.write and args.no_draw:
        problems.append("--write and --no-draw exclude each other; --no-draw is --write coco")
    problems += tile_problems(args.tile, args.overlap, ("--tile", "--overlap"))
    problems += keys_given_twice(args.overrides, key_flags(args))
    named = {"run": args.run_dir, "weights": args.weights, "model": args.model}
    ways = [flag for flag, value in named.items() if value is not None]
    if len(ways) != 1:
        given = " and ".join(f"--{flag}" for flag in ways)
        begin = f"{given} exclude each other" if given else "no detector is named"
        problems.append(f"{begin}; give one of --run DIR, --weights FILE, --model FILE")
    if args.config_file and "weights" not in ways:
        problems.append("--config-file belongs to --weights; a run and an ONNX file have their own")
    if args.overrides and "model" in ways:
        problems.append(f"{args.overrides[0]}: an exported model has no configuration to change; export it again")
    if "model" in ways and not Path(args.model).is_file():
        problems.append(f"--model {args.model}: no such file; focal-det export writes one")
    if not 0 <= args.score_thresh <= 1:
        problems.append(f"--score-thresh {args.score_thresh} must be in [0, 1]")
    return problems


def _detector(args: argparse.Namespace) -> tuple[Detector, list[str]]:
    """Build the detector, which also gives detections somewhat below the threshold; also return notes."""
    if args.model is not None:
        from ..inference.exported import ExportedDetector

        # Its own threshold may be lower, so it also gives detections below the requested one.
        options = {"batch_size": args.batch_size, "tile": args.tile, "overlap": args.overlap}
        exported = ExportedDetector(args.model, trusted=args.trust_model, **options)
        if args.score_thresh < exported.metadata.score_thresh:
            raise InputError(exported.low_threshold_message(args.score_thresh))
        return exported, []
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..engine.predictor import Predictor, files_of_run

    if args.run_dir is not None:
        weights = str(files_of_run(Path(args.run_dir))[1])
        print(f"weights: {weights}", flush=True)
    elif "://" in args.weights or Path(args.weights).is_file():
        weights = args.weights
    else:
        raise InputError(f"--weights {args.weights}: no such file; give a checkpoint or an address")
    config = config_files(args.config_file, weights)
    low = min(args.score_thresh, _LEAST_SCORE)
    options = {"score_thresh": low, "batch_size": args.batch_size, "tile": args.tile, "overlap": args.overlap}
    predictor = Predictor(config, weights, overrides=args.overrides, **options)
    return predictor, predictor.notes


def _summary(outcome: PredictionSummary, args: argparse.Namespace, base: Path) -> str:
    """Return the last lines of the output."""
    passed_over = f", {outcome.bad} that could not be read" if outcome.bad else ""
    for what, number in outcome.unwritten.items():
        passed_over += f", {counted(number, what)} that could not be written"
    if not outcome.images:
        return f"no image was looked at{passed_over}; nothing is written"
    counts = f"{counted(outcome.images, 'image')}, {counted(outcome.detections, 'detection')}{passed_over}"
    last_line = f"{counts}: {args.out} (names relative to {base})"
    if outcome.detections:
        return last_line
    best, highest = outcome.best_below, f"none is above {_LEAST_SCORE}"
    if best is not None:
        shown = f"--score-thresh {math.floor(100 * best) / 100:g} would show it"
        highest = f"the highest score is {best:.3f}, {shown}"
    return f"nothing found with a score of at least {args.score_thresh:g}: {highest}\n{last_line}"
