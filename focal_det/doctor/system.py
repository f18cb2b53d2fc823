"""Look at the machine, the packages and the folders."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from ..environment import source_version
from ..files import datasets_root, is_writable

OK, NOTE, BROKEN = "ok", "note", "broken"
# Packages that are not required, and what each is for.
_OPTIONAL = {"onnx": "export to ONNX", "onnxruntime": "detectors in ONNX", "triton": "COMPILE and TRITON on a GPU"}
PIP = f"{sys.executable} -m pip install"
SET_UP = "make setup"


class Finding(NamedTuple):
    """One thing that was looked at.

    state: "broken" if training does not work with it, "note" if something else does not, else "ok".
    fix: the command that fixes it; "" if there is nothing to fix.
    """

    group: str
    name: str
    value: str
    state: str = OK
    fix: str = ""


def system() -> Iterator[Finding]:
    """Look at the machine, focal_det itself, and Python."""
    yield Finding("system", "operating system", platform.platform())
    yield Finding("system", "focal_det", f"{source_version()}, in {Path(__file__).parents[1]}")
    version, needed = platform.python_version(), ""
    try:
        needed = str(metadata.metadata("focal_det").json.get("requires_python", ""))
    except metadata.PackageNotFoundError:
        value = "runs from its folder and is not installed, so nothing says which versions it needs"
        yield Finding("system", "installation", value, NOTE, SET_UP)
    if _fits(version, needed):
        yield Finding("system", "Python", f"{version}, {sys.executable}")
    else:
        yield Finding("system", "Python", f"{version}; needs {needed}", BROKEN, f"{SET_UP} PYTHON=<interpreter>")


def packages() -> Iterator[Finding]:
    """Look at what the installed focal_det requires, and what else it can use."""
    tested = _tested_versions()
    required = dict(_requirements())
    for name, needed in required.items():
        found, fix = _version(name), f'{PIP} "{name}{needed}"'
        if found is None and name.startswith("opencv") and _version("opencv-python") is not None:
            yield Finding("packages", name, f"{_version('opencv-python')}, as opencv-python")
        elif found is None:
            yield Finding("packages", name, f"missing; needs {needed or 'any version'}", BROKEN, fix)
        elif not _fits(found, needed):
            yield Finding("packages", name, f"{found}; needs {needed}", BROKEN, fix)
        elif name in tested and tested[name] != found.partition("+")[0]:
            value = f"{found}, in the supported range ({needed or 'any'}); tested {tested[name]}"
            yield Finding("packages", name, value)
        else:
            yield Finding("packages", name, found + (", as tested" if name in tested else ""))
    for name, use in _OPTIONAL.items():
        if name not in required:
            yield Finding("packages", name, _version(name) or f"not installed; only for {use}")
    yield _setuptools()


def _setuptools() -> Finding:
    found = _version("setuptools")
    if found is not None and importlib.util.find_spec("pkg_resources") is not None:
        return Finding("packages", "setuptools", found)
    value = f"{found or 'missing'}, without pkg_resources: detectron2.model_zoo fails, which focal_det does not use"
    return Finding("packages", "setuptools", value, NOTE, f'{PIP} "setuptools<81"')


def folders() -> Iterator[Finding]:
    """Check that data sets can be written where they are kept."""
    root = datasets_root().absolute()
    if is_writable(root):
        yield Finding("folders", "data sets", f"{root} (DETECTRON2_DATASETS), can be written")
    else:
        value = f"{root} (DETECTRON2_DATASETS) cannot be written, so no shapes can be drawn there"
        yield Finding("folders", "data sets", value, NOTE, "export DETECTRON2_DATASETS=<folder that can be written>")


def _requirements() -> Iterator[tuple[str, str]]:
    """Yield name and version range of each requirement of focal_det, without those for development."""
    try:
        from packaging.requirements import Requirement

        texts = metadata.requires("focal_det") or []
    except (ImportError, metadata.PackageNotFoundError):
        return
    for text in texts:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name, str(requirement.specifier)


def _tested_versions() -> dict[str, str]:
    """Read the versions that the tests passed with from a checkout's constraints.txt."""
    path = Path(__file__).parents[2] / "constraints.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    pairs = [line.partition(";")[0].strip().split("==") for line in lines if "==" in line and line[0] != "#"]
    return {name.lower(): version for name, version in pairs}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(version: str, needed: str) -> bool:
    """Return whether a version is in a range; a pre-release or local build such as 2.15.0+cu132 is its number."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True  # its own absence is a finding
    return SpecifierSet(needed).contains(version, prereleases=True)
