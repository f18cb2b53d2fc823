"""The files that an annotation file's images mean where their names are written in another way than on this disk.

Exporters run on other systems and in other folders than the training: names have backslashes, another case or Unicode
form, %20 for a space, another suffix, or folders that are not here. A name is only ever resolved to a file in the
folder of images, and only where one file alone fits.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import cut, some
from ..files import is_hidden
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
    return _renamed([(name, images[place]["file_name"]) for place, name in before.items()], len(images))


class ImageFinder:
    """Finds the images below a folder by the names that annotations give them, whatever folders these had elsewhere.

    Only files below that folder are ever found.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = _files(folder)
        self.names = set(files)
        # Of each form: the files by their paths and by their last parts, where one file alone has these.
        self._indexes = [
            (
                form,
                _unique((form(file), file) for file in files),
                _unique((form(os.path.basename(file)), file) for file in files),
            )
            for form in _FORMS
        ]
        # By file: the names that were taken for it, by path from the folder, as given and whether they are its own.
        self._meant: dict[str, dict[str, tuple[str, bool]]] = {}

    def find(self, given: str, beside: Path, other: str = "") -> str:
        """Return an image's name relative to the folder, or the given name's last part if there is no such image.

        The longest end of the given name that is an image is taken: `x/images/a.jpg` before `images/a.jpg`, then that
        of such an end in another case, form or suffix, and last the one image of the name `a.jpg`, or `a`, anywhere.

        Args:
            given: the name, with slashes or backslashes, relative to anything.
            beside: the folder that it is probably relative to.
            other: a second name to look for, where there is no image of the first.
        """
        near = os.path.relpath(beside, self.folder)
        for name in filter(None, (given, other)):
            if found := self._find(name, near):
                path = os.path.normpath(f"{near}/{_slashed(given)}")
                is_own = found == path or f"/{found}".endswith(f"/{os.path.normpath(_slashed(given))}")
                self._meant.setdefault(found, {})[path] = (given, is_own)
                return found
        return _slashed(given).rstrip("/").rpartition("/")[2]

    def _find(self, given: str, near: str) -> str | None:
        parts = [part for part in _slashed(given).split("/") if part not in ("", ".", "..")]
        ends = ["/".join(parts[start:]) for start in range(len(parts))]
        for name in (*(os.path.normpath(f"{near}/{end}") for end in (_slashed(given), *ends)), *ends):
            if name in self.names:
                return name
        for form, by_path, by_last in self._indexes:
            if found := _find(given, form, by_path) or by_last.get(form(ends[-1] if ends else given)):
                return found
        return None

    def ambiguous(self) -> list[str]:
        """Return the files that several names mean, one of them not the file's own: they may be of other images."""
        several = {file: names for file, names in self._meant.items() if len(names) > 1}
        return [
            f"{some('', [cut(repr(given)) for given, _ in names.values()])} ({cut(repr(file))})"
            for file, names in several.items()
            if not all(is_own for _, is_own in names.values())
        ]

    def notes(self) -> list[str]:
        """Return a note on the images that were found by a name that is not their own."""
        changes = [(g, file) for file, names in self._meant.items() for g, is_own in names.values() if not is_own]
        return _renamed(changes, sum(map(len, self._meant.values())))


def _renamed(changes: Sequence[tuple[str, str]], number: int) -> list[str]:
    pairs = [f"{cut(repr(given))} is {cut(repr(file))}" for given, file in changes]
    what = "file_names are written in another way than the files in the folder and were taken for them"
    return [f"{len(pairs)} of {number} {what}: {some('', pairs)}"] if pairs else []


def _slashed(name: str) -> str:
    return name.replace("\\", "/")


def _find(name: str, form: Callable[[str], str], index: Mapping[str, str]) -> str | None:
    """Return the file of the longest end of the name that has one: the whole, then without the first folder, ..."""
    parts = [part for part in form(name).split("/") if part not in ("", ".", "..")]
    return next((index[end] for i in range(len(parts)) if (end := "/".join(parts[i:])) in index), None)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", _slashed(name)).casefold()


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
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        prefix = os.path.relpath(path, folder)
        for name in names:
            if os.path.splitext(name)[1].lower() in SUFFIXES and not is_hidden(name):
                yield name if prefix == "." else f"{prefix}/{name}"
