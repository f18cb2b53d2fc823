"""focal-det data: look at data sets before training on them."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.sources import OwnSet, SetSource, name_sources, read_sources
from ..data.spread import evenly_spread
from ..errors import EXIT_DONE, InputError
from .common import folder_name, make_folder
from .datasets import USES, add_data_flags, entries_of
from .inspect_output import SHEET, STATISTICS, output_problems

if TYPE_CHECKING:
    import numpy as np

_EPILOG = """examples:
  COCO           focal-det data inspect --train-json train.json --train-images pictures
  Pascal VOC     focal-det data inspect --train-voc voc:train --val-voc voc:val --only-class cell
  a config's     focal-det data inspect --config-file configs/quickstart.yaml --out output/shapes

Sets that flags name need no Detectron2. What --out already holds is not written over without --overwrite, and never
the data sets' own files; drawings of an earlier call that are not drawn again stay.
exit codes: 0 done; 1 a file could not be written; 2 bad input and nothing written
"""
_COLUMNS = 4


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add "data" and what can be done with it."""
    data = commands.add_parser("data", help="look at data sets", allow_abbrev=False)
    actions = data.add_subparsers(required=True, metavar="ACTION")
    inspect = actions.add_parser(
        "inspect",
        help="check data sets, draw pictures with their boxes, count classes and sizes",
        description="Check data sets as before a training. Then draw pictures with their boxes into <out>/<set>/ and, "
        "all on one sheet, <out>/pictures.png, and write the statistics to <out>/statistics.txt, .json and .png.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    inspect.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys to change")
    inspect.add_argument(
        "--config-file", action="append", default=[], metavar="FILE", help="whose DATASETS to look at, without flags"
    )
    add_data_flags(inspect)
    inspect.add_argument(
        "--pictures", type=int, default=16, metavar="N", help="to draw of each set, evenly spread (default: 16)"
    )
    inspect.add_argument("--only-class", metavar="NAME", help="draw only pictures with it, and only its boxes")
    out = Path("output/inspect")
    inspect.add_argument("--out", type=folder_name, default=out, metavar="DIR", help=f"default: {out}")
    inspect.add_argument("--overwrite", action="store_true", help="replace files of an earlier call in --out")
    inspect.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    from ..data.inspection import describe, inspect_set  # these take a second to import, which --help need not wait for
    from ..data.inspection_figure import inspection_figure
    from ..files import write_text_whole, written_whole

    if args.pictures < 1:
        raise InputError(f"--pictures {args.pictures} must be at least 1")
    sets, trained_on = _read(args)
    make_folder(args.out)
    found = {name: {"source": own.place, **inspect_set(own.file.coco)} for name, own in sets.items()}
    text = "\n\n".join(
        f"{name}: {sets[name].place}\n{describe(entry, is_trained_on=name in trained_on)}"
        for name, entry in found.items()
    )
    for own in sets.values():
        print(*own.file.notes, sep="\n", end="\n" * bool(own.file.notes))
    print(text)
    files = [args.out / name for name in STATISTICS]
    write_text_whole(files[0], text + "\n")
    write_text_whole(files[1], json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    with written_whole(files[2]) as partial:
        inspection_figure({name: own.file.coco for name, own in sets.items()}).savefig(partial, dpi=110)
    files.append(_draw_sets(sets, args))
    print("", *files, sep="\n")
    return EXIT_DONE


def _read(args: argparse.Namespace) -> tuple[dict[str, OwnSet], set[str]]:
    """The checked sets, and which are to train on; warns where classes differ, which a training would refuse.

    Generated shapes are drawn if need be, once nothing else is wrong.
    """
    from ..data.shapes import CLASSES, parse_name  # OpenCV takes its time, which --help need not wait for

    datasets: Any = _datasets_of_config(args) if args.config_file or args.overrides else dict.fromkeys(USES, ())
    of_uses: dict[str, list[SetSource | str]] = {}
    problems = []
    for use in USES:
        of_uses[use], found = entries_of(args, use, datasets[use])
        problems += found
    entries = [entry for of_use in of_uses.values() for entry in of_use]
    if not entries and not problems:
        problems.append("no data set is named: use --train-json and --train-images, --train-voc, or --config-file")
    names, sources = name_sources(entries)
    registered = [name for name in names if name not in sources]
    sources |= _registered(registered, problems)
    to_draw = [name for name in registered if name in sources and parse_name(name) is not None]
    sets, found = read_sources(
        {name: s for name, s in sources.items() if name not in to_draw}, allow_outside=args.allow_outside
    )
    problems += found
    if not problems:
        classes = dict.fromkeys(c for own in sets.values() for c in own.file.class_names)
        problems += _class_problems(args.only_class, [*classes, *(CLASSES if to_draw else ())])
        problems += output_problems(args.out, names, sources, sets, overwrite=args.overwrite)
    if problems:
        raise InputError(list(dict.fromkeys(problems)))  # a set may be there for both uses
    if to_draw:
        from ..data.catalog import prepare_shapes

        prepare_shapes(to_draw)
        sets, problems = read_sources({name: sources[name] for name in names})
        if problems:
            raise InputError(problems)
    sets = {name: sets[name] for name in names}
    first, *others = sets
    for name in others:
        if sets[name].file.class_names != sets[first].file.class_names:
            message = (
                f"{first} and {name} differ in their classes or the order of their ids; one training needs the same"
            )
            print(f"warning: {message}", file=sys.stderr)
    return sets, set(names[: len(of_uses["train"])])


def _datasets_of_config(args: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
    from ..engine.config_file import load_config

    datasets = load_config(args.config_file, args.overrides).DATASETS
    return {"train": datasets.TRAIN, "val": datasets.TEST}


def _registered(names: list[str], problems: list[str]) -> dict[str, SetSource]:
    """Where registered sets stand, or shapes once they are drawn."""
    if not names:
        return {}
    from ..data.catalog import dataset_problems, registered_files

    problems += dataset_problems(names)
    if problems:
        return {}
    found = {name: registered_files(name) for name in names}
    problems += [
        f"data set {name} is registered without a COCO file, so it cannot be inspected; leave it out"
        for name, files in found.items()
        if files is None
    ]
    return {name: SetSource("train", "json", str(files[0]), str(files[1])) for name, files in found.items() if files}


def _class_problems(name: str | None, names: list[str]) -> list[str]:
    if name is None or name in names:
        return []
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
    return [f"--only-class {name!r} is no class of these sets; {hint}"]


def _draw_sets(sets: Mapping[str, OwnSet], args: argparse.Namespace) -> Path:
    """Draw some pictures of each set; the sheet of them."""
    from ..inference.drawing import sheet, titled, write_picture

    drawings = []
    for name, own in sets.items():
        folder = args.out / name
        for place, (file_name, drawing) in enumerate(_drawings(own, args.pictures, args.only_class)):
            write_picture(folder / f"{place:03d}_{Path(file_name).stem}.png", drawing)
            drawings.append(titled(drawing, f"{name}: {file_name}"))
    path: Path = args.out / SHEET
    write_picture(path, sheet(drawings, _COLUMNS))
    return path


def _drawings(own: OwnSet, count: int, only_class: str | None) -> Iterator[tuple[str, np.ndarray]]:
    """Name and drawing of pictures evenly spread over those that hold a class; what cannot be read is passed over."""
    import numpy as np

    from ..inference.drawing import draw_boxes
    from ..inference.pictures import PictureError, read_picture

    coco, names = own.file.coco, own.file.class_names
    labels = {category["id"]: names.index(category["name"]) for category in coco["categories"]}
    of_picture: dict[int, list[dict[str, Any]]] = {}
    for annotation in coco["annotations"]:
        if only_class is None or names[labels[annotation["category_id"]]] == only_class:
            of_picture.setdefault(annotation["image_id"], []).append(annotation)
    images = [image for image in coco["images"] if only_class is None or image["id"] in of_picture]
    for image in evenly_spread(images, count):
        try:
            picture = read_picture(Path(own.image_dir) / image["file_name"])
        except PictureError as error:
            print(f"warning: {error}; passed over", file=sys.stderr)
            continue
        annotations = of_picture.get(image["id"], [])
        boxes = np.array([a["bbox"] for a in annotations], dtype=float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = [labels[a["category_id"]] for a in annotations]
        ends = [" (ignored)" if a["iscrowd"] else "" for a in annotations]
        texts = [names[label] + end for label, end in zip(classes, ends, strict=True)]
        yield image["file_name"], draw_boxes(picture, boxes, np.array(classes), texts, num_classes=len(names))
