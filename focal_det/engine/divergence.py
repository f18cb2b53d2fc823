"""Losses and gradients that are no numbers: all ranks end before the weights change, and what did it is kept.

Batches are those of Detectron2's loader: a list with a dictionary for each picture.
"""

from __future__ import annotations

import logging
import math
import socket
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
from .loss_keys import without_unread_keys
from .steps import unwrapped
from .stopping import shared_agreement
from .suspects import folder_of

FORMAT = 2  # of the files
KEPT = 4  # files in all, each with the whole model: a job that is started again and again must not fill the disk


class CheckNumbers(HookBase):
    """End the training on all ranks, before the weights are changed, if a loss or gradient of any rank is no number.

    What each rank with such losses had is written to OUTPUT_DIR/diverged, or by rank 0 what all had if the losses are
    finite; see `write_divergence`. The gradients' norm goes into the metrics as "grad_norm". A hook of `SimpleTrainer`,
    to be made by all ranks at once.

    Args:
        cfg: of the run.
        is_due: of an iteration, whether to look; to look at a GPU's numbers is to wait for it.
        gradients: whether to look at them too; not those that are scaled and may overflow.

    Raises:
        FloatingPointError: after the backward pass, on all ranks with the same words: iteration, ranks and files.
    """

    def __init__(self, cfg: CfgNode, is_due: Callable[[int], bool], *, gradients: bool = True) -> None:
        self.cfg = cfg
        self.is_due = is_due
        self.gradients = gradients
        self._agreement = shared_agreement()
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
        bad = bad if self.gradients else []

        def keep(shares: Sequence[Sequence[Mapping[str, Any]]]) -> Path | None:
            return write_divergence(
                *(self.cfg, self.trainer.model, shares, losses, bad),
                iteration=iteration,
                is_first=self.is_due(iteration - 1),
            )

        if worst == 2:
            words = _end_of_losses(iteration, bad_losses, batch, self.cfg.OUTPUT_DIR, keep)
        else:
            words = _end_of_gradients(iteration, bad, batch, self.cfg.OUTPUT_DIR, keep)
        raise FloatingPointError(words)


_Keep = Callable[[Sequence[Sequence[Mapping[str, Any]]]], Path | None]


def _end_of_losses(
    iteration: int, bad: Sequence[str], batch: Sequence[Mapping[str, Any]], output_dir: str, keep: _Keep
) -> str:
    """Let the ranks with bad losses, as far as there is room, keep their batches; the same words for all ranks."""
    rank = comm.get_rank()
    told = comm.all_gather((list(bad), socket.gethostname(), _room(output_dir)))
    guilty = [other for other, (losses, _, _) in enumerate(told) if losses]
    keepers = guilty[: told[0][2]]
    paths = comm.all_gather(keep([batch]) if rank in keepers else None)  # all wait here until they are written
    where = [
        f"{', '.join(told[other][0])}" + (f" on rank {other} of {len(told)} on {told[other][1]}" if told[1:] else "")
        for other in guilty[:3]
    ]
    more = f" and {len(guilty) - 3} ranks more" if guilty[3:] else ""
    return f"Loss became infinite or NaN at iteration={iteration}, {'; '.join(where)}{more}{_kept_words(paths)}"


def _end_of_gradients(
    iteration: int, bad: Sequence[str], batch: Sequence[Mapping[str, Any]], output_dir: str, keep: _Keep
) -> str:
    """Let rank 0 keep the batches of all, for the gradients are of all; the same words for all ranks."""
    shares = comm.gather([_plain(picture) for picture in batch])
    path = keep(shares) if comm.is_main_process() and _room(output_dir) else None
    first, path = comm.all_gather((bad[:1], path))[0]
    where = f"the first of them of {first[0]}" if first else "all of them together"
    return f"Gradients became infinite or NaN at iteration={iteration}, {where}{_kept_words([path])}"


def _room(output_dir: str) -> int:
    return max(0, KEPT - len(list(folder_of(output_dir).glob("*.pth"))))


def _kept_words(paths: Sequence[Path | None]) -> str:
    found = [path for path in paths if path]
    if found:
        return f"; to see why: focal-det replay {found[0]}" + "".join(f", or {path}" for path in found[1:])
    return f"; nothing was kept of it: diverged/ is full with {KEPT} files, or cannot be written"


def write_divergence(
    cfg: CfgNode,
    model: nn.Module,
    shares: Sequence[Sequence[Mapping[str, Any]]],
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
        shares: the batch of this rank, or those of all ranks, pictures as the loader or `_plain` gives them.
        losses: scalars by name.
        bad_gradients: names of the parameters whose gradients are no numbers.
        iteration: where it was noticed.
        is_first: whether the step before was looked at too, and was sound.

    Returns:
        The file; None if it could not be written, which is logged.
    """
    folder = folder_of(cfg.OUTPUT_DIR)
    stem = f"iteration_{iteration:07d}_rank{comm.get_rank()}"
    names = (f"{stem}{suffix}.pth" for suffix in ("", *(f"_{number}" for number in range(2, 1000))))
    path = next(folder / name for name in names if not (folder / name).exists())
    inner = unwrapped(model)
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
        "batch": [_plain(picture) for share in shares for picture in share],
        "shares": [len(share) for share in shares],  # pictures of each rank that the batch is of
        "model": {name: value.detach().cpu() for name, value in inner.state_dict().items()},
    }
    try:
        with written_whole(path) as partial, partial.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # PyTorch's writer puts an error of its own before the disk's
        cause = error if isinstance(error, OSError) else error.__context__
        logging.getLogger(__name__).error(f"{path} could not be written ({cause or error})")
        return None
    return path


def _plain(picture: Mapping[str, Any]) -> dict[str, Any]:
    """A picture as data: image (C, H, W) uint8, boxes (B, 4) XYXY, classes (B,), size and name."""
    if "boxes" in picture:  # it is that already
        return dict(picture)
    instances: Instances | None = picture.get("instances")
    return {
        "image": picture["image"].detach().cpu().clone(),
        "boxes": None if instances is None else instances.gt_boxes.tensor.detach().cpu().clone(),
        "classes": None if instances is None else instances.gt_classes.detach().cpu().clone(),
        "height": int(picture.get("height", picture["image"].shape[1])),
        "width": int(picture.get("width", picture["image"].shape[2])),
        "file_name": str(picture.get("file_name", "")),
    }
