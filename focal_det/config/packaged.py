"""The path of a configuration file: as it is named, or by name among those that come with the package.

A checkout has them in configs/; a wheel packs that folder into the package, see setup.py. `focal_det://bccd.yaml` and
`focal_det://paper/table1b.yaml` name the same files in both. Imports no Detectron2.
"""

from __future__ import annotations

import difflib
from pathlib import Path, PurePosixPath

from ..errors import InputError

SCHEME = "focal_det://"
_PACKAGE = Path(__file__).parents[1]


def config_path(name: str | Path) -> Path:
    """Return the path of a configuration file; raise InputError for an unknown `focal_det://` name."""
    text = str(name)
    if not text.startswith(SCHEME):
        return Path(name)
    there = packaged_configs()
    wanted = text.removeprefix(SCHEME)
    if wanted in there:
        return configs_folder() / wanted
    stems = {PurePosixPath(config).stem.lower(): config for config in there}
    asked = PurePosixPath(wanted).stem.lower()
    close = [stems[stem] for stem in difflib.get_close_matches(asked, stems, n=1)]
    hint = f"did you mean {SCHEME}{close[0]}?" if close else f"there are {', '.join(there) or 'none'}"
    raise InputError(f"config file {text}: no configuration of that name comes with focal_det; {hint}")


def packaged_name(path: Path) -> str | None:
    """Return the `focal_det://` name for a path that would lead to a configuration from a checkout; else None."""
    parts = path.parts[path.parts.index("configs") + 1 :] if "configs" in path.parts else ()
    name = "/".join(parts)
    return f"{SCHEME}{name}" if name in packaged_configs() else None


def packaged_configs() -> list[str]:
    """List the configurations that come with the package, relative to their folder."""
    folder = configs_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def configs_folder() -> Path:
    """Return the folder of the configurations: in the package, if it was installed from a wheel, else beside it."""
    packed = _PACKAGE / "configs"
    return packed if packed.is_dir() else _PACKAGE.parent / "configs"
