"""The data sets of a run, given by flag or by name: read as far as they can be before it starts, and their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config.expected_results import SetScores
from ..config.load import UNSET_NUM_CLASSES
from ..config.validate import check_num_classes
from ..data.catalog import JsonDataset, class_names, dataset_problems, evaluator_type, known_classes
from ..data.dataset_spec import Use
from ..data.duplicates import CheckedSet, duplicate_images, duplicate_warnings
from ..data.statistics import Objects, SetStatistics, fingerprint, joined, statistics
from ..data.tile_records import tiles_of
from ..data.tiling import MOST_TILES, Tiles, number_of_tiles, tile_problems
from ..errors import Findings, InputError
from ..formats.coco import CocoFile
from ..inference.classes import Classes, numbered_classes, read_classes
from ..output_layout import CLASSES_FILE
from .named_sets import read_named_set
from .options import TrainOptions
from .own_datasets import NO_OBJECTS, ONLY_TRAIN, OwnSets, checked_copy, read_own_sets, told_once, too_many_left_out
from .scored_sets import check_scoring, refusal


class DescribedSet(NamedTuple):
    """One data set."""

    name: str  # in the catalogue
    is_sound: bool  # whether nothing was found wrong with it; all else is empty if something was
    class_names: list[str] | None = None  # None if it does not say
    content: SetStatistics | None = None  # None where `remark` says why
    remark: str = ""
    notes: Sequence[str] = ()  # warnings about it
    boxes_left_out: int = 0  # how many have no area
    is_trained_on: bool = False  # or evaluated on
    fingerprint: str | None = None  # of its content, see `focal_det.data.statistics.fingerprint`
    is_scored: bool = True  # whether there are objects to score detections against, as far as is known


class DataSets(NamedTuple):
    """All sets of a run."""

    train: tuple[str, ...]  # what DATASETS is to hold: names, also for the sets that flags or DATASETS give by place
    test: tuple[str, ...]  # likewise
    sets: list[DescribedSet]  # in that order; an evaluation has none to train on
    files: dict[JsonDataset, CocoFile]  # the checked files of the sets that have a copy

    @property
    def trained_on(self) -> list[DescribedSet]:
        """The sets to train on."""
        return [described for described in self.sets if described.is_trained_on]

    @property
    def unscored(self) -> list[str]:
        """Names of the sets without objects to score detections against."""
        return [described.name for described in self.sets if not described.is_scored]

    @property
    def scores(self) -> dict[str, SetScores]:
        """The scores of each sound set to evaluate on."""
        kinds = {dataset.name: dataset.evaluator for dataset in self.files}
        tested = (described for described in self.sets if described.is_sound and not described.is_trained_on)
        return {
            d.name: SetScores((kinds.get(d.name) or evaluator_type(d.name)) if d.is_scored else "", d.class_names)
            for d in tested
        }


def read_datasets(options: TrainOptions, cfg: CfgNode) -> tuple[DataSets, Findings]:
    """Read and describe the sets of the flags, or else of DATASETS; the notes are the sets' own."""
    own, found = read_own_sets(options, cfg)
    trained_on = own.train if options.training else ()
    names = (*trained_on, *own.test)
    refused = [name for name in own.test if refusal(name)]
    errors = dataset_problems(name for name in names if name not in (*own.names, *refused))
    described, files = {}, dict(own.files)
    looked = {dataset.name: (dataset.image_dir, file) for dataset, file in own.files.items()}
    for name in dict.fromkeys(names):  # once, also where it is there for both uses: a function may take minutes
        try:
            described[name] = _describe(options, cfg, own, name, files, looked)
        except InputError as error:
            errors += error.problems
            described[name] = DescribedSet(name, False)
    sets = [described[name]._replace(is_trained_on=place < len(trained_on)) for place, name in enumerate(names)]
    errors += _without_objects([one for one in sets if one.is_trained_on], own)
    found.add(check_scoring(own.test, files, cfg.TEST.DETECTIONS_PER_IMAGE))
    found.errors += dict.fromkeys(errors)  # two sets may share a file
    if errors and options.own_sets("train").are_given and not options.own_sets("val").are_given:
        found.errors.insert(0, ONLY_TRAIN)  # the others ask for files that are not meant
    found.errors += too_many_left_out(own.files.values(), options.skip_bad_images)
    checked = [CheckedSet(one.name, *looked[one.name], one.is_trained_on) for one in sets if one.name in looked]
    found.warnings += duplicate_warnings(checked, duplicate_images(checked))
    found.notes += told_once(each.notes for each in described.values())
    return DataSets(own.train, own.test, sets, files), found


def _without_objects(sets: Sequence[DescribedSet], own: OwnSets) -> list[str]:
    """Name the registered sets, if they are all there is to train on and none has an object."""
    if not sets or any(one.is_scored or not one.is_sound or one.name in own.names for one in sets):
        return []
    names = ", ".join(f'"{one.name}"' for one in sets)
    return [f"data set {names}: {NO_OBJECTS}"]


def _describe(
    options: TrainOptions,
    cfg: CfgNode,
    own: OwnSets,
    name: str,
    files: dict[JsonDataset, CocoFile],
    looked: dict[str, tuple[str, CocoFile]],
) -> DescribedSet:
    """Describe one set; raises InputError with the problems of a registered one.

    Args:
        files: receives the copy of a registered one.
        looked: likewise its folder of images and its file.
    """
    if name in own.names:
        file = next((file for dataset, file in own.files.items() if dataset.name == name), None)
        return _described(name, file, file.class_names, _sound_tiles(cfg)) if file else DescribedSet(name, False)
    use: Use = "val" if name in own.test else "train"
    if use == "val" and (problem := refusal(name)):
        raise InputError(problem)
    if dataset_problems([name]):
        return DescribedSet(name, False)
    read = read_named_set(name, use, images=options.preflight_only, allow_outside=options.allow_outside)
    if read.file is None:
        return DescribedSet(name, True, class_names(name), remark=read.remark, is_scored=read.is_scored)
    looked[name] = (read.image_dir, read.file)
    if read.needs_copy and use == "val":
        copy = checked_copy(options, cfg, name)
        dataset = JsonDataset(name, "", read.image_dir, copy, evaluator_type(name), is_registered=True)
        files[dataset] = read.contents()
    registered = MetadataCatalog.get(name).get("thing_classes")  # else Detectron2 takes the file's too
    return _described(name, read.file, list(registered or read.file.class_names), _sound_tiles(cfg))


def _sound_tiles(cfg: CfgNode) -> Tiles:
    """Return the tiles to count; none for values that `check_config` refuses, whose tiles may be without number."""
    asked = cfg.MODEL.FOCAL_DET.TILES
    return Tiles() if tile_problems(asked.SIZE, asked.OVERLAP) else tiles_of(cfg)


def _described(name: str, file: CocoFile, names: list[str], tiles: Tiles) -> DescribedSet:
    if not file.is_annotated:
        remark = f"{len(file.coco['images'])} images without annotations"
        return DescribedSet(name, True, names, remark=remark, notes=file.notes, is_scored=False)
    for image in file.coco["images"] if tiles.size else ():
        if (number := number_of_tiles(image["height"], image["width"], tiles)) > MOST_TILES:
            raise InputError(
                f"{name}: {image['file_name']}, {image['width']}x{image['height']} px, needs {number:,} tiles of "
                f"{tiles.size} px, and an image may have {MOST_TILES:,}: take larger ones, or a smaller --overlap"
            )
    described = DescribedSet(name, True, names, statistics(file.coco, tiles), fingerprint=fingerprint(file.coco))
    is_scored = described.content is not None and len(described.content.objects.boxes) > 0
    return described._replace(notes=file.notes, boxes_left_out=len(file.of_boxes_left_out), is_scored=is_scored)


def objects_of(sets: Sequence[DescribedSet]) -> tuple[Objects, list[str]]:
    """Return the objects of the sets together, and the names of their classes."""
    contents = [described.content for described in sets if described.content is not None]
    if not contents:
        return Objects.none(), []
    return joined([content.objects for content in contents]), contents[0].class_names


def check_classes(cfg: CfgNode, data: DataSets, trained_in: Path | None) -> tuple[int, Findings]:
    """Check that the sets agree with one another, with NUM_CLASSES, and with the labels of the trained detector.

    The checkpoint that is evaluated or resumed, if there is one, was `trained_in` that folder. Returns NUM_CLASSES; if
    it was not set, the number of the data's classes, or 1 where broken data leave it open.
    """
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    classes = {described.name: described.class_names for described in data.sets}
    found = Findings()
    is_set = num_classes != UNSET_NUM_CLASSES
    if not is_set:
        num_classes = next((len(names) for names in classes.values() if names is not None), 1)
        silent = [described.name for described in data.sets if described.is_sound]
        if silent and not any(names is not None for names in classes.values()):
            found.errors.append(f"data set {silent[0]} does not name its classes; set MODEL.RETINANET.NUM_CLASSES")
    found.add(check_num_classes(num_classes, classes, is_set=is_set))
    if trained_in is not None:
        places = {dataset.name: dataset.json_file for dataset in data.files if not dataset.is_registered}
        found.add(_check_labels(trained_in, {places.get(n, f"data set {n}"): names for n, names in classes.items()}))
    return num_classes, found


def classes_of(first: DescribedSet, num_classes: int) -> Classes:
    """Return the names of the labels, and their ids in the first set."""
    if first.class_names is not None and first.content is not None:
        return Classes(first.class_names, first.content.category_ids)
    known = known_classes(first.name)
    return Classes(*known) if known is not None else numbered_classes(num_classes)


def _check_labels(folder: Path, classes: Mapping[str, Sequence[str] | None]) -> Findings:
    """Name the first class of each set whose label differs from the one in classes.json, if the folder has that.

    The classes are in the order of the labels, by where the sets are; None for those that do not say.
    """
    try:
        of_model = read_classes(folder)
    except InputError as error:
        return Findings(error.problems)
    if of_model is None or of_model.names == numbered_classes(len(of_model.names)).names:
        return Findings()
    differences = [_difference(of_model.names, names, place) for place, names in classes.items() if names is not None]
    fix = f"the data must have the classes of {folder / CLASSES_FILE}, by ids in that order"
    return Findings([f"{difference}: {fix}" for difference in differences if difference])


def _difference(model: Sequence[str], data: Sequence[str], place: str) -> str | None:
    for label, name in enumerate(model):
        if list(data[label : label + 1]) != [name]:
            label_in_data = data.index(name) if name in data else "not"
            return f"{name!r} is {label} in the model ({CLASSES_FILE}), {label_in_data} in {place}"
    if len(data) > len(model):
        return f"{data[len(model)]!r} is not in the model ({CLASSES_FILE}), {len(model)} in {place}"
    return None
