"""Whether the checkpoints of a run fit on the disk, and the message when one could not be written."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import torch
from detectron2.config import CfgNode

from ..errors import Findings
from ..output_layout import BEST_EMA_CHECKPOINT, CHECKPOINT_PATTERN, FINAL_EMA_CHECKPOINT

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # full, or no longer writable
_BYTES = 4  # of a number in a checkpoint


def checkpoint_bytes(model: torch.nn.Module, *, has_average: bool = False) -> int:
    """Return a checkpoint's size: what the model saves, and the momentum of the parameters that are trained.

    `has_average`: it also holds the EMA of what the model saves.
    """
    saved = sum(value.numel() for value in model.state_dict().values()) * (2 if has_average else 1)
    return _BYTES * (saved + sum(p.numel() for p in model.parameters() if p.requires_grad))


def checkpoints_to_come(cfg: CfgNode) -> int:
    """Return how many more checkpoints there will be: the periodic ones that stay, the best and the final one.

    The two files of the EMA, which hold no momentum, count as one.
    """
    of_average = (BEST_EMA_CHECKPOINT, FINAL_EMA_CHECKPOINT)
    there = len([path for path in Path(cfg.OUTPUT_DIR).glob(CHECKPOINT_PATTERN) if path.name not in of_average])
    beside = 3 if cfg.MODEL.FOCAL_DET.EMA.DECAY else 2
    periodic, kept = cfg.SOLVER.MAX_ITER // max(1, cfg.SOLVER.CHECKPOINT_PERIOD), cfg.MODEL.FOCAL_DET.CHECKPOINTS_KEPT
    return max(0, (min(periodic, kept) if kept > 0 else periodic) + beside - there)


def free_bytes(folder: str) -> int:
    """Return what is free on the disk that the folder is on, or would be on."""
    path = Path(folder).absolute()
    while not os.path.exists(path):
        path = path.parent
    return shutil.disk_usage(path).free


def check_disk(cfg: CfgNode, each: int) -> Findings:
    """Check that the disk has room for the run's checkpoints of so many bytes each.

    It is an error if those that will stay do not fit, and a warning if one more does not: it is written before an older
    one is removed.
    """
    number, free = checkpoints_to_come(cfg), free_bytes(cfg.OUTPUT_DIR)
    if free >= (number + 1) * each:
        return Findings()
    message = (
        f"OUTPUT_DIR is {cfg.OUTPUT_DIR}, whose disk has {gigabytes(free)} free; {number} checkpoints of "
        f"{gigabytes(each)} need {gigabytes(number * each)}, and {gigabytes(each)} while one is written: make room, or "
        "lower MODEL.FOCAL_DET.CHECKPOINTS_KEPT"
    )
    return Findings(errors=[message]) if free < number * each else Findings(warnings=[message])


def not_written_message(path: Path, error: OSError, needed: int, newest: str) -> str:
    """Return what of a training could not be written and why, what is there, and how to continue.

    The file would have `needed` bytes; --resume will use the `newest` checkpoint, "" for none.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        missing = max(needed - free_bytes(str(path.parent)), 10**6)
        fix = f"free {gigabytes(missing)} on its disk, or lower MODEL.FOCAL_DET.CHECKPOINTS_KEPT"
    else:
        fix = f"make sure that {path.parent} can be written"
    there = f"The newest checkpoint there is {newest}, as it was" if newest else "There is no checkpoint yet"
    again = "run again with --resume" if newest else "start again with --resume auto"
    return f"{path} could not be written ({error.strerror or error}). {there}: {fix}, then {again}."


def gigabytes(number: int) -> str:
    """Return a number of bytes as text, in GB or MB."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
