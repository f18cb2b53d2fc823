"""Plug-ins: modules and files of the user's that register parts and keys as they are imported.

A plug-in is a program, so it is imported where its user names it and nowhere else. What a configuration file says of
plug-ins (MODEL.FOCAL_DET.PLUGINS, which a run writes) is compared with what has been imported, and never followed.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from .. import plugin  # noqa: F401 - what this project registers comes first: a plug-in that takes its names is at fault
from ..defaults import add_focal_det_config
from ..distributed.signals import EndedBySignal
from ..errors import InputError, cut, first_line, visible
from ..registries import CONFIG_REGISTRY
from .layers import leaves

FLAG, KEY = "--plugin", "MODEL.FOCAL_DET.PLUGINS"
_KINDS = (bool, int, float, str, list, tuple)
_named: set[str] = set()  # the modules that --plugin has imported into this process

AddConfig = Callable[[CfgNode], None]


def load_plugins(names: Iterable[str]) -> None:
    """Import what --plugin names: modules, also of the current folder, and files, each once.

    A file becomes a module of its own name, and its folder is searched for what it imports, as a script's is. Raises
    InputError, with the place in the plug-in, if one is not found, fails, or takes a name or key that is there.
    """
    for name in names:
        place = f"{FLAG} {cut(name, 250)}"
        if _is_file_name(name):
            _load_file(place, Path(name))
            _named.add(Path(name).stem)
        else:
            _load_module(place, name)
            _named.add(name)
    default_config()  # adds their keys


def absolute(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names with absolute paths for files, as another process takes them."""
    return tuple(os.path.abspath(name) if _is_file_name(name) else name for name in names)


def register_config(add_config: AddConfig) -> None:
    """Register a function that adds keys, for this process; the same one again changes nothing."""
    if all(_code(known) is not _code(add_config) for _, known in CONFIG_REGISTRY):
        try:
            CONFIG_REGISTRY.register(add_config)
        except AssertionError as error:
            raise InputError(f"{_source(add_config)}: {first_line(error)} Give it another name") from error


def loaded_plugins() -> tuple[str, ...]:
    """Return the plug-ins of this process, sorted, as `KEY` has them: those named by --plugin, and those with keys."""
    return tuple(sorted(map(_recorded, _modules())))


def source_hashes() -> dict[str, str]:
    """Return the SHA-256 of each loaded plug-in's file by its name in `KEY`; what the file imports is not looked at."""
    files = {_recorded(name): Path(_file_of(sys.modules.get(name))) for name in _modules()}
    return {name: sha256(file.read_bytes()).hexdigest() for name, file in sorted(files.items()) if file.is_file()}


def is_loaded(name: str) -> bool:
    """Tell whether a plug-in has been imported, by its name in `KEY`, by --plugin or otherwise."""
    if not _is_file_name(name):
        return name in sys.modules
    modules = (sys.modules.get(Path(name).stem), sys.modules["__main__"])
    return any(os.path.basename(_file_of(module)) == name for module in modules if module)


def check_recorded(place: str, names: Any) -> None:
    """Raise InputError if a file has names of plug-ins that have not been imported; it is data, and may hold others."""
    recorded = [name for name in names if isinstance(name, str)] if isinstance(names, (list, tuple)) else []
    if missing := [name for name in recorded if not is_loaded(name)]:
        # quoted, since they are a stranger's and the line invites to be pasted into a shell
        flags = cut(" ".join(f"{FLAG} {shlex.quote(visible(name))}" for name in missing), 250)
        raise InputError(
            f"{place}: was trained with {flags}: add {'that flag' if len(missing) == 1 else 'those flags'}, after "
            f"reading the {'file that it names' if len(missing) == 1 else 'files that they name'}, for a plug-in is "
            "a program (in Python: import it first)"
        )


def default_config() -> CfgNode:
    """Return the defaults of all keys: Detectron2's, focal_det's, then those of plug-ins.

    Raises InputError for a plug-in that fails, sets a key that is there, or gives one a default that no key can have.
    """
    cfg = get_cfg()
    add_focal_det_config(cfg)
    for _, add_config in CONFIG_REGISTRY:
        guarded = _copied(cfg, _Guarded)
        try:
            add_config(guarded)
        except EndedBySignal:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"{_source(add_config)}: {_reason(error)}") from error
        known = dict(leaves(cfg))
        try:
            cfg = _copied(guarded, CfgNode)
        except ValueError as error:
            raise InputError(f"{_source(add_config)}: {error}") from error
        except RecursionError as error:
            raise InputError(f"{_source(add_config)}: it adds a group of keys that contains itself") from error
        if problem := _wrong_keys(known, cfg):
            raise InputError(f"{_source(add_config)}: {problem}")
    return cfg


def _wrong_keys(known: Mapping[str, Any], cfg: CfgNode) -> str:
    """Return what is wrong with the keys that a plug-in has left behind, or ""."""
    now = dict(leaves(cfg))
    for key, value in now.items():
        if key not in known and (type(value) not in _KINDS or not _is_plain(value)):
            problem = f"{key} has the default {_shown(value)}, but has to be a text, a number, True or False"
            return f"{problem}, a list or a tuple"
    if gone := [key for key in known if key not in now]:
        return f"it removes {gone[0]}, which others read"
    # such as by dict.update, which the guard does not see
    return next((_taken(key) for key in known if now[key] != known[key]), "")


def _taken(key: str) -> str:
    return f"it sets {key}, a key that is there already: give the new one another name"


def _is_plain(value: Any) -> bool:
    """Tell whether a default can be written into a run's config.yaml, and read from it again."""
    try:
        text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, allow_unicode=True)
        text.encode()
        yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        return False
    return value == value  # not nan, which would differ from itself at each resume


def _shown(value: Any) -> str:
    try:
        return cut(repr(value))
    except ValueError:  # an integer of thousands of digits
        return f"of {type(value).__name__}"


class _Guarded(CfgNode):
    """A configuration to which keys can be added, while those that are there cannot be set."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self:
            raise ValueError(_taken(f"{self.__dict__.get('prefix', '')}{name}"))
        super().__setitem__(name, value)


def _copied(node: CfgNode, kind: type[CfgNode], prefix: str = "") -> CfgNode:
    """Return a copy of the tree with nodes of another class, which know their place in it.

    Raises ValueError for a name that nobody could set, RecursionError for a tree that contains itself.
    """
    copy = kind()
    copy.__dict__["prefix"] = prefix
    for name, value in node.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"it adds the key {prefix}{cut(repr(name))}; a name is letters, digits and _")
        copy[name] = _copied(value, kind, f"{prefix}{name}.") if isinstance(value, dict) else value
    return copy


def _modules() -> set[str]:
    return {*_named, *(function.__module__ for _, function in CONFIG_REGISTRY)}


def _is_file_name(name: str) -> bool:
    return name.endswith(".py") or os.sep in name


def _load_module(place: str, name: str) -> None:
    if not all(map(str.isidentifier, name.split("."))):
        raise InputError(f"{place}: a plug-in is a module or a file that ends in .py{_meant(Path(name))}")
    _append_to_path(os.getcwd())
    try:
        importlib.import_module(name)
    except EndedBySignal:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise InputError(f"{place}: no such module{_meant(Path(name))}") from error
        raise InputError(f"{place}: {_reason(error)}") from error


def _load_file(place: str, path: Path) -> None:
    if path.suffix != ".py" or not os.path.isfile(path):
        what = "no such file" if path.suffix == ".py" else "a plug-in is a module or a file that ends in .py"
        raise InputError(f"{place}: {what}{_meant(path)}")
    name, file = path.stem, os.path.realpath(path)
    if file in (os.path.realpath(_file_of(sys.modules.get(module))) for module in (name, "__main__")):
        return
    if (other := _origin(name)) and os.path.realpath(other) != file:
        raise InputError(f"{place}: another module has the name {name} ({other}): rename the file")
    spec = importlib.util.spec_from_file_location(name, os.path.abspath(path))
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    _append_to_path(os.path.dirname(os.path.abspath(path)))
    try:
        spec.loader.exec_module(module)
    except EndedBySignal:
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"{place}: {_reason(error)}") from error


def _origin(name: str) -> str:
    """Return where a module of this name is that Python finds without the plug-in, or ""."""
    try:
        spec = importlib.util.find_spec(name) if "." not in name else None
    except ValueError:  # imported, and made by hand
        return "already imported"
    return (spec.origin or "") if spec else ""


def _meant(path: Path) -> str:
    """Return a hint at a file that may have been meant: its dots are folders, its ending is missing, or a slip."""
    if not path.name:
        return ""
    as_module = path.parent / f"{path.name.replace('.', os.sep)}.py"
    there = [path.parent / f"{path.name}.py", as_module]
    close = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.py")], n=1)
    meant = next((file for file in (*there, *map(path.parent.joinpath, close)) if os.path.isfile(file)), None)
    return f"; did you mean {FLAG} {meant}?" if meant else ""


def _append_to_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that it replaces no module that is found without it


def _reason(error: BaseException) -> str:
    """Say what a plug-in raised, and the line of it that did or that called what did."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    if isinstance(error, SystemExit):
        said = 'it ends the program as it is imported, which belongs under if __name__ == "__main__"'
    else:
        is_message = type(error) in (AssertionError, ValueError)  # such as a registry's, of a name that is taken
        said = first_line(error) if is_message else f"{type(error).__name__}: {first_line(error)}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    foreign = [f for f in frames if f.filename not in (__file__, importlib.__file__)]
    own = [f for f in foreign if f.filename == foreign[0].filename]
    return f"{said} ({own[-1].filename}, line {own[-1].lineno})" if own else said


def _source(function: AddConfig) -> str:
    """Name a function that adds keys and the plug-in that it comes from."""
    return f"plug-in {_recorded(function.__module__)}, {getattr(function, '__name__', function)}"


def _recorded(name: str) -> str:
    """Return a module as `KEY` has it: the script that runs, and single files, by their files' names."""
    module = sys.modules.get(name)
    file = os.path.basename(_file_of(module)) if module else ""
    is_file = name == "__main__" or (module is not None and file == f"{name}.py")
    return file if is_file and file else name


def _file_of(module: ModuleType | None) -> str:
    """Return the file of a module, or "" if it has none."""
    return getattr(module, "__file__", None) or ""


def _code(function: AddConfig) -> object:
    return getattr(function, "__code__", function)
