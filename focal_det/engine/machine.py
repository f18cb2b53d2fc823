"""On what and from what a figure was obtained."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .environment import num_cores, output_of


def hardware(num_gpus: int) -> str:
    """So many GPUs by their name, or without any the processor and its cores that this process may use."""
    if num_gpus and torch.cuda.is_available():
        # not by PyTorch, which would take memory of the first GPU for as long as this process lives
        names = output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
        if names:
            return f"{num_gpus} x {names[0]}"
    return f"{processor()}, {_counted(num_cores(), 'core')}, {_counted(torch.get_num_threads(), 'thread')}"


def whole_machine(num_gpus: int) -> str:
    """The processor with its cores, and so many GPUs by their name."""
    return ", ".join(dict.fromkeys((hardware(0), hardware(num_gpus))))


def processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def versions() -> str:
    """Of Python, PyTorch and Detectron2."""
    try:
        detectron2 = version("detectron2")
    except PackageNotFoundError:  # a checkout on the path
        detectron2 = "unknown"
    return f"Python {platform.python_version()}, PyTorch {torch.__version__}, Detectron2 {detectron2}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
