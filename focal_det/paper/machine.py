"""On what and from what a figure was obtained."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch


def hardware() -> str:
    """The GPUs, or the processor and its cores that this process may use."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor()}, {cores} cores, {torch.get_num_threads()} threads"


def processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def versions() -> str:
    """Of Python and PyTorch."""
    return f"Python {platform.python_version()}, PyTorch {torch.__version__}"


def commit(folder: Path) -> str:
    """The git commit of a checkout, marked if tracked files differ from it; "unknown" outside of git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
