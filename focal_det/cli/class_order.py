"""Whether the labels that a detector was trained with mean the same classes in the data of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InputError
from ..inference.classes import CLASSES_FILE, numbered_classes, read_classes


def order_problems(folder: Path, classes: Mapping[str, Sequence[str] | None]) -> list[str]:
    """The first class of each set whose label is another than in the detector's classes.json.

    Args:
        folder: of the detector's checkpoints; one without classes.json says nothing.
        classes: by where the sets stand, in the order of the labels; None for those that do not say.
    """
    try:
        of_model = read_classes(folder)
    except InputError as error:
        return error.problems
    if of_model is None or of_model.names == numbered_classes(len(of_model.names)).names:
        return []
    told = (_difference(of_model.names, names, place) for place, names in classes.items() if names is not None)
    return [
        f"{difference}: the data must have the classes of {folder / CLASSES_FILE}, by ids in that order"
        for difference in told
        if difference
    ]


def _difference(model: Sequence[str], data: Sequence[str], place: str) -> str | None:
    for label, name in enumerate(model):
        if list(data[label : label + 1]) != [name]:
            there = data.index(name) if name in data else "not"
            return f"{name!r} is {label} in the model ({CLASSES_FILE}), {there} in {place}"
    if len(data) > len(model):
        return f"{data[len(model)]!r} is not in the model ({CLASSES_FILE}), {len(model)} in {place}"
    return None
