"""The data sets of a run, whether they come by flag or by name, as far as they can be read before it starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from detectron2.data import MetadataCatalog

from ..data.catalog import JsonDataset, class_names, dataset_problems
from ..data.coco_json import CocoFile
from ..data.fingerprint import fingerprint
from ..data.named_sets import read_named_set
from ..data.sources import Use
from ..data.statistics import Objects, SetStatistics, joined, statistics
from ..errors import InputError


class DescribedSet(NamedTuple):
    """One data set.

    name: in the catalogue.
    is_sound: whether nothing was found wrong with it; all else is empty if it was.
    class_names: None if it does not say.
    content: None where `remark` says why.
    notes: warnings about it.
    boxes_left_out: how many have no area.
    is_trained_on: or evaluated on.
    fingerprint: of its content, see `focal_det.data.fingerprint`.
    """

    name: str
    is_sound: bool
    class_names: list[str] | None = None
    content: SetStatistics | None = None
    remark: str = ""
    notes: Sequence[str] = ()
    boxes_left_out: int = 0
    is_trained_on: bool = False
    fingerprint: str | None = None


def read_sets(
    names: Sequence[str],
    json_files: Mapping[JsonDataset, CocoFile],
    of_flags: Collection[str],
    *,
    evaluated: Collection[str],
    pictures: bool,
    allow_outside: bool,
) -> tuple[list[DescribedSet], list[str]]:
    """The sets in their order, and what is wrong with those that are named.

    Args:
        names: of the run's sets.
        json_files: those of them that flags gave and that were read.
        of_flags: names of all that flags can give.
        evaluated: names of those that are evaluated on.
        pictures: also decode the pictures of the sets that are named.
        allow_outside: whether their names may lead out of their folder.
    """
    problems = dataset_problems(name for name in names if name not in of_flags)
    read = {dataset.name: file for dataset, file in json_files.items()}
    sets = []
    for name in names:
        if name in of_flags:
            sets.append(_described(name, read[name]) if name in read else DescribedSet(name, False))
        elif problems and dataset_problems([name]):
            sets.append(DescribedSet(name, False))
        else:
            try:
                use: Use = "val" if name in evaluated else "train"
                found = read_named_set(name, use, pictures=pictures, allow_outside=allow_outside)
                if isinstance(found, str):
                    sets.append(DescribedSet(name, True, class_names(name), remark=found))
                else:
                    said = MetadataCatalog.get(name).get("thing_classes")  # else Detectron2 takes the file's too
                    sets.append(_described(name, found)._replace(class_names=list(said or found.class_names)))
            except InputError as error:
                problems += error.problems
                sets.append(DescribedSet(name, False))
    return sets, list(dict.fromkeys(problems))  # a set may be there for both uses


def objects_of(sets: Sequence[DescribedSet]) -> tuple[Objects, list[str]]:
    """The objects of the sets together, and the names of their classes."""
    contents = [described.content for described in sets if described.content is not None]
    if not contents:
        return Objects.none(), []
    return joined([content.objects for content in contents]), contents[0].class_names


def _described(name: str, file: CocoFile) -> DescribedSet:
    return DescribedSet(
        name,
        True,
        class_names=file.class_names,
        content=statistics(file.coco),
        notes=file.notes,
        boxes_left_out=file.boxes_left_out,
        fingerprint=fingerprint(file.coco),
    )
