"""What every benchmark writes beside its figures: the command, the machine, the versions."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch


def write_figures(path: Path, **figures: Any) -> None:
    """Write the figures as JSON, headed by how and where they were obtained."""
    circumstances = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{_processor()}, {torch.get_num_threads()} threads",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    path.write_text(json.dumps(circumstances | figures, indent=1) + "\n")


def _processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
