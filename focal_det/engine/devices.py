"""Which device, and how many processes: a machine without a GPU is used as it is, and told so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..errors import InputError
from ..losses.triton_loss import triton_missing
from .environment import num_cores

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_MOST_PER_CORE = 8  # processes; slow, but as a test may want it; more are a slip


def choose_device(cfg: CfgNode, num_gpus: int, *, own_gpu: bool = False) -> tuple[list[str], list[str]]:
    """Set MODEL.DEVICE, and what is in bfloat16 or by Triton's kernels, to what this machine has.

    Args:
        num_gpus: processes on this machine; on a machine without a GPU they share its processor cores.
        own_gpu: each process sees one GPU, which no other one sees.

    Returns:
        Warnings and problems.
    """
    warnings: list[str] = []
    if num_gpus < 1:
        return warnings, [f"--num-gpus is {num_gpus}; at least 1 is needed (on a machine without a GPU: 1 process)"]
    gpus, cores = torch.cuda.device_count(), num_cores()
    if cfg.MODEL.DEVICE.startswith("cuda") and gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
        shared = f", in {num_gpus} processes" if num_gpus > 1 else ""
        warnings.append(f"NO GPU HERE: running on the processor ({cores} cores{shared}), which is many times slower")
    if cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "bfloat16" and not has_bfloat16(cfg.MODEL.DEVICE):
        cfg.SOLVER.AMP.ENABLED = False
        warnings.append("no bfloat16 instructions here: training in float32, which is slower and no less exact")
    speed = cfg.MODEL.FOCAL_DET.SPEED
    if speed.BFLOAT16_INFERENCE and not has_bfloat16(cfg.MODEL.DEVICE):
        speed.BFLOAT16_INFERENCE = False
        warnings.append("no bfloat16 instructions here: detecting in float32, which is slower and no less exact")
    missing = triton_missing(torch.device(cfg.MODEL.DEVICE)) if speed.TRITON else None
    if missing:
        speed.TRITON = False
        warnings.append(f"MODEL.FOCAL_DET.SPEED.TRITON is on, but {missing}: the class loss runs without its kernels")
    if cfg.MODEL.DEVICE.startswith("cuda"):
        if num_gpus > gpus and not own_gpu:
            return warnings, [f"--num-gpus is {num_gpus}, but {gpus} are visible; ask for at most {gpus}"]
    elif num_gpus > _MOST_PER_CORE * cores:
        return warnings, [
            f"--num-gpus is {num_gpus}, but this machine has no GPU in use and {cores} cores; ask for at most {cores}"
        ]
    elif num_gpus > cores:
        warnings.append(
            f"{num_gpus} processes share the {cores} cores of this machine, which has no GPU in use: {cores} are faster"
        )
    if not cfg.MODEL.DEVICE.startswith("cuda") and num_gpus > 1 and gpus > 0:
        return warnings, [
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE} with --num-gpus {num_gpus} on a machine with GPUs: "
            "hide them with CUDA_VISIBLE_DEVICES= to train in several processes on the processor"
        ]
    return warnings, []


def gpu_of(local_rank: int, visible: int) -> int:
    """The GPU of a process: by its number on the machine, or the only one that SLURM lets it see.

    Raises:
        InputError: there are more processes than GPUs.
    """
    if 1 < visible <= local_rank:
        raise InputError(
            f"local rank {local_rank} has no GPU, this machine shows {visible}: start at most {visible} processes on it"
        )
    return local_rank if visible > 1 else 0


def gpu_id(gpu: int) -> str:
    """What tells a GPU from all others of all machines; "" where PyTorch does not say."""
    return str(getattr(torch.cuda.get_device_properties(gpu), "uuid", ""))


def share_cores(cfg: CfgNode, num_processes: int) -> None:
    """Give each of the machine's processes its part of the cores, where they compute on them."""
    if num_processes > 1 and cfg.MODEL.DEVICE == "cpu":
        torch.set_num_threads(max(1, num_cores() // num_processes))


def has_bfloat16(device: str) -> bool:
    """Whether the device computes in bfloat16 rather than emulating it."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not say
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
