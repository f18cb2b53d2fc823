"""What configuration files and the command line set: layers of dotted keys, the lowest first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from detectron2.config import CfgNode

from ..errors import InputError, first_line
from ..files import open_regular
from ..plain_data import LONGEST_YAML, parse_yaml
from .arithmetic import ConfigLoader
from .packaged import SCHEME, config_path, packaged_name

COMMAND_LINE = "command line"
_BASE = "_BASE_"
_MOST_FILES = 100  # that one file leads to: each may name others, which name others


class Layer(NamedTuple):
    """The keys and values that one file sets, or the command line."""

    place: str  # the file as it was named, or `COMMAND_LINE`
    pairs: list[tuple[str, Any]]


class Setting(NamedTuple):
    """A known key with a value that fits it, who set it, and in which layer, counted from the lowest."""

    key: str
    value: Any
    place: str
    layer: int


def read_layers(
    files: Sequence[str | Path], overrides: Sequence[str], known: Mapping[str, Any] | None = None
) -> list[Layer]:
    """Read each file's bases and the file itself, one file after the other, then the command line.

    `_BASE_` is a file or a list of files, whose later ones win: absolute, under ~, or beside the file that names it.
    Each may also be one that comes with the package, by its `focal_det://` name. Only plain data is read, and
    arithmetic (`ConfigLoader`). Mappings that are values of `known` keys are left whole.

    Raises InputError for a file that is missing, is not a mapping in YAML or leads back to itself; a KEY without VALUE.
    """
    read = (found for file in files for found in _read(config_path(file), (), []))
    layers = [Layer(str(path), list(leaves(keys, known))) for path, keys in read]
    return [*layers, Layer(COMMAND_LINE, list(key_value_pairs(overrides)))]


def key_value_pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield KEY and VALUE of KEY VALUE KEY VALUE ...; raise InputError where one is left over."""
    if len(overrides) % 2:
        left_over = f"{overrides[-1]!r} is left over in {' '.join(overrides)!r}"
        joined = next((f"; write {word.replace('=', ' ', 1)!r}" for word in overrides if "=" in word), "")
        if overrides[0].endswith((".yaml", ".yml")):
            joined = f"; name a configuration by --config-file {overrides[0]}"
        raise InputError(f"{COMMAND_LINE}: overrides are pairs KEY VALUE; {left_over}{joined}")
    yield from zip(overrides[::2], overrides[1::2], strict=True)


def leaves(
    node: Mapping[str, Any], known: Mapping[str, Any] | None = None, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of every leaf; a mapping as the value of a known key is a leaf too."""
    for key, value in node.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and dotted not in (known or {}):
            yield from leaves(value, known, dotted + ".")
        else:
            yield dotted, value


def get_value(cfg: CfgNode, key: str) -> Any:
    """Return the value of a dotted key, or the node of a group of keys."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def set_value(cfg: CfgNode, key: str, value: Any) -> None:
    """Set a dotted key, which is there already."""
    group, _, leaf = key.rpartition(".")
    (get_value(cfg, group) if group else cfg)[leaf] = value


def plain_values(cfg: CfgNode) -> dict[str, Any]:
    """Return a configuration's values by dotted key, as plain data: lists for tuples."""
    return dict(leaves(yaml.safe_load(cfg.dump())))


def _read(path: Path, above: tuple[Path, ...], read: list[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """Return a file's bases and the file, each with its keys; the files `above` led here, and it is added to `read`."""
    place = f"config file {path}" + (f", {_BASE} of {above[-1]}" if above else "")
    if "\0" in str(path):
        raise InputError(f"{place}: its name holds a NUL character, as no file's does")
    if os.path.realpath(path) in map(os.path.realpath, above):
        raise InputError(f"config file {above[0]}: its {_BASE} files lead back to themselves; break the circle")
    if not os.path.isfile(path):
        named = packaged_name(path)
        raise InputError(f"{place}: no such file" + (f"; did you mean {named}?" if named else ""))
    if path.suffix == ".py":
        raise InputError(
            f"{place}: a LazyConfig of Detectron2's, which is a program and is not run here: name a YAML file, such as "
            "those in configs/, or train it with Detectron2's tools/lazyconfig_train_net.py"
        )
    read.append(path)
    if len(read) > _MOST_FILES:
        raise InputError(f"config file {read[0]}: its {_BASE} files are more than {_MOST_FILES}; name fewer")
    try:
        with open_regular(path, most=LONGEST_YAML) as file:
            keys = parse_yaml(file.read().decode("utf-8"), ConfigLoader)
    except yaml.constructor.ConstructorError as error:
        message = f"{place}: {error.problem} at {_line(error)}; only plain data is allowed, so write the value out"
        raise InputError(message) from error
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{place}: not YAML: {error.problem} at {_line(error)}") from error
    except (OSError, RecursionError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{place}: {first_line(error)}") from error
    if not isinstance(keys, dict):
        raise InputError(f"{place}: not a mapping of keys to values")
    bases = keys.pop(_BASE, [])
    files = []
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise InputError(f"{place}: {_BASE} is {base!r}; name a file")
        try:
            below = config_path(base if base.startswith(SCHEME) else path.parent / Path(base).expanduser())
        except InputError as error:
            raise InputError(f"{place}: {_BASE}: {error}") from error
        except RuntimeError as error:  # a ~user who is not there
            raise InputError(f"{place}: {_BASE} is {base!r} ({error}); name a file") from error
        files += _read(below, (*above, path), read)
    return [*files, (path, keys)]


def _line(error: yaml.MarkedYAMLError) -> str:
    return f"line {error.problem_mark.line + 1}" if error.problem_mark else "an unknown line"
