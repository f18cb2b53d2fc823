"""Names for what is missing beside the package's core, and the command that installs it.

The core runs exported models, scores and draws what they find, inspects data sets and writes reports. Training, and
whatever builds a model, also needs PyTorch and Detectron2. Imports neither, nor anything else that may be missing.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

# Its official repository at the commit that is tested, as in tools/setup.sh.
DETECTRON2 = (
    "detectron2 @ git+https://github.com/facebookresearch/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833"
)
# What is imported by name from each extra of setup.py.
_EXTRAS = {
    "train": ("torch", "torchvision", "fvcore", "iopath", "omegaconf", "yacs", "tensorboard", "termcolor"),
    "export": ("onnx", "onnxscript", "safetensors"),
    "completion": ("shtab",),
    "lvis": ("lvis",),
    "results": ("pandas", "supervision", "trackers"),
    "mlflow": ("mlflow",),
    "wandb": ("wandb",),
}


def install_command(module: str) -> str:
    """Return the command that installs what a module comes from."""
    if module == "detectron2":
        if is_checkout():
            return "make setup DETECTRON2=<wheel, checkout or requirement>"
        return f"{sys.executable} -m pip install --no-deps --no-build-isolation '{DETECTRON2}', or a wheel of it"
    extra = next((extra for extra, modules in _EXTRAS.items() if module in modules), None)
    # pip would look for a package that is not installed on its index, and somebody else's may be there
    if not _is_installed():
        return "make setup"
    requirement = f"'focal_det[{extra}]'" if extra else module
    return f"{sys.executable} -m pip install {requirement}"


def missing_message(error: ImportError) -> str:
    """Return an error's message and, where it names a module that is missing or broken, what installs or fixes that."""
    module = (error.name or "").partition(".")[0]
    known = {"detectron2", *(module for modules in _EXTRAS.values() for module in modules)}
    if module in known and isinstance(error, ModuleNotFoundError):
        return f"{error}, which this needs; install it with: {install_command(module)}"
    return f"{error}; `focal-det doctor` names what fixes it" if module not in ("", "focal_det") else str(error)


def training_message(error: ImportError) -> str:
    """Return why nothing can be trained where importing PyTorch and Detectron2 raises the error, and what to do."""
    is_detectron2 = (error.name or "detectron2").partition(".")[0] == "detectron2"
    needed = "Detectron2" if is_detectron2 else "PyTorch and Detectron2"
    if is_checkout():
        fix = "Run `make setup`, with DETECTRON2=<wheel, checkout or requirement> if it finds none by itself."
    else:
        first = "" if is_detectron2 else f"PyTorch and the like with: {install_command('torch')}; then "
        fix = f"Install {first}Detectron2, which is on no package index, with: {install_command('detectron2')}."
    without = "Exported models (--model) run without."
    if is_detectron2:
        mathematics = "The losses and the rest of the mathematics (focal_det.losses, focal_det.heirs, ...)"
        without = f"{mathematics} work without, and so do exported models (--model)."
    return f"focal_det trains and detects through {needed}, which cannot be imported here ({error}). {fix} {without}"


def is_checkout() -> bool:
    """Return whether the package lies in its repository, where `make setup` works, rather than being installed."""
    return (Path(__file__).parents[1] / "tools" / "setup.sh").is_file()


def _is_installed() -> bool:
    try:
        metadata.version("focal_det")
    except metadata.PackageNotFoundError:
        return False
    return True
