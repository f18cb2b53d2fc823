"""Which classes of the user's sets are kept, and which become one: DATASETS.CLASSES and DATASETS.MERGE_CLASSES.

It is done to the checked annotations, so that it is the same for all formats and stands in the completed copy.
"""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ..errors import InputError, cut, some
from ..formats.coco import CocoFile
from ..formats.coco_index import CocoIndex


def split_names(text: str) -> list[str]:
    """Split names with commas between; a name that has a comma itself is in double quotes, a quote in it twice."""
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), []) or [""]]


class ClassMap(NamedTuple):
    """The names to keep, after merging, or () for all; and the new name by each that is merged."""

    kept: tuple[str, ...] = ()
    merged: Mapping[str, str] = {}

    @classmethod
    def parse(cls, kept: Sequence[str], merges: Sequence[str]) -> ClassMap:
        """Parse the values of both keys, of which the second has texts NEW=OLD,OLD,...

        Raises:
            InputError: a text of another form; a class that is merged into two, or merged away though another becomes
                it or though it is kept.
        """
        merged: dict[str, str] = {}
        for text in merges:
            new, equals, olds = (part.strip() for part in str(text).partition("="))
            names = split_names(olds)
            if not new or not equals or not all(names):
                raise InputError(
                    f"DATASETS.MERGE_CLASSES has {cut(repr(text))}; write NEW=OLD,OLD,... as in pet=cat,dog"
                )
            twice = sorted(merged.keys() & set(names))
            if twice:
                raise InputError(f"DATASETS.MERGE_CLASSES merges {some('class', twice)} twice; leave one out")
            merged |= dict.fromkeys(names, new)
        chained = [
            f"{name} (from {old}, into {merged[name]})"
            for old, name in merged.items()
            if merged.get(name, name) != name
        ]
        if chained:
            fix = "merge all of them into one class at once"
            raise InputError(f"DATASETS.MERGE_CLASSES merges into and from {some('', chained)}; {fix}")
        kept = [str(name).strip() for name in kept]
        gone = [name for name in kept if merged.get(name, name) != name]
        if gone:
            raise InputError(f"DATASETS.CLASSES has {some('', gone)}, which is merged into another; keep that one")
        return cls(tuple(dict.fromkeys(kept)), merged)

    def problems(self, names: Collection[str]) -> list[str]:
        """Return what this map names that is not among the classes of the sets."""
        found = []
        new = {self.merged.get(name, name) for name in names}
        for key, wanted, there in (("MERGE_CLASSES", self.merged, names), ("CLASSES", self.kept, new)):
            for name in wanted:
                if name not in there:
                    close = difflib.get_close_matches(name, there, n=1)
                    hint = f"did you mean {close[0]!r}?" if close else f"there are {some('', sorted(there))}"
                    parted = next((one for one in there if "," in one and name in split_names(one)), None)
                    if parted is not None:
                        quoted = parted.replace('"', '""')
                        hint = f"a name with a comma is written in quotes, as in '\"{quoted}\"'"
                    found.append(f"DATASETS.{key} has {name!r}, which is not a class of these sets; {hint}")
        return found

    def apply(self, file: CocoFile, place: str) -> CocoFile:
        """Return a checked file with the classes of this map, and notes on what was merged and left out.

        A merged class has the id of the first that became it; all images stay.
        """
        if not self.kept and not self.merged:
            return file
        index = CocoIndex(file.coco)
        ids: dict[str, int] = {}  # of the new names
        new_ids: dict[int, int] = {}
        for category_id, name in zip(index.category_ids, index.names, strict=True):
            new = self.merged.get(name, name)
            if not self.kept or new in self.kept:
                new_ids[category_id] = ids.setdefault(new, category_id)
        counts = Counter(index.name_of(annotation) for annotation in file.coco["annotations"])
        rows = file.coco["annotations"]
        coco = {
            **file.coco,
            "annotations": [{**a, "category_id": new_ids[i]} for a in rows if (i := a["category_id"]) in new_ids],
            "categories": [{"id": category_id, "name": name} for name, category_id in ids.items()],
        }
        merged = {name: new for name, new in self.merged.items() if name in index.names and name != new}
        left_out = [name for i, name in zip(index.category_ids, index.names, strict=True) if i not in new_ids]
        notes = [f"{place}: {name} became {new} ({counts[name]} boxes)" for name, new in merged.items()]
        if left_out:
            number = sum(counts[name] for name in left_out)
            notes.append(f"{place}: left out {number} boxes of classes that are not kept: {some('', left_out)}")
        return file._replace(coco=coco, notes=[*file.notes, *notes])


ALL_CLASSES = ClassMap()


def renumbered(file: CocoFile, place: str, names: Sequence[str]) -> CocoFile:
    """Return a checked file with these classes, numbered 1..K in this order.

    Raises:
        InputError: an object's class is not among them.
    """
    if file.class_names == list(names):
        return file
    index = CocoIndex(file.coco)
    unknown = sorted({index.name_of(annotation) for annotation in file.coco["annotations"]}.difference(names))
    if unknown:
        fix = "correct these objects, or leave them out by --classes"
        raise InputError(f"{place}: {some('class', unknown)} is not among {', '.join(names)}; {fix}")
    return file.renumbered({name: label for label, name in enumerate(names, start=1)})
