"""Look at the machine, the packages and the folders."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from ..config.packaged import SCHEME, configs_folder, packaged_configs
from ..environment import source_version
from ..extras import is_checkout
from ..files import datasets_root, is_writable

OK, NOTE, BROKEN, ABSENT = "ok", "note", "broken", "absent"
# OpenCV's. All install the folder cv2: of two, the one that came last is imported; to uninstall either breaks both.
BUILDS = ("opencv-contrib-python", "opencv-contrib-python-headless", "opencv-python", "opencv-python-headless")
# What exported models do without.
_FOR_TRAINING = "packages for training"
TRAINING_GROUPS = (_FOR_TRAINING, "PyTorch", "Detectron2")
# Packages that are not required, and what each is for.
_OPTIONAL = {"onnx": "export to ONNX", "onnxscript": "export to ONNX", "triton": "COMPILE and TRITON on a GPU"}
_OPTIONAL |= {"lvis": "LVIS's scores", "shtab": "focal-det completion"}
PIP, UNINSTALL = (f"{sys.executable} -m pip {command}" for command in ("install", "uninstall -y"))


class Finding(NamedTuple):
    """One thing that was looked at.

    state: "broken" if training does not work with it, "absent" if it is not installed where only the core is, "note"
        if something else does not work, else "ok".
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
        yield Finding("system", "installation", "a checkout's, in place" if is_checkout() else "a wheel's")
    except metadata.PackageNotFoundError:
        value = "runs from its folder and is not installed, so nothing says which versions it needs"
        yield Finding("system", "installation", value, NOTE, "make setup")
    if _fits(version, needed):
        yield Finding("system", "Python", f"{version}, {sys.executable}")
    else:
        yield Finding("system", "Python", f"{version}; needs {needed}", BROKEN, "another interpreter")
    configs, folder = packaged_configs(), configs_folder()
    if configs:
        yield Finding("system", "configurations", f"{len(configs)} in {folder}, such as {SCHEME}{configs[-1]}")
    else:
        fix = f"{PIP} --force-reinstall --no-deps <the wheel of focal_det>"
        yield Finding("system", "configurations", f"{folder} has none", BROKEN, fix)


def packages() -> Iterator[Finding]:
    """Look at what the installed focal_det requires, and what else it can use."""
    core = dict(_requirements())
    training = dict(_requirements("train")) if has_training() else {}
    training.pop("setuptools", None)
    yield from (_package("packages", name, needed) for name, needed in core.items())
    for name, use in _OPTIONAL.items():
        if name not in core | training:
            yield Finding("packages", name, installed_version(name) or f"not installed; only for {use}")
    yield from (_package(_FOR_TRAINING, name, needed) for name, needed in training.items())
    if has_training():
        yield _setuptools()


def has_training() -> bool:
    """Return whether more than the core was installed, which cannot train: PyTorch, whether it works or not."""
    return installed_version("torch") is not None or importlib.util.find_spec("torch") is not None


def _package(group: str, name: str, needed: str) -> Finding:
    found, tested = installed_version(name), _tested_versions()
    if found is None and name.startswith("opencv"):
        build = next((build for build in BUILDS if installed_version(build)), None)
        if build is not None:
            return Finding(group, name, f"{installed_version(build)}, as {build}")
    if found is None or not _fits(found, needed):
        value = f"missing; needs {needed or 'any version'}" if found is None else f"{found}; needs {needed}"
        return Finding(group, name, value, BROKEN, f'{PIP} "{name}{needed}"')
    if name in tested and tested[name] != found.partition("+")[0]:
        return Finding(group, name, f"{found}, in the supported range ({needed or 'any'}); tested {tested[name]}")
    return Finding(group, name, found + (", as tested" if name in tested else ""))


def _setuptools() -> Finding:
    found = installed_version("setuptools")
    if found is not None and importlib.util.find_spec("pkg_resources") is not None:
        return Finding(_FOR_TRAINING, "setuptools", found)
    value = f"{found or 'missing'}, without pkg_resources: detectron2.model_zoo fails, which only configs/lazy uses"
    return Finding(_FOR_TRAINING, "setuptools", value, NOTE, f'{PIP} "setuptools<81"')


def folders() -> Iterator[Finding]:
    """Check that data sets can be written where they are kept."""
    root = datasets_root().absolute()
    if is_writable(root):
        yield Finding("folders", "data sets", f"{root} (DETECTRON2_DATASETS), can be written")
    else:
        value = f"{root} (DETECTRON2_DATASETS) cannot be written, so no shapes can be drawn there"
        yield Finding("folders", "data sets", value, NOTE, "export DETECTRON2_DATASETS=<folder that can be written>")


def _requirements(extra: str = "") -> Iterator[tuple[str, str]]:
    """Yield name and version range of each requirement of focal_det's core, or of an extra."""
    try:
        from packaging.requirements import Requirement

        texts = metadata.requires("focal_det") or []
    except (ImportError, metadata.PackageNotFoundError):
        return
    for text in texts:
        requirement = Requirement(text)
        of_core, of_extra = (
            requirement.marker is None or requirement.marker.evaluate({"extra": name}) for name in ("", extra)
        )
        if of_extra and (of_core is not bool(extra)):
            yield requirement.name, str(requirement.specifier)


def _tested_versions() -> dict[str, str]:
    """Read the versions that the tests passed with from a checkout's constraints.txt."""
    path = Path(__file__).parents[2] / "constraints.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    pairs = [line.partition(";")[0].strip().split("==") for line in lines if "==" in line and line[0] != "#"]
    return {name.lower(): version for name, version in pairs}


def installed_version(name: str) -> str | None:
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


def error_text(error: Exception) -> str:
    """Return an error's class and message on one line, shortened."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
