"""The classes of a detector, which OUTPUT_DIR/classes.json keeps beside its checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..files import write_text_whole
from ..output_layout import CLASSES_FILE


class Classes(NamedTuple):
    """The names of the labels 0..K-1, and their category ids in the annotation file."""

    names: list[str]
    ids: list[int]


def write_classes(folder: Path, classes: Classes) -> None:
    """Write `classes.json`: [{"id": 3, "name": "cell"}, ...] in the order of the labels."""
    entries = [{"id": id_, "name": name} for name, id_ in zip(*classes, strict=True)]
    write_text_whole(folder / CLASSES_FILE, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")


def read_classes(folder: Path) -> Classes | None:
    """Read what `write_classes` wrote; None if there is no such file; raise InputError if it holds something else."""
    path = folder / CLASSES_FILE
    if not os.path.isfile(path):
        return None
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return Classes([str(entry["name"]) for entry in entries], [int(entry["id"]) for entry in entries])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f'{path}: not a list of {{"id": 1, "name": "..."}} ({error}); fix or remove it') from error


def numbered_classes(num_classes: int) -> Classes:
    """Return names where none are known: "class 0" with id 1, and so on."""
    return Classes([f"class {label}" for label in range(num_classes)], list(range(1, num_classes + 1)))
