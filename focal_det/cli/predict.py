"""focal-det predict: what a detector finds in pictures and videos."""

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

from ..errors import EXIT_DONE, EXIT_FAULT, InputError
from .common import add_trust_flag, folder_name, make_folder

if TYPE_CHECKING:
    from ..inference.detections import Detector
    from ..inference.predicting import Outcome

_EPILOG = """examples:
  a training's best model      focal-det predict pictures --run output/mine
  a checkpoint                 focal-det predict a.jpg b.png --weights model.pth --config-file configs/bccd.yaml
  a pattern, quoted            focal-det predict 'pictures/**/*.jpg' --run output/mine --score-thresh 0.6
  every tenth frame            focal-det predict clip.mp4 --run output/mine --every 10
  a list                       find pictures -newer last | focal-det predict - --run output/mine
  without Detectron2           focal-det predict pictures --model model.onnx

A folder stands for its pictures and those of its subfolders, but for hidden ones and links to folders. Names in
detections.json and of the drawings are relative to the folder that all inputs share, so with one folder as INPUT
detections.json is an annotation file of it. Its pictures are those that could be read, its scores at least
--score-thresh; a video's frames are named clip.mp4#0, clip.mp4#10, ... Nothing is written over without --overwrite,
and never an input.

exit codes: 0 done, also where some pictures could not be read or drawn (each is named) or nothing was found; 1 a
            fault while running, or no picture could be read; 2 bad input and nothing written; 130 and 143 stopped by
            Ctrl-C or SIGTERM, with what was done until then written
"""

_DEFAULT_OUT, _DEFAULT_THRESH = Path("output/predictions"), 0.4
_KEY = re.compile(r"(MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|GLOBAL)\.[A-Z]")  # how one begins
_LOOKED_AT = 0.05  # scores from here on are looked at, to say what was the highest where nothing is kept


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add "predict"."""
    parser = commands.add_parser(
        "predict",
        help="detect objects in pictures, folders and videos",
        description="Detect objects; write drawings and detections.json, in COCO's format, to --out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="picture, video, folder, pattern; - for a list")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys to change, at the end")
    model = parser.add_argument_group("the detector: one of")
    model.add_argument(
        "--run", dest="training", metavar="DIR", help="OUTPUT_DIR of one: its model_best.pth, else model_final.pth"
    )
    model.add_argument("--weights", metavar="FILE", help="checkpoint")
    model.add_argument(
        "--model", metavar="FILE", help="what focal-det export wrote, .onnx or .pt2, which needs no Detectron2"
    )
    add_trust_flag(model)
    parser.add_argument(
        "--config-file", action="append", metavar="FILE", help="of --weights (default: config.yaml beside them)"
    )
    parser.add_argument("--out", type=folder_name, default=_DEFAULT_OUT, metavar="DIR", help=f"default: {_DEFAULT_OUT}")
    parser.add_argument(
        "--score-thresh",
        type=float,
        default=_DEFAULT_THRESH,
        metavar="T",
        help=f"keep detections with at least this score, in [0, 1] (default {_DEFAULT_THRESH})",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=4,
        metavar="N",
        help="pictures at a time (default 4); those of one size go through the network together",
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every Nth frame of a video (default 1)")
    parser.add_argument("--no-draw", action="store_true", help="write detections.json alone")
    parser.add_argument("--overwrite", action="store_true", help="replace files of an earlier prediction in --out")
    parser.set_defaults(run=_predict)


def _predict(args: argparse.Namespace) -> int:
    from ..inference.outputs import DETECTIONS_FILE, drawing_files, output_problems
    from ..inference.predicting import StopSignals, predict_all
    from ..inference.sources import count_frames, find_sources

    args.inputs, args.overrides = _split_words(args)
    problems = _argument_problems(args)
    try:
        sources, base, notes = find_sources(args.inputs, _standard_input(), args.out)
    except InputError as error:
        raise InputError([*problems, *error.problems]) from error
    drawings = None if args.no_draw else drawing_files(sources, args.out)
    written = [args.out / DETECTIONS_FILE, *(drawings or {}).values()]
    problems += output_problems(written, sources, args.out, overwrite=args.overwrite)
    if problems:
        raise InputError(problems)
    detector, more_notes = _detector(args)
    for note in (*notes, *more_notes):
        print(f"warning: {note}", file=sys.stderr)
    make_folder(args.out)
    with StopSignals() as stop, tqdm(total=count_frames(sources, args.every), unit="picture", disable=None) as bar:

        def name_bad(line: str) -> None:
            bar.write(f"warning: {line}", file=sys.stderr)

        try:
            outcome = predict_all(
                detector,
                sources,
                args.out,
                score_thresh=args.score_thresh,
                batch_size=args.batch_size,
                every=args.every,
                drawing_files=drawings,
                stop=stop,
                on_picture=bar.update,
                on_bad=name_bad,
            )
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise OSError("out of memory; give a lower --batch-size or a lower INPUT.MIN_SIZE_TEST") from error
    if stop.number is not None:
        print(f"stopped by {signal.Signals(stop.number).name}", file=sys.stderr)
    print(_summary(outcome, args, base))
    if stop.number is not None:
        return 128 + stop.number
    return EXIT_DONE if outcome.pictures else EXIT_FAULT


def _standard_input() -> Iterable[str]:
    """Its lines, as names of files are read: what is no UTF-8 in them stays as it is."""
    binary = getattr(sys.stdin, "buffer", None)
    return sys.stdin if binary is None else map(os.fsdecode, binary)


def _split_words(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Inputs, and KEY VALUE from the first word on that begins like a key and is no file."""
    words = [*args.inputs, *args.overrides]
    keys = (i for i, word in enumerate(words) if _KEY.match(word) and not os.path.lexists(word))
    first = next(keys, len(words))
    return words[:first], words[first:]


def _argument_problems(args: argparse.Namespace) -> list[str]:
    problems = []
    named = {"run": args.training, "weights": args.weights, "model": args.model}
    ways = [flag for flag, value in named.items() if value is not None]
    if len(ways) != 1:
        given = " and ".join(f"--{flag}" for flag in ways)
        begin = f"{given} exclude each other" if given else "no detector is named"
        problems.append(f"{begin}; give one of --run DIR, --weights FILE, --model FILE")
    if args.config_file and "weights" not in ways:
        problems.append("--config-file belongs to --weights; a run and an ONNX file have their own")
    if args.overrides and "model" in ways:
        problems.append(f"{args.overrides[0]}: an exported model has no configuration to change; export it anew")
    if "model" in ways and not Path(args.model).is_file():
        problems.append(f"--model {args.model}: no such file; focal-det export writes one")
    if not 0 <= args.score_thresh <= 1:
        problems.append(f"--score-thresh {args.score_thresh} must be in [0, 1]")
    problems += [
        f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 1"
        for name in ("batch_size", "every")
        if getattr(args, name) < 1
    ]
    return problems


def _detector(args: argparse.Namespace) -> tuple[Detector, list[str]]:
    """The detector, which also gives what is a little below the threshold; and notes."""
    low = min(args.score_thresh, _LOOKED_AT)
    if args.model is not None:
        from ..inference.exported import ExportedDetector

        # It gives what is below the threshold too, down to the file's own.
        exported = ExportedDetector(args.model, trusted=args.trust_model)
        if args.score_thresh < exported.metadata.score_thresh:
            raise InputError(exported.too_low(args.score_thresh))
        return exported, []
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..engine.predictor import Predictor, files_of_run

    if args.training is not None:
        beside, weights = files_of_run(Path(args.training))
        print(f"weights: {weights}", flush=True)
    else:
        weights = Path(args.weights)
        beside = weights.parent / "config.yaml"
        if "://" not in args.weights and not weights.is_file():
            raise InputError(f"--weights {weights}: no such file; give a checkpoint or an address")
        if not args.config_file and not beside.is_file():
            raise InputError(f"{beside} is not there; name the configuration of --weights with --config-file")
    predictor = Predictor(
        args.config_file or [beside],
        args.weights or weights,
        overrides=args.overrides,
        score_thresh=low,
        batch_size=args.batch_size,
    )
    return predictor, predictor.notes


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")


def _summary(outcome: Outcome, args: argparse.Namespace, base: Path) -> str:
    """The last lines."""
    from ..inference.outputs import DETECTIONS_FILE

    passed_over = f", {outcome.bad} that could not be read" if outcome.bad else ""
    passed_over += f", {_counted(outcome.undrawn, 'drawing')} that could not be written" if outcome.undrawn else ""
    if not outcome.pictures:
        return f"no picture was looked at{passed_over}; no {DETECTIONS_FILE} is written"
    lines = []
    if not outcome.detections:
        best = outcome.best_below
        highest = f"none is above {_LOOKED_AT}" if best is None else f"the highest score is {best:.3f}"
        hint = "" if best is None else f", --score-thresh {math.floor(100 * best) / 100:g} would show it"
        lines.append(f"nothing found with a score of at least {args.score_thresh:g}: {highest}{hint}")
    counts = f"{_counted(outcome.pictures, 'picture')}, {_counted(outcome.detections, 'detection')}{passed_over}"
    lines.append(f"{counts}: {args.out} (names relative to {base})")
    return "\n".join(lines)
