"""A YAML configuration and its bases, each as a layer of its own, so that an error can name the file that is meant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..data.folders import open_regular
from ..errors import InputError
from ..plain_data import LONGEST_YAML, parse_yaml

_BASE = "_BASE_"
_MOST_LAYERS = 100  # of all files together: each may name others, which name others


class Layer(NamedTuple):
    """What one file says: its path as it was named, and its mapping of keys to values."""

    path: str
    keys: dict[str, Any]


def read_layers(path: str | Path) -> list[Layer]:
    """The file's bases, lowest first, and then the file itself. Only plain data is read, never a YAML tag.

    `_BASE_` is a file or a list of files, whose later ones win: absolute, under ~, or beside the file that names it.

    Raises:
        InputError: a file that is missing, is no mapping in YAML, or leads back to itself.
    """
    return _read(Path(path), (), [])


def _read(path: Path, above: tuple[Path, ...], read: list[Path]) -> list[Layer]:
    """above: the files that led here; read: all so far."""
    place = f"config file {path}" + (f", {_BASE} of {above[-1]}" if above else "")
    if "\0" in str(path):
        raise InputError(f"{place}: its name holds a NUL character, as no file's does")
    if path.resolve() in [other.resolve() for other in above]:
        raise InputError(f"config file {above[0]}: its {_BASE} files lead back to themselves; break the circle")
    if not os.path.isfile(path):
        raise InputError(f"{place}: no such file")
    read.append(path)
    if len(read) > _MOST_LAYERS:
        raise InputError(f"config file {read[0]}: its {_BASE} files are more than {_MOST_LAYERS}; name fewer")
    try:
        with open_regular(path, most=LONGEST_YAML) as file:
            keys = parse_yaml(file.read().decode("utf-8"))
    except yaml.constructor.ConstructorError as error:
        raise InputError(
            f"{place}: {error.problem} at {_mark(error)}; only plain data is allowed, so write the value out"
        ) from error
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{place}: not YAML: {error.problem} at {_mark(error)}") from error
    except (OSError, RecursionError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{place}: {str(error).splitlines()[0]}") from error
    if not isinstance(keys, dict):
        raise InputError(f"{place}: not a mapping of keys to values")
    bases = keys.pop(_BASE, [])
    layers = []
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise InputError(f"{place}: {_BASE} is {base!r}; name a file")
        layers += _read(_beside(path, base, place), (*above, path), read)
    return [*layers, Layer(str(path), keys)]


def _beside(path: Path, base: str, place: str) -> Path:
    try:
        return path.parent / Path(base).expanduser()
    except RuntimeError as error:  # no such user's home
        raise InputError(f"{place}: {_BASE} is {base!r} ({error}); name a file") from error


def _mark(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark
    return f"line {mark.line + 1}" if mark else "an unknown line"
