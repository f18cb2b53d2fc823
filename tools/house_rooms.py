"""Count files and lines of a package by its rooms: its top level and the folders directly in it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, NamedTuple

TOP = "top level"


class TextFile(NamedTuple):
    """A text file: its path relative to the checkout or the package, and its number of lines."""

    path: Path
    lines: int

    @property
    def is_python(self) -> bool:
        return self.path.suffix == ".py"

    @property
    def room(self) -> str:
        return self.path.parts[0] if len(self.path.parts) > 1 else TOP


def text_files(checkout: Path) -> list[TextFile]:
    """Return the text files of a checkout: what git does not ignore or, without git, what is not hidden or cached."""
    git = ["git", "-C", str(checkout), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    is_git = (checkout / ".git").exists()  # or the checkout may be an unpacked folder inside another one
    listed = subprocess.run(git, capture_output=True, text=True, check=False).stdout if is_git else ""
    if listed:
        paths = {checkout / name for name in listed.split("\0") if name}
    else:
        paths = {
            path
            for path in checkout.rglob("*")
            if not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(checkout).parts)
        }
    counted = ((path.relative_to(checkout), _lines(path)) for path in sorted(paths) if path.is_file())
    return [TextFile(path, lines) for path, lines in counted if lines is not None]


def _lines(path: Path) -> int | None:
    """Return the number of lines of a file, or None if it is not text in UTF-8."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text.count("\n") + (not text.endswith("\n") and bool(text))


def rooms_of(checkout: Path, package: str) -> dict[str, Any]:
    """Measure the files of a package, and those of the folders beside it.

    Returns:
        `rooms`: for each room `modules` (.py files without `__init__.py`), `python_files`, `python_lines`, `text_files`
        and `text_lines`; `total`: the same for the package; `largest_room` (Python lines), `longest_file` (lines) and
        `fullest_folder` (modules, at any depth): a name and the figure; `largest_share`: the largest room's share of
        the Python lines; `beside`: as `rooms`, for the other folders of the checkout.

    Raises:
        FileNotFoundError: there is no such package.
    """
    files = text_files(checkout)
    ours = [TextFile(f.path.relative_to(package), f.lines) for f in files if f.path.parts[0] == package]
    python = [file for file in ours if file.is_python]
    if not python:
        raise FileNotFoundError(f"{checkout} has no package {package}")
    rooms, total = _by_room(ours), _sums(ours)
    largest = max(rooms, key=lambda room: rooms[room]["python_lines"])
    longest = max(python, key=lambda file: file.lines)
    folders = [file.path.parent.as_posix() for file in python if file.path.name != "__init__.py"]
    fullest = max(sorted(set(folders)), key=folders.count, default=".")
    return {
        "rooms": rooms,
        "total": total,
        "largest_room": [largest, rooms[largest]["python_lines"]],
        "largest_share": round(rooms[largest]["python_lines"] / max(1, total["python_lines"]), 4),
        "longest_file": [longest.path.as_posix(), longest.lines],
        "fullest_folder": [fullest, folders.count(fullest)],
        "beside": _by_room([file for file in files if file.path.parts[0] != package]),
    }


def _by_room(files: list[TextFile]) -> dict[str, dict[str, int]]:
    names = sorted({file.room for file in files}, key=lambda name: (name != TOP, name))
    return {name: _sums([file for file in files if file.room == name]) for name in names}


def _sums(files: list[TextFile]) -> dict[str, int]:
    python = [file for file in files if file.is_python]
    return {
        "modules": sum(file.path.name != "__init__.py" for file in python),
        "python_files": len(python),
        "python_lines": sum(file.lines for file in python),
        "text_files": len(files),
        "text_lines": sum(file.lines for file in files),
    }
