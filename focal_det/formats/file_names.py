"""The files that an annotation file's images mean where their names are written in another way than on this disk.

Exporters run on other systems and in other folders than the training: names have backslashes, another case or Unicode
form, %20 for a space, another suffix, or folders that are not here. A name is only ever resolved to a file in the
folder of images, and only where one file alone fits.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from ..errors import cut, some
from .image_files import SUFFIXES

_MOST_FILES = 2_000_000  # in the folder; of more, such as a whole disk, none is searched for


def inside(name: str, folder: str | os.PathLike[str]) -> str | None:
    """Return the name relative to the folder, of an absolute name that lies in it; else None."""
    root, path = os.path.abspath(folder), os.path.normpath(name)
    if not os.path.isabs(name) or os.path.commonpath([root, path]) != root or path == root:
        return None
    return os.path.relpath(path, root)


def resolve(images: Sequence[dict[str, Any]], wanted: Iterable[int], folder: str | os.PathLike[str]) -> list[int]:
    """Replace the file_name of the images at the `wanted` positions by the one file in the folder that it means.

    Returns:
        The positions of those that were found. A file that another image has is none, nor is one that two would get.
    """
    wanted = list(wanted)
    files = _files(folder) if wanted else []
    rest = set(wanted)
    taken = {image["file_name"] for place, image in enumerate(images) if place not in rest}
    for form in _FORMS:
        index = _unique((form(file), file) for file in files)
        claims = _unique((file, place) for place in rest if (file := _find(images[place]["file_name"], form, index)))
        for file, place in claims.items():
            if file not in taken:
                images[place]["file_name"] = file
                taken.add(file)
                rest.remove(place)
    return [place for place in wanted if place not in rest]


def renamed_note(before: Mapping[int, str], images: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a note on the images that got another name than `before`, by their positions."""
    changes = [f"{cut(repr(name))} is {cut(repr(images[place]['file_name']))}" for place, name in before.items()]
    what = "file_names are written in another way than the files in the folder and were taken for them"
    return [f"{len(changes)} of {len(images)} {what}: {some('', changes)}"] if changes else []


def _find(name: str, form: Callable[[str], str], index: Mapping[str, str]) -> str | None:
    """Return the file of the longest end of the name that has one: the whole, then without the first folder, ..."""
    parts = [part for part in form(name).split("/") if part not in ("", ".", "..")]
    return next((index[end] for i in range(len(parts)) if (end := "/".join(parts[i:])) in index), None)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()


def _unquoted(name: str) -> str:
    return _plain(unquote(name))


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(_unquoted(name))
    return stem if suffix in SUFFIXES else _unquoted(name)


_FORMS = (_plain, _unquoted, _without_suffix)  # in this order, so that the name that differs least is taken


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs whose first is there once."""
    found: dict[str, Any] = {}
    twice = set()
    for key, value in pairs:
        if found.setdefault(key, value) != value:
            twice.add(key)
    return {key: value for key, value in found.items() if key not in twice}


def _files(folder: str | os.PathLike[str]) -> list[str]:
    """List the images in the folder and below it, relative to it; links to folders are not followed."""
    found = []
    for file in _walk(os.fspath(folder)):
        found.append(file)
        if len(found) > _MOST_FILES:
            return []
    return found


def _walk(folder: str) -> Iterator[str]:
    for path, _, names in os.walk(folder):
        prefix = os.path.relpath(path, folder)
        for name in names:
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                yield name if prefix == "." else f"{prefix}/{name}"
