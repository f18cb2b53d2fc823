"""Data sets that are only looked at: read as for a training, also registered ones and those still to be drawn."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.dataset_spec import OwnSet, SetSource, read_sources
from ..data.duplicates import CheckedSet
from ..errors import Findings, InputError, cut, some
from ..files import is_writable
from .own_datasets import ONLY_TRAIN, NamedSources, read_changed_sets, told_once, too_many_left_out


class Destination(NamedTuple):
    """The files to write in a folder that also gets a folder of drawings for each set."""

    out: Path
    files: Sequence[str]
    overwrite: bool

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [self.out / name for name in self.files]


class InspectedSets(NamedTuple):
    """Checked sets by name, those to train on first.

    trained_on: the names of these.
    warnings: what works here, and not in a training; and of the flags.
    """

    sets: dict[str, OwnSet]
    trained_on: set[str]
    warnings: list[str]

    @property
    def notes(self) -> list[str]:
        """The notes on the sets."""
        return told_once(own.file.notes for own in self.sets.values())

    @property
    def checked(self) -> list[CheckedSet]:
        """The sets as they are searched for copies."""
        return [CheckedSet(n, own.image_dir, own.file, n in self.trained_on) for n, own in self.sets.items()]


def read_inspected_sets(
    named: NamedSources, found: Findings, destination: Destination, *, only_class: str | None, **how: Any
) -> InspectedSets:
    """Read and check all named sets. Generated shapes are drawn if they are missing, once nothing else is wrong.

    Args:
        found: what is wrong so far.
        destination: which must replace no file of the sets.
        only_class: a class that they must have.
        how: allow_outside and skip_bad_images of `read_coco`, the latter over all sets.

    Raises:
        InputError: with all that is wrong.
    """
    from ..data.shapes import CLASSES, parse_name  # OpenCV takes its time, which --help need not wait for

    names = list(dict.fromkeys(name for of_use in named.names.values() for name in of_use))
    if not names and not found.errors:
        found.errors.append("no data set is named: use --train, or --config-file")
    own_use = {use: all(name in named.sources for name in of_use) for use, of_use in named.names.items()}
    known = len(found.errors)
    registered, of_functions = _registered([name for name in names if name not in named.sources], found)
    if len(found.errors) > known and own_use["train"] and not own_use.get("val", True):
        found.errors.insert(known, ONLY_TRAIN)  # the others ask for files that are not meant
    to_draw = {name: source for name, source in registered.items() if parse_name(name) is not None}
    sets, problems = read_changed_sets(named, named.sources, **how)
    of_files, of_registered = read_sources(
        {name: source for name, source in registered.items() if name not in to_draw}, **how
    )
    sets |= of_files | of_functions
    found.errors += [
        *problems,
        *of_registered,
        *too_many_left_out((own.file for own in sets.values()), how["skip_bad_images"]),
    ]
    found.raise_if_errors()
    own_classes = (c for own in sets.values() for c in own.file.class_names)
    classes = list(dict.fromkeys([*own_classes, *(CLASSES if to_draw else ())]))
    if only_class is not None and only_class not in classes:
        close = difflib.get_close_matches(only_class, classes, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(classes)}"
        found.errors.append(f"--only-class {only_class!r} is not a class of these sets; {hint}")
    found.errors += output_problems(destination, names, {**named.sources, **registered}, sets)
    found.raise_if_errors()
    if to_draw:
        from ..data.catalog import prepare_shapes

        prepare_shapes(list(to_draw))
        drawn, problems = read_sources(to_draw)
        Findings(problems).raise_if_errors()
        sets |= drawn
    sets = {name: sets[name] for name in names}
    first, *others = sets
    differing = [name for name in others if sets[name].file.class_names != sets[first].file.class_names]
    differ = "differ in their classes or the order of their ids; one training needs the same"
    warnings = [*found.warnings, *(f"{first} and {name} {differ}" for name in differing)]
    return InspectedSets(sets, set(named.names["train"]), warnings)


def _registered(names: list[str], problems: Findings) -> tuple[dict[str, SetSource], dict[str, OwnSet]]:
    """Locate registered sets, and generated shapes where they will be drawn; read those that a function returns."""
    sources: dict[str, SetSource] = {}
    sets: dict[str, OwnSet] = {}
    if not names:
        return sources, sets
    from ..data.catalog import dataset_problems, registered_files
    from .named_sets import read_named_set

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


def output_problems(
    destination: Destination, names: Sequence[str], sources: Mapping[str, SetSource], sets: Mapping[str, OwnSet]
) -> list[str]:
    """Return why the files cannot be written: the sets' own images or annotations, or files of others, are there.

    Each of the names gets a folder of drawings; a source without a set is of generated shapes, still to be drawn.
    """
    out = destination.out
    if not is_writable(out):
        return [f"--out {cut(out, 250)}: not a folder that can be made and written; name another"]
    files, folders = destination.paths, [out / name for name in names]
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
    places = ((one.image_dir, image["file_name"]) for one in sets.values() for image in one.file.coco["images"])
    among = {os.path.dirname(os.path.join(*place)) for place in places}
    among = {folder for folder in among if any(_is_in(folder, Path(image_dir)) for image_dir in image_dirs)}
    if around := [folder for folder in sorted(among) if _is_in(os.fspath(out), Path(folder))]:
        # of YOLO's sets every image is one of theirs, and every text the boxes of one
        return [f"--out {out} is among the images of a data set, in {around[0]}; name another folder"]
    if there and not destination.overwrite:
        return [f"--out {out} already has {some('', there)}; name another, or add --overwrite"]
    wrong = [f"{path} is a folder" for path in files if os.path.isdir(path)]
    wrong += [f"{path} is not a folder" for path in folders if os.path.lexists(path) and not os.path.isdir(path)]
    return [f"--out {out}: {some('', wrong)}; name another"] if wrong else []


def _is_in(folder: str, other: Path) -> bool:
    """Tell whether a folder is the other or inside it."""
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(other))
