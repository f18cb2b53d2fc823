"""Look at PyTorch, Detectron2, the devices, and what makes training faster on them."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from ..environment import commit, has_bfloat16, num_cores, output_of
from ..errors import counted
from ..extras import install_command
from .system import ABSENT, BROKEN, NOTE, OK, PIP, Finding, error_text, has_training


def pytorch() -> Iterator[Finding]:
    """Look at PyTorch, the driver, and whether torchvision fits."""
    if not has_training():
        value = "not installed: only for what trains, exports or reads checkpoints"
        yield Finding("PyTorch", "torch", value, ABSENT, install_command("torch"))
        return
    try:
        torch = importlib.import_module("torch")
    except Exception as error:
        yield Finding("PyTorch", "torch", f"cannot be imported ({error_text(error)})", BROKEN, install_command("torch"))
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for processors alone"
    yield Finding("PyTorch", "torch", f"{torch.__version__}, {built}, in {Path(str(torch.__file__)).parent}")
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
    if torch.cuda.is_available():
        yield Finding("PyTorch", "NVIDIA driver", driver or "unknown")
    elif driver and "CUDA_VISIBLE_DEVICES" in os.environ:
        value = f"{driver}; GPUs are hidden by CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}"
        yield Finding("PyTorch", "NVIDIA driver", value, NOTE, "unset CUDA_VISIBLE_DEVICES")
    elif driver:
        value = f"{driver} has GPUs that this PyTorch cannot use: it is {built}"
        fix = f"{PIP} --force-reinstall torch torchvision, as pytorch.org/get-started says for this driver"
        yield Finding("PyTorch", "NVIDIA driver", value, NOTE, fix)
    try:
        ops = importlib.import_module("torchvision.ops")
        ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([1.0]), 0.5)
        yield Finding("PyTorch", "torchvision", "its operators run with this PyTorch")
    except Exception as error:
        value = f"its operators do not run with this PyTorch ({error_text(error)})"
        yield Finding("PyTorch", "torchvision", value, BROKEN, f"{PIP} --force-reinstall torchvision torch")


def detectron2() -> Iterator[Finding]:
    """Look at Detectron2, where it comes from, and whether its compiled part fits."""
    fix = install_command("detectron2")
    if not has_training():
        yield Finding("Detectron2", "detectron2", "not installed: only for what PyTorch is for", ABSENT, fix)
        return
    try:
        package = importlib.import_module("detectron2")
        importlib.import_module("detectron2.engine")
    except Exception as error:
        value = f"cannot be imported ({error_text(error)}); the losses, and detectors in ONNX, work without"
        yield Finding("Detectron2", "detectron2", value, BROKEN, fix)
        return
    folder = Path(str(package.__file__)).parent
    yield Finding("Detectron2", "detectron2", f"{getattr(package, '__version__', 'unknown')}, {_origin(folder)}")
    try:
        importlib.import_module("focal_det.plugin")
        yield Finding("Detectron2", "plug-in", "FocalRetinaNet and its parts are registered")
    except Exception as error:
        yield Finding("Detectron2", "plug-in", f"cannot be registered ({error_text(error)})", BROKEN, fix)
    try:
        extension: Any = importlib.import_module("detectron2._C")
        value = f"loads with this PyTorch; built by {extension.get_compiler_version()}"
        yield Finding("Detectron2", "compiled part", f"{value}, CUDA {extension.get_cuda_version()}")
    except Exception as error:
        value = (
            f"does not load with this PyTorch ({error_text(error)}); only MODEL.RESNETS.DEFORM_ON_PER_STAGE needs it"
        )
        yield Finding("Detectron2", "compiled part", value, NOTE, fix)


def _origin(folder: Path) -> str:
    """Say where Detectron2 was installed from, as pip noted it, and the commit if it is known."""
    try:
        noted = json.loads(metadata.distribution("detectron2").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        noted = {}
    revision = noted.get("vcs_info", {}).get("commit_id")
    if revision is None and output_of("git", "-C", str(folder), "ls-files", "__init__.py"):
        revision = commit(folder)
    source = f"from {noted['url']}" if "url" in noted else f"in {folder}"
    return f"{source}, commit {revision or 'unknown'}"


def devices() -> Iterator[Finding]:
    """Look at the processor and the GPUs."""
    cores = counted(num_cores(), "core")
    try:
        torch = importlib.import_module("torch")
        computes = "computes in bfloat16" if has_bfloat16("cpu") else "no bfloat16 instructions"
    except Exception:
        yield Finding("devices", "processor", cores)
        return
    yield Finding("devices", "processor", f"{cores}, {computes}")
    if not torch.cuda.is_available():
        yield Finding("devices", "GPU", "none in use: training runs on the processor, many times slower")
        return
    for i in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(i)
        value = f"{found.name}, {found.total_memory / 1e9:.0f} GB, compute capability {found.major}.{found.minor}"
        yield Finding("devices", f"GPU {i}", value)


def speed_options() -> Iterator[Finding]:
    """Say which of MODEL.FOCAL_DET.SPEED and SOLVER.AMP work here, and why others do not."""
    try:
        torch = importlib.import_module("torch")
        from ..losses.triton_loss import triton_missing
    except Exception:
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    no_bfloat16 = None if has_bfloat16(device) else f"no bfloat16 instructions on this {device}"
    compilers = filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++"))  # where torch.compile looks
    no_compiler = None if any(map(shutil.which, compilers)) else "torch.compile needs a C++ compiler, and there is none"
    obstacles = {
        **dict.fromkeys(("CHANNELS_LAST", "FOLD_NORMS", "FUSED_SGD", "PAD_TO"), None),
        **dict.fromkeys(("BFLOAT16_INFERENCE", "SOLVER.AMP bfloat16"), no_bfloat16),
        "SOLVER.AMP float16": None if device == "cuda" else "needs a GPU",
        "TRITON": triton_missing(torch.device(device)),
        "COMPILE": no_compiler,
        "CUDA_GRAPHS": None if device == "cuda" else "needs a GPU",
    }
    for name, obstacle in obstacles.items():
        fix = "apt-get install g++, or set CXX" if name == "COMPILE" and obstacle else ""
        yield Finding("speed options", name, f"no: {obstacle}" if obstacle else "works here", NOTE if fix else OK, fix)
