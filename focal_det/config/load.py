"""From YAML files and command-line overrides to a configuration, with errors that say where and how to fix it.

    Detectron2's, focal_det's, plug-ins' keys    known keys with their defaults, whose kind is what each takes
    < _BASE_ of a file, and its bases below      a layer each (`Layer`): a file's place, and the keys that it sets
    < the file; of several the later wins        likewise
    < KEY VALUE ... of the command line          the last layer

Each key that a layer sets with a value that fits is a `Setting`, which remembers the layer. So a file that names
another loss than the layers below it leaves their constants behind, while one that is set for a loss that does not read
it is refused (`unused_keys`), and config_changes.json can say who set what (`diff`).
"""

from __future__ import annotations

import ast
import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from ..data.dataset_spec import registered_sets
from ..errors import Findings
from .layers import COMMAND_LINE, Setting, leaves, read_layers, set_value
from .plugins import FLAG, check_recorded, default_config, loaded_plugins
from .plugins import KEY as PLUGINS
from .unused_keys import check_unread_keys, reset_constants_left_behind

# MODEL.RETINANET.NUM_CLASSES while nobody has set it: it is then taken from the data.
UNSET_NUM_CLASSES = -1
_KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "a text"}


class ConfigAsRead(NamedTuple):
    """The configuration that files and overrides make."""

    cfg: CfgNode  # not frozen; what is wrong has been left out
    findings: Findings  # of keys and values, each with its place
    places: dict[str, str]  # of each key that was set, the file that set it last, or "command line"


def load_config(config_files: str | Path | Sequence[str | Path], overrides: Sequence[str] = ()) -> CfgNode:
    """Return the defaults (Detectron2's, focal_det's, those of plug-ins), each file with its bases, the overrides.

    Args:
        config_files: plain-data YAML, with an optional `_BASE_`; of several the later win; none: the defaults.
        overrides: KEY VALUE KEY VALUE ...

    Returns:
        A configuration that is not frozen. NUM_CLASSES is `UNSET_NUM_CLASSES` if nothing set it; the paper's names
        of data sets are resolved by `registered_sets`.

    Raises:
        InputError: every problem of the file and of the overrides: a missing or malformed file, unknown keys with the
            nearest known one, values of the wrong type, keys that the chosen loss or the architecture does not read,
            plug-ins that the file's run had and that have not been imported.
    """
    read = read_config(config_files, overrides)
    read.findings.raise_if_errors()
    return read.cfg


def read_config(config_files: str | Path | Sequence[str | Path], overrides: Sequence[str] = ()) -> ConfigAsRead:
    """Do as `load_config`, but return what is wrong with keys and values beside what the rest makes.

    Raises InputError for a file that is missing or malformed or names plug-ins that have not been imported, an override
    without its value, or a plug-in whose keys cannot be added.
    """
    cfg = default_config()
    known = dict(leaves(cfg))
    cfg.MODEL.RETINANET.NUM_CLASSES = UNSET_NUM_CLASSES

    problems: list[str] = []
    settings: list[Setting] = []
    files = [config_files] if isinstance(config_files, (str, Path)) else config_files
    for layer, (place, pairs) in enumerate(read_layers([file for file in files if file], overrides, known)):
        for key, value in pairs:
            try:
                setting = Setting(key, _converted(key, value, known), place, layer)
            except ValueError as error:
                problems.append(f"{place}: {error}")
                continue
            if key == PLUGINS:
                if place == COMMAND_LINE:
                    problems.append(f"{place}: {key} is {value!r}, but is set by {FLAG} alone: add that flag instead")
                else:
                    check_recorded(place, setting.value)
            else:
                set_value(cfg, key, setting.value)
                settings.append(setting)
    found = Findings(problems)
    found.add(check_unread_keys(cfg, settings, known))
    reset_constants_left_behind(cfg, settings, known)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = registered_sets(cfg.DATASETS.TRAIN), registered_sets(cfg.DATASETS.TEST)
    places = {setting.key: setting.place for setting in settings}
    if plugins := loaded_plugins():
        cfg.MODEL.FOCAL_DET.PLUGINS, places[PLUGINS] = plugins, COMMAND_LINE
    return ConfigAsRead(cfg, found, places)


def _converted(key: str, value: Any, known: Mapping[str, Any]) -> Any:
    """Return the value as the key takes it; raise ValueError for an unknown key, or a value that does not fit it."""
    if key not in known:
        raise ValueError(_unknown_key(known, key, value))
    old = known[key]
    value = _coerced(value, old)
    if old is None:  # a default that stands for another key's value; the range is checked with all others
        return value
    if type(value) is not type(old) or not _fits(value, old):
        raise ValueError(f"{key} is {value!r}, but takes {_KINDS.get(type(old), 'a list')} such as {old!r}")
    if key == "VERSION" and value != old:
        raise ValueError(f"VERSION is {value}, but only configurations of version {old} are read")
    return value


def _coerced(value: Any, old: Any) -> Any:
    """Return the value as the kind that the key holds, where what was written can only mean that."""
    if isinstance(value, str) and not isinstance(old, str):
        value = _parsed(value)  # from the command line; in YAML "(1, 2)" and 1e-4 are texts too
    if isinstance(old, (list, tuple)):
        if isinstance(value, str):  # DATASETS.TEST my_set, and ("my_set"), which is not a tuple
            value = (value,)
        return type(old)(value) if isinstance(value, (list, tuple)) else value
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < sys.float_info.max else math.inf
    if isinstance(old, int) and isinstance(value, float) and value.is_integer():  # MAX_ITER 9e4
        return int(value)
    if isinstance(old, str) and isinstance(value, (int, float)):  # OUTPUT_DIR: 12 in YAML
        return str(value)
    return value


def _parsed(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def _fits(value: Any, old: Any) -> bool:
    """Tell whether a list's elements are of the kind of the default's: texts, booleans, numbers, or lists of them."""
    if not isinstance(old, (list, tuple)) or old == []:
        return True
    if old == ():  # data sets and files, in Detectron2
        return all(isinstance(element, str) for element in value)
    if isinstance(old[0], (list, tuple)):
        return all(isinstance(element, (list, tuple)) and _fits(element, old[0]) for element in value)
    if isinstance(old[0], bool):
        return all(isinstance(element, bool) for element in value)
    kind = str if isinstance(old[0], str) else (int, float)
    return all(isinstance(element, kind) and not isinstance(element, bool) for element in value)


def _unknown_key(known: Mapping[str, Any], key: str, value: Any) -> str:
    example = next((name for name in known if name.startswith(key + ".")), None)
    if example:
        return f"{key} is a group of keys, but is set to {value!r}; set one of its keys, such as {example}"
    leaf = key.rsplit(".", 1)[-1]
    ours_first = sorted(known, key=lambda name: not name.startswith(("MODEL.RETINANET.", "MODEL.FOCAL_DET.")))
    close = [name for name in ours_first if name.rsplit(".", 1)[-1] == leaf]
    close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    meant = f"; did you mean {close[0]}?" if close else ""
    may_be_own = key.startswith("MODEL.FOCAL_DET.LOSS.") and not loaded_plugins()
    of_plugin = f" A key of your own comes with its plug-in: add {FLAG}" if may_be_own else ""
    return f"unknown key {key}{meant or ('.' if of_plugin else '')}{of_plugin}"
