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

from ..errors import EXIT_DONE, EXIT_FAULT, Findings, InputError, counted
from .common import (
    add_number,
    add_out,
    add_plugin_flag,
    add_tile_flags,
    add_trust_flag,
    config_files,
    make_folder,
    too_low,
)

if TYPE_CHECKING:
    from ..inference.detections import Detector
    from ..inference.predicting import PredictionSummary

_EPILOG = """examples:
  a training's best model      focal-det predict images --run output/mine
  a checkpoint                 focal-det predict a.jpg b.png --weights model.pth --config-file configs/bccd.yaml
  a pattern, quoted            focal-det predict 'images/**/*.jpg' --run output/mine --score-thresh 0.6
  large images, small objects  focal-det predict images --run output/mine --tile 640 --overlap 0.2
  every tenth frame            focal-det predict clip.mp4 --run output/mine --every 10
  a list                       find images -newer last | focal-det predict - --run output/mine
  without Detectron2           focal-det predict images --model model.onnx

A folder stands for its images and those of its subfolders, except hidden ones and links to folders. Names in
detections.json and of the drawings are relative to the folder that all inputs share, so with one folder as INPUT
detections.json is an annotation file of it. Its images are those that could be read, its scores at least
--score-thresh; a video's frames are named clip.mp4#0, clip.mp4#10, ... Nothing is overwritten without --overwrite,
and an input never is.

exit codes: 0 done, also where some images could not be read or drawn (each is named) or nothing was found; 1 a
            fault while running, or no image could be read; 2 bad input and nothing written; 130 and 143 stopped by
            Ctrl-C or SIGTERM, with what was done until then written
"""

_KEY = re.compile(r"(MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|GLOBAL)\.[A-Z]")  # how one begins
_LEAST_SCORE = 0.05  # the detector also gives scores down to here, so that the highest can be named if none is kept


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], summary: str) -> None:
    """Add "predict"."""
    parser = commands.add_parser(
        "predict",
        help=summary,
        description="Detect objects; write drawings and detections.json, in COCO's format, to --out.",
        epilog=_EPILOG,
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, video, folder, pattern; - for a list")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys to change, at the end")
    model = parser.add_argument_group("the detector: one of")
    text = "OUTPUT_DIR of a training: its model_best.pth, else model_final.pth"
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
    parser.add_argument("--no-draw", action="store_true", help="write detections.json alone")
    parser.add_argument("--overwrite", action="store_true", help="replace files of an earlier prediction in --out")
    add_plugin_flag(parser)
    parser.set_defaults(run=_predict)


def _predict(args: argparse.Namespace) -> int:
    from ..inference.inputs import count_frames, find_inputs
    from ..inference.outputs import DETECTIONS_FILE, drawing_files, output_problems
    from ..inference.predicting import StopSignals, predict_all

    args.inputs, args.overrides = _split_overrides(args)
    problems = _argument_problems(args)
    try:
        inputs, base, notes = find_inputs(args.inputs, _standard_input(), args.out)
    except InputError as error:
        raise InputError([*problems, *error.problems]) from error
    drawings = None if args.no_draw else drawing_files(inputs, args.out)
    written = [args.out / DETECTIONS_FILE, *(drawings or {}).values()]
    problems += output_problems(written, inputs, args.out, overwrite=args.overwrite)
    Findings(problems).raise_if_errors()
    detector, more_notes = _detector(args)
    for note in (*notes, *more_notes):
        print(f"warning: {note}", file=sys.stderr)
    make_folder(args.out)
    outcome = None  # what it stays where a second signal interrupts
    with StopSignals() as stop, tqdm(total=count_frames(inputs, args.every), unit="image", disable=None) as bar:
        try:
            outcome = predict_all(
                detector,
                inputs,
                args.out,
                score_thresh=args.score_thresh,
                batch_size=args.batch_size,
                every=args.every,
                drawing_files=drawings,
                stop=stop,
                on_image=bar.update,
                on_bad=lambda line: bar.write(f"warning: {line}", file=sys.stderr),
            )
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise OSError("out of memory; give a lower --batch-size or a lower INPUT.MIN_SIZE_TEST") from error
    if stop.number is not None:
        print(f"stopped by {signal.Signals(stop.number).name}", file=sys.stderr)
    if outcome is not None:
        print(_summary(outcome, args, base))
    if stop.number is not None:
        return 128 + stop.number
    return EXIT_DONE if outcome and outcome.images else EXIT_FAULT


def _standard_input() -> Iterable[str]:
    """Return its lines as names of files, in which bytes that are not UTF-8 are kept."""
    binary = getattr(sys.stdin, "buffer", None)
    return sys.stdin if binary is None else map(os.fsdecode, binary)


def _split_overrides(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Split into inputs and KEY VALUE, at the first argument that begins like a key and is not a file."""
    given = [*args.inputs, *args.overrides]
    keys = (i for i, text in enumerate(given) if _KEY.match(text) and not os.path.lexists(text))
    first = next(keys, len(given))
    return given[:first], given[first:]


def _argument_problems(args: argparse.Namespace) -> list[str]:
    from ..data.tiling import tile_problems

    problems = too_low(args, {"--batch-size": 1, "--every": 1})
    problems += tile_problems(args.tile, args.overlap, ("--tile", "--overlap"))
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


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # an exported model in ONNX runs without it
    return isinstance(
        error, (MemoryError, *([torch.OutOfMemoryError] if torch else []))
    ) or "can't allocate memory" in str(error)


def _summary(outcome: PredictionSummary, args: argparse.Namespace, base: Path) -> str:
    """Return the last lines of the output."""
    from ..inference.outputs import DETECTIONS_FILE

    passed_over = f", {outcome.bad} that could not be read" if outcome.bad else ""
    passed_over += f", {counted(outcome.undrawn, 'drawing')} that could not be written" if outcome.undrawn else ""
    if not outcome.images:
        return f"no image was looked at{passed_over}; no {DETECTIONS_FILE} is written"
    counts = f"{counted(outcome.images, 'image')}, {counted(outcome.detections, 'detection')}{passed_over}"
    last_line = f"{counts}: {args.out} (names relative to {base})"
    if outcome.detections:
        return last_line
    best, highest = outcome.best_below, f"none is above {_LEAST_SCORE}"
    if best is not None:
        shown = f"--score-thresh {math.floor(100 * best) / 100:g} would show it"
        highest = f"the highest score is {best:.3f}, {shown}"
    return f"nothing found with a score of at least {args.score_thresh:g}: {highest}\n{last_line}"
