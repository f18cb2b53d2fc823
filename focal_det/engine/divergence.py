"""Losses and gradients that are no numbers: all ranks end before the weights change, and what did it is kept.

Batches are those of Detectron2's loader: a list with a dictionary for each picture.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..files import written_whole
from .agreement import Agreement
from .loss_keys import without_unread_keys

FORMAT = 1  # of the files
_NAME = re.compile(r"iteration_(\d+)_rank\d+(_\d+)?\.pth")


class CheckNumbers(HookBase):
    """End the training on all ranks, before the weights are changed, if a loss or gradient of any rank is no number.

    What each rank with such losses had, or each rank if the losses are finite, is written to OUTPUT_DIR/diverged; see
    `write_divergence`. The gradients' norm goes into the metrics as "grad_norm". A hook of `SimpleTrainer`, to be made
    by all ranks at once.

    Args:
        cfg: of the run.
        is_due: of an iteration, whether to look; to look at a GPU's numbers is to wait for it.
        gradients: whether to look at them too; not those that are scaled and may overflow.

    Raises:
        FloatingPointError: after the backward pass; names the iteration, and the file where there is one.
    """

    def __init__(self, cfg: CfgNode, is_due: Callable[[int], bool], *, gradients: bool = True) -> None:
        self.cfg = cfg
        self.is_due = is_due
        self.gradients = gradients
        self._agreement = Agreement()
        self._step: tuple[list[dict[str, Any]], dict[str, Tensor]] | None = None

    def follow(self, model: nn.Module) -> None:
        """Keep each step's batch and losses of the model, as the trainer calls it."""

        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if module.training:
                self._step = args[0], {name: loss.detach() for name, loss in output.items()}

        model.register_forward_hook(keep)

    def after_backward(self) -> None:
        iteration = self.trainer.iter
        if self._step is None or not self.is_due(iteration):
            return
        batch, losses = self._step
        bad_losses = [name for name, loss in losses.items() if not math.isfinite(loss.sum())]
        named = {name: p.grad for name, p in self.trainer.model.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(list(named.values())).item() if self.gradients else 0.0
        own = 2 if bad_losses else 0 if math.isfinite(norm) else 1
        worst = self._agreement.now(own)
        if worst == 0:
            if self.gradients:
                get_event_storage().put_scalar("grad_norm", norm)
            return
        bad = [name.removeprefix("module.") for name, grad in named.items() if not grad.isfinite().all()]
        path = None
        if own == worst:
            path = write_divergence(
                self.cfg,
                self.trainer.model,
                batch,
                losses,
                bad if self.gradients else [],
                iteration=iteration,
                is_first=self.is_due(iteration - 1),
            )
        if worst == 2:
            what = f"Loss became infinite or NaN at iteration={iteration}"
            where = ", ".join(bad_losses) if bad_losses else "on another rank"
        else:
            what = f"Gradients became infinite or NaN at iteration={iteration}"
            where = f"the first of them of {bad[0]}" if bad else "all of them together"
        kept = f"; to see why: focal-det replay {path}" if path else ""
        raise FloatingPointError(f"{what}, {where}{kept}")


def write_divergence(
    cfg: CfgNode,
    model: nn.Module,
    batch: Sequence[Mapping[str, Any]],
    losses: Mapping[str, Tensor],
    bad_gradients: Sequence[str],
    *,
    iteration: int,
    is_first: bool,
) -> Path | None:
    """Write OUTPUT_DIR/diverged/iteration_<iteration>_rank<rank>.pth: the batch, the weights, losses, configuration.

    It is read by `focal-det replay`, and by `torch.load(..., weights_only=True)`. No earlier file is replaced.

    Args:
        model: whose weights the step has not changed yet.
        losses: scalars by name.
        bad_gradients: names of the parameters whose gradients are no numbers.
        iteration: where it was noticed.
        is_first: whether the step before was looked at too, and was sound.

    Returns:
        The file; None if it could not be written, which is logged.
    """
    folder = Path(cfg.OUTPUT_DIR) / "diverged"
    stem = f"iteration_{iteration:07d}_rank{comm.get_rank()}"
    names = (f"{stem}{suffix}.pth" for suffix in ("", *(f"_{number}" for number in range(2, 1000))))
    path = next(folder / name for name in names if not (folder / name).exists())
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    content = {
        "format": FORMAT,
        "iteration": iteration,
        "is_first": is_first,
        "rank": comm.get_rank(),
        "ranks": comm.get_world_size(),
        "seed": cfg.SEED,
        "config": without_unread_keys(cfg).dump(),
        "losses": {name: float(loss.sum()) for name, loss in losses.items()},
        "bad_gradients": list(bad_gradients[:20]),
        "batch": [_plain(picture) for picture in batch],
        "model": {name: value.detach().cpu() for name, value in inner.state_dict().items()},
    }
    try:
        with written_whole(path) as partial:
            torch.save(content, partial)
    except OSError as error:
        logging.getLogger(__name__).error(f"{path} could not be written ({error})")
        return None
    return path


def suspects(output_dir: str, period: int) -> frozenset[int]:
    """Iterations up to which a run has diverged before, each with those since the look before: to look at each of them.

    Args:
        period: iterations between two looks.
    """
    found = (_NAME.fullmatch(path.name) for path in (Path(output_dir) / "diverged").glob("*.pth"))
    last = {int(match[1]) for match in found if match}
    return frozenset(i for iteration in last for i in range(max(0, iteration - period), iteration + 1))


def _plain(picture: Mapping[str, Any]) -> dict[str, Any]:
    """A picture as data: image (C, H, W) uint8, boxes (B, 4) XYXY, classes (B,), size and name."""
    instances: Instances | None = picture.get("instances")
    return {
        "image": picture["image"].detach().cpu().clone(),
        "boxes": None if instances is None else instances.gt_boxes.tensor.detach().cpu().clone(),
        "classes": None if instances is None else instances.gt_classes.detach().cpu().clone(),
        "height": int(picture.get("height", picture["image"].shape[1])),
        "width": int(picture.get("width", picture["image"].shape[2])),
        "file_name": str(picture.get("file_name", "")),
    }
