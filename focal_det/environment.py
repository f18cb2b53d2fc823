"""Describe what a run is made from and runs on: version and commit, processor and GPUs, and who gets which of them.

Importable without PyTorch, NumPy or Detectron2, so that `focal-det doctor` can say that they are missing.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .errors import Findings, InputError, counted

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_PACKAGE = Path(__file__).parent
_CAPABILITY_ATTRIBUTES = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
_MOST_PER_CORE = 8  # processes; slow, but as a test may want it; more are a slip


def source_version(package: Path = _PACKAGE) -> str:
    """Return the version and, for a git checkout, the commit and whether files differ from it."""
    found = source_commit(package)
    if found is None:
        return f"{__version__}, not a git checkout"
    return f"{__version__}, commit {found.removesuffix('-dirty')}" + (", modified" if found.endswith("-dirty") else "")


def source_commit(package: Path = _PACKAGE) -> str | None:
    """Return the commit of the checkout that the package is in, as `commit` does; None if it was installed."""
    # an environment inside another project's checkout is in a git folder too, but not tracked there
    return commit(package) if output_of("git", "-C", str(package), "ls-files", "__init__.py") else None


def commit(folder: Path) -> str:
    """Return the commit of a git checkout, marked -dirty if tracked files differ from it; "unknown" outside git."""
    described = output_of("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*")
    return described or "unknown"


def versions() -> str:
    """Name the versions of Python, PyTorch and Detectron2."""
    import torch

    try:
        detectron2 = version("detectron2")
    except PackageNotFoundError:  # a checkout on the path
        detectron2 = "unknown"
    return f"Python {platform.python_version()}, PyTorch {torch.__version__}, Detectron2 {detectron2}"


def output_of(*command: str) -> str:
    """Return what a command prints, or "" if there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def num_cores() -> int:
    """Count the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_of_each(processes: int) -> float:
    """Return how many cores each of so many processes of this machine has, of which this is one or starts them all."""
    cores = num_cores()
    # a task of srun may be bound to cores of its own
    is_bound = cores < int(os.environ.get("SLURM_CPUS_ON_NODE") or 0)
    return cores if is_bound else cores / processes


def processor() -> str:
    """Name the processor where Linux knows its name, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def hardware(num_gpus: int) -> str:
    """Name the GPUs in use or, without any, the processor with the cores and threads of this process."""
    import torch

    # not by PyTorch, which would take memory of the first GPU for as long as this process lives
    query = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if num_gpus and torch.cuda.is_available() and (names := output_of(*query).splitlines()):
        return f"{num_gpus} x {names[0]}"
    return f"{processor()}, {counted(num_cores(), 'core')}, {counted(torch.get_num_threads(), 'thread')}"


def whole_machine(num_gpus: int) -> str:
    """Name the processor with its cores, and the GPUs in use."""
    return ", ".join(dict.fromkeys((hardware(0), hardware(num_gpus))))


def compute_capability() -> tuple[int, int] | None:
    """Return that of the first NVIDIA GPU that this process sees, from the driver; None if that cannot be asked.

    PyTorch's own answer takes memory of that GPU for as long as the process lives, and a GPU in exclusive mode from
    the process that is to train on it.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, value, found = ctypes.c_int(), ctypes.c_int(), []
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for attribute in _CAPABILITY_ATTRIBUTES:
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        found.append(value.value)
    return found[0], found[1]


def has_bfloat16(device: str) -> bool:
    """Return whether the device computes in bfloat16 rather than emulating it."""
    import torch

    if device.startswith("cuda"):
        if torch.version.hip or (capability := compute_capability()) is None:
            return torch.cuda.is_bf16_supported(including_emulation=False)
        return capability >= (8, 0)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not say
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def choose_device(cfg: CfgNode, num_gpus: int, *, own_gpu: bool = False) -> tuple[CfgNode, Findings]:
    """Return a copy with MODEL.DEVICE, bfloat16 and Triton's kernels as this machine can have them; warn of changes.

    Args:
        num_gpus: processes on this machine; on a machine without a GPU they share its processor cores.
        own_gpu: each process sees one GPU, which no other process sees.
    """
    import torch

    cfg = cfg.clone()
    cfg.defrost()
    asked, found = f"--num-gpus is {num_gpus}", Findings()
    if num_gpus < 1:
        return cfg, Findings([f"{asked}; at least 1 is needed (on a machine without a GPU: 1 process)"])
    gpus, cores = torch.cuda.device_count(), num_cores()
    with_cores = counted(cores, "core")
    if cfg.MODEL.DEVICE.startswith("cuda") and gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
        shared = f", in {num_gpus} processes" if num_gpus > 1 else ""
        slow = f"NO GPU HERE: running on the processor ({with_cores}{shared}), which is many times slower"
        if not cfg.SOLVER.AMP.ENABLED and has_bfloat16("cpu"):
            slow += "; SOLVER.AMP.ENABLED True SOLVER.AMP.DTYPE bfloat16 trains up to twice as fast here"
        found.warnings.append(slow)
    found.warnings += _fit_precision(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda"):
        if num_gpus > gpus and not own_gpu:
            found.errors.append(f"{asked}, but {gpus} are visible; ask for at most {gpus}")
    elif num_gpus > _MOST_PER_CORE * cores:
        found.errors.append(f"{asked}, but this machine has no GPU in use and {with_cores}; ask for at most {cores}")
    elif num_gpus > cores:
        shared = f"{num_gpus} processes share the {with_cores} of this machine"
        found.warnings.append(f"{shared}, which has no GPU in use: --num-gpus {cores} is faster")
    return cfg, found


def _fit_precision(cfg: CfgNode) -> list[str]:
    """Turn off bfloat16, Triton's kernels and CUDA graphs where MODEL.DEVICE lacks them; return a warning for each."""
    import torch

    from .losses.triton_loss import triton_missing

    changed, amp, speed = [], cfg.SOLVER.AMP, cfg.MODEL.FOCAL_DET.SPEED
    if not has_bfloat16(cfg.MODEL.DEVICE):
        if amp.ENABLED and amp.DTYPE == "bfloat16":
            amp.ENABLED = False
            changed.append("training")
        if speed.BFLOAT16_INFERENCE:
            speed.BFLOAT16_INFERENCE = False
            changed.append("detecting")
    why = "no bfloat16 instructions here"
    warnings = [f"{why}: {what} in float32, which is slower and no less exact" for what in changed]
    if speed.TRITON and (missing := triton_missing(torch.device(cfg.MODEL.DEVICE), compute_capability())):
        speed.TRITON = False
        warnings.append(f"MODEL.FOCAL_DET.SPEED.TRITON is on, but {missing}: the class loss runs without its kernels")
    if speed.CUDA_GRAPHS and not cfg.MODEL.DEVICE.startswith("cuda"):
        speed.CUDA_GRAPHS = False
        warnings.append("MODEL.FOCAL_DET.SPEED.CUDA_GRAPHS is on, but a processor has none: the network runs without")
    return warnings


def gpu_of(local_rank: int, visible: int) -> int:
    """Return a process's GPU, by its number on the machine or the only visible one; raise InputError if it has none."""
    if 1 < visible <= local_rank:
        raise InputError(
            f"local rank {local_rank} has no GPU, this machine shows {visible}: start at most {visible} processes on it"
        )
    return local_rank if visible > 1 else 0


def gpu_id(gpu: int) -> str:
    """Return what tells a GPU from all others of all machines; "" where PyTorch does not say."""
    import torch

    return str(getattr(torch.cuda.get_device_properties(gpu), "uuid", ""))


def share_cores(cfg: CfgNode, num_processes: int) -> None:
    """Give each of the machine's processes its part of the cores, where they compute on them."""
    import torch

    if num_processes > 1 and cfg.MODEL.DEVICE == "cpu":
        torch.set_num_threads(max(1, num_cores() // num_processes))


def check_interface() -> None:
    """Raise InputError if GLOO_SOCKET_IFNAME names a network interface that this machine does not have."""
    there = [name for _, name in socket.if_nameindex()]
    for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(","):
        if name and name not in there:
            raise InputError(
                f"GLOO_SOCKET_IFNAME names the network interface {name}, which {socket.gethostname()} does not have; "
                f"it has {', '.join(there)}"
            )


def own_bytes() -> int:
    """Return what this process holds of the machine's memory, where Linux tells; else 0."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.is_file() else 0


def free_bytes_of_machine() -> int | None:
    """Return the memory that processes of this machine, or of its control group, may still take; None if unknown."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        rows = dict(line.split(":") for line in meminfo.read_text().splitlines())
        found.append(int(rows["MemAvailable"].split()[0]) * 1024)
    limit, used, stat = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current", "stat"))
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        rows = dict(line.split() for line in stat.read_text().splitlines())
        found.append(int(text) - int(used.read_text()) + int(rows["inactive_file"]))  # cached files, given up first
    return min(found, default=None)


def free_bytes_of_gpus(count: int) -> int | None:
    """Return the free memory of the fullest of the first `count` visible NVIDIA GPUs; None if that cannot be asked.

    Of the driver's own program, since PyTorch would take memory of the first GPU for as long as this process lives.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = ("-i", visible) if visible else ()
    lines = output_of("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", *chosen).splitlines()
    return min((int(line) * 2**20 for line in lines[:count] if line.strip().isdigit()), default=None)
