"""What every benchmark writes beside its figures: the command, the machine, the versions."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from focal_det.paper.machine import processor


def write_figures(path: Path, **figures: Any) -> None:
    """Write the figures as JSON, headed by how and where they were obtained."""
    circumstances = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{processor()}, {torch.get_num_threads()} threads",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    path.write_text(json.dumps(circumstances | figures, indent=1) + "\n")
