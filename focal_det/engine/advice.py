"""What works and is likely not meant: warnings about schedule, learning rate and disk."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import torch
from detectron2.config import CfgNode

_PAPERS_LR = 0.01 / 16  # of one picture (section 4.1)
_MUCH = 4  # times the paper's lr: what fine-tuned weights under frozen normalisation mostly do not stand
_MANY_EPOCHS, _USUAL_EPOCHS = 500, 50  # more than the first only memorise; small sets are fitted by the second
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # full, or no more to be written
_BYTES = 4  # of a number in a checkpoint


def schedule_warnings(cfg: CfgNode) -> list[str]:
    """Steps that never happen, a warm-up that never ends, a learning rate that is likely to diverge."""
    solver, warnings = cfg.SOLVER, []
    longest = solver.MAX_ITER
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and solver.STEPS and longest >= 1:
        late = [step for step in solver.STEPS if step >= longest]
        if late:
            warnings.append(
                f"SOLVER.STEPS is {tuple(solver.STEPS)}, but SOLVER.MAX_ITER {longest}: the lr never drops at "
                f"{', '.join(map(str, late))}; set SOLVER.STEPS to fit, such as {_steps(longest)}"
            )
        elif max(solver.STEPS) < longest / 2:
            warnings.append(
                f"SOLVER.STEPS is {tuple(solver.STEPS)}: the last drop of the lr comes before half of SOLVER.MAX_ITER "
                f"{longest}; set SOLVER.STEPS to fit, such as {_steps(longest)}"
            )
    if 1 <= longest <= solver.WARMUP_ITERS:
        warnings.append(
            f"SOLVER.WARMUP_ITERS is {solver.WARMUP_ITERS}, but SOLVER.MAX_ITER {longest}: the lr never reaches "
            f"SOLVER.BASE_LR; set SOLVER.WARMUP_ITERS to {longest // 10} or so"
        )
    if solver.IMS_PER_BATCH >= 1 and cfg.MODEL.RESNETS.NORM == "FrozenBN":
        times = solver.BASE_LR / solver.IMS_PER_BATCH / _PAPERS_LR
        if times > _MUCH:
            warnings.append(
                f"SOLVER.BASE_LR is {solver.BASE_LR} for SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH}: {times:.0f} "
                "times the paper's lr for each picture, with frozen normalisation in the backbone, which is likely to "
                f"diverge; the paper's is SOLVER.BASE_LR {_PAPERS_LR * solver.IMS_PER_BATCH:.2g}"
            )
    return warnings


def epoch_warnings(cfg: CfgNode, pictures: int | None) -> list[str]:
    """A schedule that was written for a much larger data set.

    Args:
        pictures: of an epoch; None if that is not known.
    """
    solver = cfg.SOLVER
    epochs = solver.MAX_ITER * solver.IMS_PER_BATCH / pictures if pictures else 0
    if epochs <= _MANY_EPOCHS:
        return []
    fitting = max(1, _USUAL_EPOCHS * (pictures or 1) // solver.IMS_PER_BATCH)
    return [
        f"SOLVER.MAX_ITER is {solver.MAX_ITER}: {epochs:,.0f} epochs of {pictures} pictures, where the paper's "
        f"schedule has 12; for {_USUAL_EPOCHS} epochs add SOLVER.MAX_ITER {fitting} SOLVER.STEPS {_steps(fitting)} "
        f"SOLVER.WARMUP_ITERS {max(1, min(solver.WARMUP_ITERS, fitting // 10))}"
    ]


def _steps(longest: int) -> str:
    """The paper's, at 2/3 and 8/9 of the schedule, as an override."""
    return f'"({longest * 2 // 3}, {longest * 8 // 9})"'


def checkpoint_bytes(model: torch.nn.Module) -> int:
    """A checkpoint's size: what the model saves, and the momentum of what is trained."""
    saved = sum(value.numel() for value in model.state_dict().values())
    return _BYTES * (saved + sum(p.numel() for p in model.parameters() if p.requires_grad))


def checkpoints_to_come(cfg: CfgNode) -> int:
    """How many checkpoints will stay, those of each period, the best and the final, less those that are there."""
    there = len(list(Path(cfg.OUTPUT_DIR).glob("model_*.pth")))
    periodic, kept = cfg.SOLVER.MAX_ITER // max(1, cfg.SOLVER.CHECKPOINT_PERIOD), cfg.MODEL.FOCAL_DET.CHECKPOINTS_KEPT
    if kept > 0:
        periodic = min(periodic, kept)
    return max(0, periodic + 2 - there)


def free_bytes(folder: str) -> int:
    """Of the disk that the folder is on, or would be on."""
    path = Path(folder).absolute()
    while not os.path.exists(path):
        path = path.parent
    return shutil.disk_usage(path).free


def disk_advice(cfg: CfgNode, each: int) -> tuple[list[str], list[str]]:
    """Warnings and problems of the space for the run's checkpoints of so many bytes each.

    A problem if those that will stay do not fit; a warning if one more does not, which is written before an older one
    goes.
    """
    number, free = checkpoints_to_come(cfg), free_bytes(cfg.OUTPUT_DIR)
    if free >= (number + 1) * each:
        return [], []
    told = (
        f"OUTPUT_DIR is {cfg.OUTPUT_DIR}, whose disk has {gigabytes(free)} free; {number} checkpoints of "
        f"{gigabytes(each)} need {gigabytes(number * each)}, and {gigabytes(each)} while one is written: make room, or "
        "lower MODEL.FOCAL_DET.CHECKPOINTS_KEPT"
    )
    return ([], [told]) if free < number * each else ([told], [])


def not_written_words(path: Path, error: OSError, needed: int, newest: str) -> str:
    """What of a training could not be written and why, what there is, and how to go on.

    Args:
        needed: the file's bytes.
        newest: name of the checkpoint that --resume goes on from; "" for none.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        missing = max(needed - free_bytes(str(path.parent)), 10**6)
        mend = f"free {gigabytes(missing)} on its disk, or lower MODEL.FOCAL_DET.CHECKPOINTS_KEPT"
    else:
        mend = f"see to it that {path.parent} can be written"
    there = f"The newest checkpoint there is {newest}, as it was" if newest else "There is no checkpoint yet"
    again = "run again with --resume" if newest else "start again with --resume auto"
    return f"{path} could not be written ({error.strerror or error}). {there}: {mend}, then {again}."


def gigabytes(number: int) -> str:
    """So many bytes, in words."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
