"""Names of pictures in annotation files, which somebody else may have written, and where they lead."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import cut, some

FLAG = "--allow-outside-images"
_BEYOND = re.compile(
    r"[/\\]|[A-Za-z]:[/\\]|(.*[/\\])?\.\.([/\\]|$)", re.DOTALL
)  # on any system, whoever reads the file


def leads_outside(name: str) -> bool:
    """Whether a name, by its words alone, may be of a file outside its folder: absolute, or up by "..".

    A symbolic link in the folder is followed wherever it leads: whoever put it there could read the folder anyhow.
    """
    return _BEYOND.match(name) is not None


def name_problems(images: Sequence[Mapping[str, Any]], *, allow_outside: bool) -> list[str]:
    """Names that no file can have, and those that `leads_outside`, with the pictures' ids.

    Args:
        images: with "id" and "file_name".
    """
    problems = []
    impossible = _named(image for image in images if "\0" in image["file_name"])
    if impossible:
        problems.append(
            f"{len(impossible)} file_names hold a NUL, as no file's can; correct them: {some('', impossible)}"
        )
    outside = [] if allow_outside else _named(image for image in images if leads_outside(image["file_name"]))
    if outside:
        problems.append(
            f"{len(outside)} of {len(images)} file_names lead out of the folder of pictures: {some('', outside)}; make "
            f"them relative to that folder, or, where you trust the file and know what it names, add {FLAG}"
        )
    return problems


def _named(images: Any) -> list[str]:
    return [f"{cut(repr(image['file_name']))} (image id={image['id']})" for image in images]
