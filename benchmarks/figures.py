"""What every benchmark writes beside its figures: the command, the machine, the versions."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from focal_det.environment import processor


def write_figures(path: Path, **figures: Any) -> None:
    """Write the figures as JSON, headed by how and where they were obtained."""
    circumstances = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{processor()}, {torch.get_num_threads()} threads",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "torchvision", "detectron2")},
        },
    }
    path.write_text(json.dumps(circumstances | figures, indent=1) + "\n")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout on the path
        return "unknown"
