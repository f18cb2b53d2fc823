"""focal-det data: look at data sets before training on them."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.dataset_spec import OwnSet, SetSource, Use, name_sources, read_sources
from ..data.split import read_sets
from ..data.statistics import evenly_spread
from ..errors import EXIT_DONE, Findings, InputError, cut, some, visible
from ..files import is_writable, write_text_whole, written_whole
from ..formats.coco_index import CocoIndex, by_image, xyxy_boxes
from ..preflight.own_datasets import USES, Changes, entries_of_uses
from .common import add_number, add_out, add_plugin_flag, make_folder, too_low
from .data_flags import add_change_flags, add_data_flags, overrides_of, set_flags

if TYPE_CHECKING:
    import numpy as np

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
AUGMENTED = "augmented.png"
_COLUMNS = 4


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], summary: str) -> None:
    """Add "data" and what can be done with it."""
    data = commands.add_parser("data", help=summary)
    actions = data.add_subparsers(required=True, metavar="ACTION")
    inspect = actions.add_parser(
        "inspect",
        help="check data sets, draw images with their boxes, count classes and sizes",
        description="Check data sets as before a training. Then draw images with their boxes into <out>/<set>/ and, "
        f"all on one sheet, <out>/{SHEET}, and write the statistics to <out>/statistics.txt, .json and .png.",
        epilog=_EPILOG,
    )
    _add_flags(inspect, USES, 16, "output/inspect")
    inspect.set_defaults(run=_inspect, uses=USES, files=(*STATISTICS, SHEET))
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
    add_number(parser, "--pictures", count, "to draw of each set, evenly spread")
    parser.add_argument("--only-class", metavar="NAME", help="draw only images with it, and only its boxes")
    add_out(parser, out)
    parser.add_argument("--overwrite", action="store_true", help="replace files of an earlier call in --out")
    add_plugin_flag(parser)


def _inspect(args: argparse.Namespace) -> int:
    # These take a second to import, which --help need not wait for.
    from ..data.inspection import describe, inspect_set, inspection_figure

    Findings(too_low(args, {"--pictures": 1})).raise_if_errors()
    sets, trained_on = _read(args)
    make_folder(args.out)
    found = {name: {"source": own.place, **inspect_set(own.file.coco)} for name, own in sets.items()}
    text = "\n\n".join(
        f"{name}: {sets[name].place}\n{describe(entry, is_trained_on=name in trained_on)}"
        for name, entry in found.items()
    )
    print(*(visible(note) for own in sets.values() for note in own.file.notes), text, sep="\n")
    files = [args.out / name for name in args.files]
    write_text_whole(files[0], text + "\n")
    write_text_whole(files[1], json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    with written_whole(files[2]) as partial:
        inspection_figure({name: own.file.coco for name, own in sets.items()}).savefig(partial, dpi=110)
    _draw_sets(sets, files[3], args)
    print("", *files, sep="\n")
    return EXIT_DONE


def _augment(args: argparse.Namespace) -> int:
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..config.load import load_config
    from ..data.train_loader import BrokenImageError
    from ..inference.drawing import sheet, titled, write_image
    from ..preflight.training_images import TrainingImages

    Findings(too_low(args, {"--pictures": 1, "--draws": 1})).raise_if_errors()
    training_images = TrainingImages(load_config(args.config_file, args.overrides))
    sets, trained_on = _read(args)
    make_folder(args.out)
    drawings = []
    for name, own in ((name, own) for name, own in sets.items() if name in trained_on):
        for place, (image, rows, drawing) in enumerate(_drawings(own, args.pictures, args.only_class)):
            try:
                draws = training_images.draw(own, image, rows, args.draws)
            except BrokenImageError as error:
                print(f"warning: {error}; skipped", file=sys.stderr)
                continue
            drawings += [titled(drawing, f"{name}: {image['file_name']}"), *draws]
            for number, drawn in enumerate(draws, 1):
                write_image(args.out / name / f"{place:03d}_{Path(image['file_name']).stem}_{number}.png", drawn)
    write_image(args.out / AUGMENTED, sheet(drawings, 1 + args.draws))
    print(args.out / AUGMENTED)
    return EXIT_DONE


def _read(args: argparse.Namespace) -> tuple[dict[str, OwnSet], set[str]]:
    """Read and check the sets; also return which are trained on, and warn of classes that a training would refuse.

    Generated shapes are drawn if they are not there yet, once nothing else is wrong.
    """
    from ..data.shapes import CLASSES, parse_name  # OpenCV takes its time, which --help need not wait for

    datasets: Mapping[Use, Sequence[str]] = dict.fromkeys(USES, ())
    values: tuple[Any, ...] = (args.classes or (), args.merge_classes, args.split_val or ())
    if args.config_file or args.overrides:
        datasets, values = _of_config(args)
    changes, of_changes = Changes.parse(*values)
    flags = {use: set_flags(args, use) for use in args.uses}
    of_uses, found = entries_of_uses(flags, datasets, changes)
    found.add(of_changes)
    entries = [entry for of_use in of_uses.values() for entry in of_use]
    if not entries and not found.errors:
        found.errors.append("no data set is named: use --train, or --config-file")
    names, sources = name_sources(entries)
    registered = [name for name in names if name not in sources]
    of_files, of_functions = _registered(registered, found)
    sources |= of_files
    to_draw = [name for name in registered if name in sources and parse_name(name) is not None]
    to_read = {name: source for name, source in sources.items() if name not in to_draw}
    how = {"class_map": changes.class_map, "allow_outside": args.allow_outside}
    sets, unreadable = read_sets(to_read, split=changes.split, **how)
    sets |= of_functions
    found.errors += unreadable
    found.raise_if_errors()
    own_classes = (c for own in sets.values() for c in own.file.class_names)
    classes = list(dict.fromkeys([*own_classes, *(CLASSES if to_draw else ())]))
    if args.only_class is not None and args.only_class not in classes:
        close = difflib.get_close_matches(args.only_class, classes, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(classes)}"
        found.errors.append(f"--only-class {args.only_class!r} is not a class of these sets; {hint}")
    found.errors += output_problems(args.out, args.files, names, sources, sets, overwrite=args.overwrite)
    found.raise_if_errors()
    if to_draw:
        from ..data.catalog import prepare_shapes

        prepare_shapes(to_draw)
        sets, problems = read_sources({name: source for name, source in sources.items() if name in names})
        Findings(problems).raise_if_errors()
        sets |= of_functions
    sets = {name: sets[name] for name in names}
    first, *others = sets
    for name in others:
        if sets[name].file.class_names != sets[first].file.class_names:
            differ = f"{first} and {name} differ in their classes or the order of their ids"
            print(f"warning: {differ}; one training needs the same", file=sys.stderr)
    return sets, set(names[: len(of_uses["train"])])


def _of_config(args: argparse.Namespace) -> tuple[dict[Use, Sequence[str]], tuple[Sequence[Any], ...]]:
    """Return the sets of both uses, and the changes to them, of a configuration with the flags for both."""
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..config.load import load_config

    datasets = load_config(args.config_file, [*args.overrides, *overrides_of(args)]).DATASETS
    changes = datasets.CLASSES, datasets.MERGE_CLASSES, datasets.SPLIT_VAL
    return {"train": datasets.TRAIN, "val": datasets.TEST}, changes


def _registered(names: list[str], problems: Findings) -> tuple[dict[str, SetSource], dict[str, OwnSet]]:
    """Locate registered sets, and generated shapes where they will be drawn; read those that a function returns."""
    sources: dict[str, SetSource] = {}
    sets: dict[str, OwnSet] = {}
    if not names:
        return sources, sets
    from ..data.catalog import dataset_problems, registered_files
    from ..preflight.named_sets import read_named_set

    problems.errors += dataset_problems(names)
    if problems.errors:
        return sources, sets
    for name in names:
        if files := registered_files(name):
            sources[name] = SetSource("train", "json", str(files[0]), str(files[1]))
            continue
        try:
            named = read_named_set(name, "train", images=False)
        except InputError as error:
            problems.errors += error.problems
            continue
        if named.file is None:
            problems.errors.append(f'data set "{name}" cannot be inspected: {named.remark}')
        else:
            sets[name] = OwnSet("a registered function", named.image_dir, named.file)
    return sources, sets


def _draw_sets(sets: Mapping[str, OwnSet], path: Path, args: argparse.Namespace) -> None:
    """Draw some images of each set, and a sheet of all."""
    from ..inference.drawing import sheet, titled, write_image

    drawings = []
    for name, own in sets.items():
        for place, (image, _, drawing) in enumerate(_drawings(own, args.pictures, args.only_class)):
            write_image(args.out / name / f"{place:03d}_{Path(image['file_name']).stem}.png", drawing)
            drawings.append(titled(drawing, f"{name}: {image['file_name']}"))
    write_image(path, sheet(drawings, _COLUMNS))


def _drawings(
    own: OwnSet, count: int, only_class: str | None
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]], np.ndarray]]:
    """Yield images spread evenly over those that hold a class, with annotations and drawing; warn of unreadable."""
    from ..inference.drawing import draw_boxes
    from ..inference.images import ImageError, read_image

    coco, index = own.file.coco, CocoIndex(own.file.coco)
    annotations_by_image = by_image(a for a in coco["annotations"] if only_class in (None, index.name_of(a)))
    images = [image for image in coco["images"] if only_class is None or image["id"] in annotations_by_image]
    for image in evenly_spread(images, count):
        try:
            pixels = read_image(Path(own.image_dir) / image["file_name"])
        except ImageError as error:
            print(f"warning: {error}; skipped", file=sys.stderr)
            continue
        annotations = annotations_by_image[image["id"]]
        boxes, labels = xyxy_boxes(annotations), index.labels_of(annotations)
        texts = [index.name_of(a) + (" (ignored)" if a["iscrowd"] else "") for a in annotations]
        yield image, annotations, draw_boxes(pixels, boxes, labels, texts, num_classes=len(index.names))


def output_problems(
    out: Path,
    files_to_write: Iterable[str],
    names: Iterable[str],
    sources: Mapping[str, SetSource],
    sets: Mapping[str, OwnSet],
    *,
    overwrite: bool,
) -> list[str]:
    """Return why these files cannot be written: the sets' own images or annotations, or files of others, are there.

    Each of the names gets a folder of drawings; a source without a set is of generated shapes, still to be drawn.
    """
    if not is_writable(out):
        return [f"--out {cut(out, 250)}: not a folder that can be made and written; name another"]
    files, folders = [out / name for name in files_to_write], [out / name for name in names]
    image_dirs = [own.image_dir for own in sets.values()]
    image_dirs += [str(source.detail) for name, source in sources.items() if name not in sets]
    own = [path for path in folders if any(_is_in(image_dir, path) for image_dir in image_dirs)]
    there = [path for path in (*files, *folders) if os.path.lexists(path)]
    if there and not own:  # nothing can be lost where nothing is
        inputs = [source.path for source in sources.values() if source.kind == "json"]
        for a_set in sets.values():
            inputs += [os.path.join(a_set.image_dir, image["file_name"]) for image in a_set.file.coco["images"]]
        real = {os.path.realpath(path) for path in inputs}
        holders = {os.path.dirname(path) for path in real}
        own = [path for path in files if os.path.realpath(path) in real]
        own += [path for path in folders if any(_is_in(holder, path) for holder in holders)]
    if own:
        return [f"--out {out}: {some('', own)} is or contains a file of the data sets; name another folder"]
    if there and not overwrite:
        return [f"--out {out} already has {some('', there)}; name another, or add --overwrite"]
    wrong = [f"{path} is a folder" for path in files if os.path.isdir(path)]
    wrong += [f"{path} is not a folder" for path in folders if os.path.lexists(path) and not os.path.isdir(path)]
    return [f"--out {out}: {some('', wrong)}; name another"] if wrong else []


def _is_in(folder: str, other: Path) -> bool:
    """Tell whether a folder is the other or inside it."""
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(other))
