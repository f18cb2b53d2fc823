"""From a YAML file and command-line overrides to a configuration, with errors that say where and how to mend."""

from __future__ import annotations

import ast
import difflib
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from detectron2.config import CfgNode, get_cfg

from ..config import add_focal_det_config
from ..data.coco_splits import registered_sets
from ..errors import InputError
from .loss_keys import COMMAND_LINE, Setting, settle_loss_keys
from .unread_keys import unread_key_problems
from .yaml_layers import read_layers

# MODEL.RETINANET.NUM_CLASSES while nobody has set it: it is then taken from the data.
UNSET_NUM_CLASSES = -1


class ConfigAsRead(NamedTuple):
    """What files and overrides make.

    cfg: not frozen; what is wrong has been left out.
    problems: of keys and values, each with its place.
    places: of each key that was set, the file that set it last, or "command line".
    """

    cfg: CfgNode
    problems: list[str]
    places: dict[str, str]


def load_config(config_files: str | Path | Sequence[str | Path], overrides: Sequence[str] = ()) -> CfgNode:
    """Detectron2's defaults, focal_det's, each file with its bases, then the overrides.

    Args:
        config_files: plain-data YAML, with an optional `_BASE_`; of several the later win; "" or none for the
            defaults alone.
        overrides: KEY VALUE KEY VALUE ...

    Returns:
        A configuration that is not frozen. NUM_CLASSES is `UNSET_NUM_CLASSES` if nothing set it; the paper's names
        of data sets are resolved by `registered_sets`.

    Raises:
        InputError: every problem of the file and of the overrides: a missing or malformed file, unknown keys
            with the nearest known one, values of the wrong type, keys of a loss that is not chosen or that the
            architecture does not read.
    """
    cfg, problems, _ = read_config(config_files, overrides)
    if problems:
        raise InputError(problems)
    return cfg


def read_config(config_files: str | Path | Sequence[str | Path], overrides: Sequence[str] = ()) -> ConfigAsRead:
    """As `load_config`, but what is wrong with keys and values comes beside the configuration that the rest makes.

    Raises:
        InputError: a file that is missing or malformed, or an override without its value.
    """
    cfg = get_cfg()
    add_focal_det_config(cfg)
    known = dict(leaves(cfg))
    cfg.MODEL.RETINANET.NUM_CLASSES = UNSET_NUM_CLASSES

    files = [config_files] if isinstance(config_files, (str, Path)) else config_files
    layers = [(path, list(leaves(keys, known))) for file in files if file for path, keys in read_layers(file)]
    layers.append((COMMAND_LINE, list(key_value_pairs(overrides))))

    problems, settings = [], []
    for layer, (place, pairs) in enumerate(layers):
        for key, value in pairs:
            problem = _apply(cfg, known, key, value)
            if problem:
                problems.append(f"{place}: {problem}")
            else:
                settings.append(Setting(key, _coerced(value, known[key]), place, layer))
    problems += settle_loss_keys(cfg, settings, known)
    problems += unread_key_problems(cfg.MODEL.META_ARCHITECTURE, settings, known)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = registered_sets(cfg.DATASETS.TRAIN), registered_sets(cfg.DATASETS.TEST)
    return ConfigAsRead(cfg, problems, {setting.key: setting.place for setting in settings})


def leaves(node: dict[str, Any], known: dict[str, Any] | None = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf; a mapping that a known key holds as its value is a leaf too."""
    for key, value in node.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and dotted not in (known or {}):
            yield from leaves(value, known, dotted + ".")
        else:
            yield dotted, value


def plain_values(cfg: CfgNode) -> dict[str, Any]:
    """A configuration's values by dotted key, as plain data: lists for tuples."""
    return dict(leaves(yaml.safe_load(cfg.dump())))


def key_value_pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """KEY and VALUE of KEY VALUE KEY VALUE ...

    Raises:
        InputError: one is left over.
    """
    if len(overrides) % 2:
        raise InputError(
            f"{COMMAND_LINE}: overrides are pairs KEY VALUE; {overrides[-1]!r} is left over in {' '.join(overrides)!r}"
        )
    yield from zip(overrides[::2], overrides[1::2], strict=True)


def _apply(cfg: CfgNode, known: dict[str, Any], key: str, value: Any) -> str | None:
    """Set one key; the problem if that is not possible."""
    if key not in known:
        return _unknown_key(known, key, value)
    old = known[key]
    value = _coerced(value, old)
    if type(value) is not type(old) or not _fits(value, old):
        return f"{key} is {value!r}, but takes {_kind(old)} such as {old!r}"
    if key == "VERSION" and value != old:
        return f"VERSION is {value}, but only configurations of version {old} are read"
    *path, leaf = key.split(".")
    node = cfg
    for part in path:
        node = node[part]
    node[leaf] = value
    return None


def _coerced(value: Any, old: Any) -> Any:
    """The value as the kind that the key holds, where what was written can only mean that."""
    if isinstance(value, str) and not isinstance(old, str):
        value = _parsed(value)  # from the command line; in YAML "(1, 2)" and 1e-4 are texts too
    if isinstance(old, (list, tuple)):
        if isinstance(value, str):  # DATASETS.TEST my_set, and ("my_set"), which is no tuple
            value = (value,)
        return type(old)(value) if isinstance(value, (list, tuple)) else value
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < sys.float_info.max else math.inf
    if isinstance(old, int) and isinstance(value, float) and value.is_integer():  # MAX_ITER 9e4
        return int(value)
    if isinstance(old, str) and isinstance(value, (int, float)):  # OUTPUT_DIR: 12 in YAML
        return str(value)
    return value


def _fits(value: Any, old: Any) -> bool:
    """Whether a list's elements are of the kind of the default's: texts, truth values, numbers, or lists of them."""
    if not isinstance(old, (list, tuple)) or old == []:
        return True
    if old == ():  # data sets and files, in Detectron2
        return all(isinstance(element, str) for element in value)
    if isinstance(old[0], (list, tuple)):
        return all(_fits(element, old[0]) if isinstance(element, (list, tuple)) else False for element in value)
    if isinstance(old[0], bool):
        return all(isinstance(element, bool) for element in value)
    kind = str if isinstance(old[0], str) else (int, float)
    return all(isinstance(element, kind) and not isinstance(element, bool) for element in value)


def _parsed(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def _unknown_key(known: dict[str, Any], key: str, value: Any) -> str:
    if any(name.startswith(key + ".") for name in known):
        return f"{key} is a group of keys, but is set to {value!r}; set one of its keys, such as {_example(known, key)}"
    leaf = key.rsplit(".", 1)[-1]
    ours_first = sorted(known, key=lambda name: not name.startswith(("MODEL.RETINANET.", "MODEL.FOCAL_DET.")))
    close = [name for name in ours_first if name.rsplit(".", 1)[-1] == leaf]
    close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    return f"unknown key {key}" + (f"; did you mean {close[0]}?" if close else "")


def _example(known: dict[str, Any], group: str) -> str:
    return next(name for name in known if name.startswith(group + "."))


def _kind(value: Any) -> str:
    kinds = {bool: "True or False", int: "an integer", float: "a number", str: "a text"}
    return kinds.get(type(value), "a list")
