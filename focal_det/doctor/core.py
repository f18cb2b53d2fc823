"""Look at what exported models need: onnxruntime, and OpenCV in one of its two builds."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from .system import BROKEN, BUILDS, NOTE, OK, PIP, UNINSTALL, Finding, error_text, installed_version

_GROUP = "exported models"


def exported_models() -> Iterator[Finding]:
    """Look at what runs exported models and draws what they find."""
    try:
        importlib.import_module("numpy")
    except Exception as error:  # without it the others print traces of their own
        fix = f"{PIP} --force-reinstall numpy"
        yield Finding(_GROUP, "NumPy", f"cannot be imported ({error_text(error)})", BROKEN, fix)
        return
    yield _opencv()
    try:
        runtime = importlib.import_module("onnxruntime")
        providers = ", ".join(name.removesuffix("ExecutionProvider") for name in runtime.get_available_providers())
        yield Finding(_GROUP, "onnxruntime", f"{runtime.__version__}, runs on {providers}")
    except Exception as error:
        fix = f"{PIP} --force-reinstall onnxruntime"
        yield Finding(_GROUP, "onnxruntime", f"cannot be imported ({error_text(error)})", BROKEN, fix)


def _opencv() -> Finding:
    """Look at OpenCV: one build, whichever it is, which can be imported."""
    builds = [name for name in BUILDS if installed_version(name) is not None]
    kept = builds[0] if builds else "opencv-python"
    try:
        value, state = f"{importlib.import_module('cv2').__version__}, from {kept if builds else 'no package'}", OK
    except Exception as error:
        value, state = f"cannot be imported ({error_text(error)})", BROKEN
        if ".so" in str(error) and builds and not kept.endswith("headless"):
            kept += "-headless"  # which needs none of a desktop's libraries, such as libGL
    fix = f"{PIP} --force-reinstall --no-deps {kept}" if state == BROKEN else ""
    if len(builds) > 1:
        value += f"; {' and '.join(builds)} are installed at once and overwrite each other's files: keep one"
        state = NOTE if state == OK else state
    if len(builds) > 1 or (builds and kept not in builds):
        fix = f"{UNINSTALL} {' '.join(builds)} && {PIP} --no-deps {kept}"
    return Finding(_GROUP, "OpenCV", value, state, fix)
