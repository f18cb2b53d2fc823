"""focal-det data: look at data sets before training on them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.dataset_spec import Use
from ..errors import EXIT_DONE, Findings, print_problems, visible_lines
from ..files import write_text_whole, written_whole
from ..preflight.inspected_sets import Destination, InspectedSets, read_inspected_sets
from ..preflight.own_datasets import USES, change_values, name_sets
from .common import add_number, add_out, add_plugin_flag, make_folder, print_notes, too_low
from .data_flags import add_change_flags, add_data_flags, changes_of, overrides_of, set_flags

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from ..data.duplicates import Copies
    from ..data.statistics import AnchorFit, Objects
    from ..data.suspects import Suspect
    from ..preflight.anchor_fit import FitRows

_EPILOG = """examples:
  any format     focal-det data inspect --train my_export
  COCO           focal-det data inspect --train-json train.json --train-images images
  Pascal VOC     focal-det data inspect --train-voc voc:train --val-voc voc:val --only-class cell
  a config's     focal-det data inspect --config-file configs/quickstart.yaml --out output/shapes
  registered     focal-det data inspect --plugin balloons.py DATASETS.TRAIN balloon_train
  augmentation   focal-det data augment --config-file my.yaml --train-voc voc:train

Only "inspect" of sets that flags name needs no Detectron2. Files in --out are not replaced without --overwrite, and
the data sets' own files never are; drawings of an earlier call that are not drawn again stay.
exit codes: 0 done; 1 a file could not be written; 2 bad input and nothing written
"""

STATISTICS, SHEET = ("statistics.txt", "statistics.json", "statistics.png"), "pictures.png"
COPIES, WORST = "duplicates.png", "worst.png"
AUGMENTED = "augmented.png"


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], summary: str) -> None:
    """Add "data" and what can be done with it."""
    data = commands.add_parser("data", help=summary)
    actions = data.add_subparsers(required=True, metavar="ACTION")
    inspect = actions.add_parser(
        "inspect",
        help="check data sets, draw images with their boxes, find what is probably wrong",
        description="Check data sets as before a training. Then draw images with their boxes into <out>/<set>/ and, "
        f"all on one sheet, <out>/{SHEET}; images that are there twice into {COPIES}; boxes that are probably wrong "
        f"into {WORST}; and write the statistics to <out>/statistics.txt, .json and .png. Box sizes are compared with "
        "the anchors of --config-file, else with the paper's.",
        epilog=_EPILOG,
    )
    _add_flags(inspect, USES, 16, "output/inspect")
    inspect.set_defaults(run=_inspect, uses=USES, files=(*STATISTICS, SHEET, COPIES, WORST))
    augment = actions.add_parser(
        "augment",
        help="draw images as a training will see them: resized, cut, turned, in other colours",
        description="Draw images of the sets to train on, and beside each how a training will see it at different "
        f"times, with its boxes: into <out>/<set>/ and, all on one sheet, <out>/{AUGMENTED}.",
        epilog=_EPILOG,
    )
    _add_flags(augment, USES[:1], 6, "output/augment")
    add_number(augment, "--draws", 4, "of each image")
    augment.set_defaults(run=_augment, uses=USES[:1], files=(AUGMENTED,))


def _add_flags(parser: argparse.ArgumentParser, uses: Sequence[Use], count: int, out: str) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys to change")
    parser.add_argument(
        "--config-file", action="append", default=[], metavar="FILE", help="whose DATASETS to look at, without flags"
    )
    add_data_flags(parser, uses)
    add_change_flags(parser)
    add_number(
        parser, "--skip-bad-images", 0, "leave out up to N images that cannot be opened or do not fit their size"
    )
    add_number(parser, "--pictures", count, "to draw of each set, evenly spread")
    parser.add_argument("--only-class", metavar="NAME", help="draw only images with it, and only its boxes")
    add_out(parser, out)
    parser.add_argument("--overwrite", action="store_true", help="replace files of an earlier call in --out")
    add_plugin_flag(parser)


def _inspect(args: argparse.Namespace) -> int:
    # These take a second to import, which --help need not wait for.
    from ..data.duplicates import duplicate_images, duplicate_warnings
    from ..data.inspection import describe, describe_balance, inspect_set, inspection_figure
    from ..data.statistics import statistics
    from ..data.suspects import describe_suspects, find_suspects
    from ..preflight.anchor_fit import fit_lines

    Findings(too_low(args, {"--pictures": 1, "--skip-bad-images": 0})).raise_if_errors()
    read, cfg = _read(args)
    compare, whose = _anchors(cfg, args.config_file)
    make_folder(args.out)
    found, suspects, fits, parts = {}, {}, {}, []
    for name, own in read.sets.items():
        found[name] = {"source": own.place, **inspect_set(own.file.coco)}
        lines = [f"{name}: {own.place}", describe(found[name], is_trained_on=name in read.trained_on)]
        objects = statistics(own.file.coco).objects
        if len(objects.boxes) and (of_anchors := compare(objects, own.file.class_names)):
            fits[name], rows = of_anchors
            about = {"of": whose, "size": fits[name].size, "thresholds": list(fits[name].thresholds)}
            found[name]["anchors"] = {**about, "rows": rows.as_json()}
            lines += [f"with {whose}:", *fit_lines(rows, fits[name], full=True)]
        suspects[name] = find_suspects(own.file.coco)
        found[name]["suspects"] = {kind: [s.as_json() for s in of_kind] for kind, of_kind in suspects[name].items()}
        parts.append("\n".join([*lines, *describe_suspects(suspects[name])]))
    copies = duplicate_images(read.checked)
    for name in read.sets:
        found[name]["duplicates"] = [one.as_json() for one in copies if one.sets[1] == name]
    of_all = [*describe_balance(found), *duplicate_warnings(read.checked, copies)]
    text = "\n\n".join([*parts, *(["\n".join(of_all)] if of_all else [])])
    print_notes(read.notes)
    print(visible_lines(text))
    destination = _destination(args)
    as_text, as_json, as_figure, *_ = destination.paths
    write_text_whole(as_text, text + "\n")
    write_text_whole(as_json, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    with written_whole(as_figure) as partial:
        inspection_figure({name: own.file.coco for name, own in read.sets.items()}, fits).savefig(partial, dpi=110)
    _draw(read, copies, suspects, args)
    print("", *destination.paths, sep="\n")
    return EXIT_DONE


def _draw(
    read: InspectedSets, copies: list[Copies], suspects: dict[str, dict[str, list[Suspect]]], args: argparse.Namespace
) -> None:
    """Draw some images of each set, and the sheets."""
    from ..inference.drawing import sheet, titled, write_image
    from ..inference.set_drawings import COLUMNS, SetDrawings, sheet_of_copies, sheet_of_suspects

    drawings, sets = [], {name: SetDrawings(name, own, _warn) for name, own in read.sets.items()}
    for name, of_set in sets.items():
        for place, drawn in enumerate(of_set.spread(args.pictures, args.only_class)):
            file_name = drawn.image["file_name"]
            write_image(args.out / name / f"{place:03d}_{Path(file_name).stem}.png", drawn.drawing)
            drawings.append(titled(drawn.drawing, f"{name}: {file_name}"))
    write_image(args.out / SHEET, sheet(drawings, COLUMNS))
    write_image(args.out / COPIES, sheet_of_copies(sets, copies))
    write_image(args.out / WORST, sheet_of_suspects(sets, suspects, args.only_class))


def _augment(args: argparse.Namespace) -> int:
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..config.load import load_config
    from ..data.train_loader import BrokenImageError
    from ..inference.drawing import sheet, titled, write_image
    from ..inference.set_drawings import SetDrawings
    from ..preflight.training_images import TrainingImages

    Findings(too_low(args, {"--pictures": 1, "--draws": 1, "--skip-bad-images": 0})).raise_if_errors()
    training_images = TrainingImages(load_config(args.config_file, args.overrides))
    read, _ = _read(args)
    print_notes(read.notes)
    make_folder(args.out, AUGMENTED)
    drawings = []
    for name, own in ((name, own) for name, own in read.sets.items() if name in read.trained_on):
        spread = SetDrawings(name, own, _warn).spread(args.pictures, args.only_class)
        for place, (image, rows, drawing) in enumerate(spread):
            try:
                draws = training_images.draw(own, image, rows, args.draws)
            except BrokenImageError as error:
                _warn(f"{error}; skipped")
                continue
            drawings += [titled(drawing, f"{name}: {image['file_name']}"), *draws]
            for number, drawn in enumerate(draws, 1):
                write_image(args.out / name / f"{place:03d}_{Path(image['file_name']).stem}_{number}.png", drawn)
    write_image(args.out / AUGMENTED, sheet(drawings, 1 + args.draws))
    print(args.out / AUGMENTED)
    return EXIT_DONE


def _warn(message: str) -> None:
    print_problems([message], "warning")


def _destination(args: argparse.Namespace) -> Destination:
    return Destination(args.out, args.files, args.overwrite)


def _read(args: argparse.Namespace) -> tuple[InspectedSets, CfgNode | None]:
    """Read and check the sets, and warn of what a training would refuse; return the configuration too, if any."""
    datasets: dict[Use, Sequence[str]] = dict.fromkeys(USES, ())
    changes: tuple[Sequence[Any], ...] = changes_of(args)
    cfg = None
    if args.config_file or args.overrides:
        from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
        from ..config.load import load_config
        from ..preflight.training_images import check_image_keys

        cfg = load_config(args.config_file, [*args.overrides, *overrides_of(args)])
        check_image_keys(cfg)  # by which objects are compared with anchors
        datasets, changes = {"train": cfg.DATASETS.TRAIN, "val": cfg.DATASETS.TEST}, change_values(cfg)
    named, found = name_sets({use: set_flags(args, use) for use in args.uses}, datasets, changes)
    how = {"allow_outside": args.allow_outside, "skip_bad_images": args.skip_bad_images}
    read = read_inspected_sets(named, found, _destination(args), only_class=args.only_class, **how)
    for warning in read.warnings:
        _warn(warning)
    return read, cfg


def _anchors(
    cfg: CfgNode | None, files: Sequence[str]
) -> tuple[Callable[[Objects, list[str]], tuple[AnchorFit, FitRows] | None], str]:
    """Return what compares objects with anchors, or returns None where these are not known, and whose they are."""
    from ..preflight.anchor_fit import AnchorSetup, fit_objects, group_fit

    if cfg is None:
        setup = AnchorSetup.of_paper()

        def compare(objects: Objects, class_names: list[str]) -> tuple[AnchorFit, FitRows]:
            fit = fit_objects(objects, setup)
            return fit, group_fit(objects, fit, class_names)

        return compare, "the paper's anchors, of 32 to 813 px (--config-file: those of a configuration)"
    from ..checkpoint.compatibility import build_parts
    from ..preflight.anchor_report import report_anchors

    cfg = cfg.clone()
    cfg.MODEL.RETINANET.NUM_CLASSES = 1  # on which no anchor depends
    model, found = build_parts(cfg, training=False)
    for problem in found.errors:
        _warn(f"{problem}; so anchors are not compared")

    def compare_configured(objects: Objects, class_names: list[str]) -> tuple[AnchorFit, FitRows] | None:
        report = report_anchors(cfg, model, objects, class_names) if model else None
        return report and (report.fit, report.rows)

    return compare_configured, f"the anchors of {', '.join(files) or 'the keys given'}"
