"""Read the user's own data sets, which flags or DATASETS name by place."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.class_map import ALL_CLASSES, ClassMap
from ..data.dataset_spec import (
    USES,
    OwnSet,
    SetSource,
    Use,
    data_source,
    name_sources,
    parse_source,
    source_to_evaluate_on,
    voc_source,
)
from ..data.split import check_split, read_sets
from ..errors import Findings, InputError, some
from ..formats.coco import CocoFile
from ..formats.coco_index import CocoIndex
from ..inference.classes import Classes, read_classes
from ..output_layout import ANNOTATIONS, CLASSES_FILE, INFERENCE
from .options import SetFlags, TrainOptions

NO_OBJECTS = "no box to train on; annotate at least one object that is neither a crowd nor difficult"
ONLY_TRAIN = (
    "the sets to evaluate on are the configuration's, since only those to train on were given by flag: add --val PATH, "
    "or --split-val 0.2 to set a part of these aside"
)


class OwnSets(NamedTuple):
    """The user's own sets of a run."""

    train: tuple[str, ...]  # what DATASETS is to hold: the names of all sets in order, the registered ones' too
    test: tuple[str, ...]  # likewise
    names: set[str]  # of the own sets alone, also of those with problems
    files: dict[Any, CocoFile]  # the checked files by `JsonDataset`


class Changes(NamedTuple):
    """Changes to the user's own sets: of their classes; and the share to evaluate on with the seed, if any."""

    class_map: ClassMap = ALL_CLASSES
    split: tuple[float, int] | None = None

    @classmethod
    def parse(cls, classes: Sequence[str], merges: Sequence[str], split: Sequence[Any]) -> tuple[Changes, Findings]:
        """Parse DATASETS.CLASSES, MERGE_CLASSES and SPLIT_VAL; what is wrong is as if it were not set."""
        found, changes = Findings(), cls()
        try:
            changes = changes._replace(class_map=ClassMap.parse(classes, merges))
        except InputError as error:
            found.errors += error.problems
        try:
            changes = changes._replace(split=check_split(split))
        except InputError as error:
            found.errors += error.problems
        return changes, found


def entries_of_uses(
    flags: Mapping[Use, SetFlags], datasets: Mapping[Use, Iterable[str]], changes: Changes | None = None
) -> tuple[dict[Use, list[SetSource | str]], Findings]:
    """Return the sets for each use: those that the flags name; without any, the entries of DATASETS.

    Where flags name none to evaluate on, those parts are taken that the sets of --train have for it; if the sets to
    train on are split, these are the ones to evaluate on. The sets are sources, and names of registered sets; with them
    comes what is wrong with the flags or entries.
    """
    found, changes = Findings(), changes or Changes()
    of_uses: dict[Use, list[SetSource | str]] = {}
    for use, given in flags.items():
        found.add(_check_pairs(use, len(given.json), len(given.images)))
        sources = [data_source(use, text) for text in given.data]
        sources += [SetSource(use, "json", *pair) for pair in zip(given.json, given.images, strict=False)]
        sources += [voc_source(use, text) for text in given.voc]
        if use == "val" and not given.are_given:
            of_training = [data_source("train", text) for text in flags["train"].data] if "train" in flags else []
            sources = [part for source in of_training if (part := source_to_evaluate_on(source))]
            if sources and changes.split is not None:
                own = ", ".join(dict.fromkeys(map(str, sources)))
                found.warnings.append(f"--split-val: the part of {own} to evaluate on is not used, but one split off")
        of_uses[use] = [*sources]
        for text in datasets[use] if not sources else ():
            try:
                of_uses[use].append(parse_source(use, text) or text)
            except InputError as error:
                found.errors += error.problems
    fix = "only sets given by --train and the like, or by place in DATASETS, can be changed"
    registered = [one for one in of_uses.get("train", ()) if isinstance(one, str)]
    if changes.split is not None and registered:
        found.errors.append(f"DATASETS.SPLIT_VAL, or --split-val: {', '.join(registered)} is registered, and {fix}")
    elif changes.class_map != ALL_CLASSES and all(isinstance(one, str) for use in of_uses.values() for one in use):
        found.errors.append(f"DATASETS.CLASSES or MERGE_CLASSES is set, and no set of your own is given: {fix}")
    if changes.split is not None:
        if "val" in flags and flags["val"].are_given:
            both = "and sets to evaluate on are given; leave one of them out"
            found.errors.append(f"DATASETS.SPLIT_VAL, or --split-val, is set, {both}")
        of_uses["val"] = [one._replace(use="val") for one in of_uses["train"] if isinstance(one, SetSource)]
    return of_uses, found


class NamedSources(NamedTuple):
    """The sets that flags name for each use, or DATASETS without any."""

    names: dict[Use, tuple[str, ...]]  # all in order; of registered sets their own
    sources: dict[str, SetSource]  # of the user's own sets by name
    changes: Changes


def name_sets(
    flags: Mapping[Use, SetFlags], datasets: Mapping[Use, Iterable[str]], changes: Sequence[Sequence[Any]]
) -> tuple[NamedSources, Findings]:
    """Name the sets of `entries_of_uses`, with the changes that `Changes.parse` makes of the three values."""
    parsed, of_values = Changes.parse(*changes)
    of_uses, found = entries_of_uses(flags, datasets, parsed)
    found.add(of_values)
    names: dict[Use, tuple[str, ...]] = {}
    sources: dict[str, SetSource] = {}
    for use, entries in of_uses.items():
        names[use], by_name = name_sources(entries)
        sources |= by_name
    return NamedSources(names, sources, parsed), found


def change_values(cfg: Any) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """Return the values of the keys that `Changes.parse` takes."""
    return cfg.DATASETS.CLASSES, cfg.DATASETS.MERGE_CLASSES, cfg.DATASETS.SPLIT_VAL


def read_changed_sets(
    named: NamedSources, sources: Mapping[str, SetSource], of_model: Classes | None = None, **how: Any
) -> tuple[dict[str, OwnSet], list[str]]:
    """Read some of the named sets, with the changes to them.

    Those to evaluate on are numbered as the classes of the model, or else of the first set to train on.

    Args:
        how: further arguments of `read_sets`.

    Returns:
        The sound sets by name, and every problem of the others.
    """
    changes, names = named.changes, of_model and of_model.names
    sets, problems = read_sets(sources, split=changes.split, class_map=changes.class_map, class_names=names, **how)
    trained_on = named.names.get("train", ())
    if of_model is not None:
        _match_classes(sets, sources, of_model, CLASSES_FILE)
    elif first := sets.get(trained_on[0]) if trained_on else None:
        index = CocoIndex(first.file.coco)
        _match_classes(sets, sources, Classes(index.names, index.category_ids), first.place)
    return sets, problems


def too_many_left_out(files: Iterable[CocoFile], most: int) -> list[str]:
    """Say so where more images were left out of all files together than the flag allows; each is below it alone.

    An image of several sets, as of both parts of a split one, counts once.
    """
    left_out = {path for file in files for path in file.images_left_out}
    if len(left_out) <= max(0, most):
        return []
    named = some("", sorted(left_out))
    fix = f"replace or remove them, or raise it: {named}"
    return [f"{len(left_out)} images of all sets are bad, more than --skip-bad-images {most}; {fix}"]


def told_once(notes_of_sets: Iterable[Sequence[str]]) -> list[str]:
    """Return the notes of all sets; once where several have the same, as a file for both uses has."""
    return [note for notes in dict.fromkeys(map(tuple, notes_of_sets)) for note in notes]


def _match_classes(sets: dict[str, OwnSet], sources: Mapping[str, SetSource], classes: Classes, place: str) -> None:
    """Number the classes of the sets to evaluate on as those that are trained on, where all of them are among those."""
    for name, own in sets.items():
        names = own.file.class_names
        if sources[name].use == "val" and names != classes.names and set(names) <= set(classes.names):
            file = own.file.with_classes(classes.names, classes.ids, place)
            file.notes[-1] = f"{own.place}: {file.notes[-1]}"
            sets[name] = own._replace(file=file)


def read_own_sets(options: TrainOptions, cfg: Any) -> tuple[OwnSets, Findings]:
    """Read the sets that the flags name, or else DATASETS by place; for --eval-only those to evaluate on alone."""
    from ..data.catalog import JsonDataset  # needs Detectron2, which the flags themselves do not

    listed: dict[Use, Sequence[str]] = {"train": cfg.DATASETS.TRAIN, "val": cfg.DATASETS.TEST}
    named, found = name_sets({use: options.own_sets(use) for use in USES}, listed, change_values(cfg))
    names, sources = named.names, named.sources
    also: list[SetSource] = []
    of_model = None
    if options.eval_only:
        of_model = read_classes(weights_folder(cfg))
        also = [s for s in sources.values() if s.use == "train" and s.kind != "json" and of_model is None]
        sources = {name: source for name, source in sources.items() if source.use == "val"}
    sets, problems = read_changed_sets(
        named,
        sources,
        of_model,
        also=also,
        decode=options.preflight_only,
        skip_bad_images=max(0, options.skip_bad_images),
        allow_outside=options.allow_outside,
        may_lack_annotations=True,
    )
    found.errors += problems
    trained = {name: own for name, own in sets.items() if sources[name].use == "train"}
    if trained.keys() == set(names["train"]):
        found.add(_check_objects(trained.values()))
    files = {}
    for name, own in sets.items():
        evaluator = "lvis" if own.file.is_federated else "coco"
        dataset = JsonDataset(name, own.place, own.image_dir, checked_copy(options, cfg, name), evaluator)
        files[dataset] = own.file
    found.errors = list(dict.fromkeys(found.errors))  # one file may be given for both uses
    return OwnSets(names["train"], names["val"], set(sources), files), found


def checked_copy(options: TrainOptions, cfg: Any, name: str) -> str:
    """Return the file of a set's checked annotations; an evaluation's are beside its results."""
    return str(Path(cfg.OUTPUT_DIR, INFERENCE if options.eval_only else "", ANNOTATIONS, f"{name}.json"))


def weights_folder(cfg: Any) -> Path:
    """Return the folder of MODEL.WEIGHTS; for an address it is one that does not exist."""
    return Path(cfg.MODEL.WEIGHTS).parent


def _check_pairs(use: Use, files: int, folders: int) -> Findings:
    if files == folders:
        return Findings()
    if not files or not folders:
        given, missing = ("json", "images") if files else ("images", "json")
        return Findings([f"--{use}-{given} is given without --{use}-{missing}; both are needed"])
    given = f"--{use}-json is given {files} times and --{use}-images {folders} times"
    return Findings([f"{given}; each file needs the folder of its images, in the same order"])


def _check_objects(sets: Collection[OwnSet]) -> Findings:
    places = [own.place for own in sets if all(a["iscrowd"] for a in own.file.coco["annotations"])]
    if not sets or len(places) < len(sets):
        return Findings()
    return Findings([f"{', '.join(places)}: {NO_OBJECTS}"])
