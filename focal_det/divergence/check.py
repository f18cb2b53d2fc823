"""End a training on all ranks, before the weights change, when a loss or gradient is not finite, and keep the step."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from ..distributed.graceful_stop import Agreement
from .diverged_folder import KEPT, room
from .dump import plain_image, write_divergence

_FINITE, _BAD_GRADIENTS, _BAD_LOSSES = range(3)  # all ranks act on the largest that any of them saw
_Batch = Sequence[Mapping[str, Any]]  # a dictionary for each image, as Detectron2's loader gives them
_Keep = Callable[[Sequence[_Batch]], Path | None]  # writes the batches of some ranks


def weights_are_finite(model: nn.Module) -> bool:
    """Tell whether no weight is infinite or NaN; a GPU is waited for."""
    return bool(torch.nn.utils.get_total_norm([weights.detach() for weights in model.parameters()]).isfinite())


class NonFiniteCheck(HookBase):
    """Raise on all ranks, before the weights are changed, if a loss or gradient of any rank is not finite.

    Each rank with bad losses writes its step to OUTPUT_DIR/diverged; if the gradients alone are bad, rank 0 writes that
    of all ranks; see `write_divergence`. The gradients' norm goes into the metrics as "grad_norm". A hook of
    the step, which has its batch and losses, to be made by all ranks at once.

    Args:
        is_due: whether to look at an iteration; to look at a GPU's numbers is to wait for it.
        gradients: whether to look at them too; not at scaled ones, which may overflow.
        agreement: of all ranks, to share its group; None for one of its own.

    Raises:
        FloatingPointError: after the backward pass, on all ranks with the same message: iteration, ranks and files.
    """

    def __init__(
        self, cfg: CfgNode, is_due: Callable[[int], bool], *, gradients: bool = True, agreement: Agreement | None = None
    ) -> None:
        self.cfg, self.is_due, self.gradients = cfg, is_due, gradients
        self._agreement = agreement or Agreement()

    def after_backward(self) -> None:
        iteration = self.trainer.iter
        if not self.is_due(iteration):
            return
        batch, losses = self.trainer.batch, self.trainer.losses
        bad_losses = [name for name, loss in losses.items() if not math.isfinite(loss.sum())]
        named = self.trainer.model.named_parameters() if self.gradients else ()
        grads = {name.removeprefix("module."): p.grad for name, p in named if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(list(grads.values())).item()
        worst = self._agreement.now(_BAD_LOSSES if bad_losses else _FINITE if math.isfinite(norm) else _BAD_GRADIENTS)
        if worst == _FINITE:
            if self.gradients:
                get_event_storage().put_scalar("grad_norm", norm)
            return
        bad_grads = [name for name, grad in grads.items() if not grad.isfinite().all()]
        about = {"losses": losses, "bad_gradients": bad_grads, "iteration": iteration}
        is_first, places = self.is_due(iteration - 1), room(self.cfg.OUTPUT_DIR)
        keep = partial(write_divergence, self.cfg, self.trainer.model, is_first=is_first, **about)
        if worst == _BAD_LOSSES:
            where, paths = _keep_losses(bad_losses, batch, places, keep)
        else:
            where, paths = _keep_gradients(bad_grads, batch, places, keep)
        what = "Loss" if worst == _BAD_LOSSES else "Gradients"
        raise FloatingPointError(f"{what} became infinite or NaN at iteration={iteration}, {where}{_kept(paths)}")


def _keep_losses(bad: list[str], batch: _Batch, places: int, keep: _Keep) -> tuple[str, Sequence[Path | None]]:
    """Have the ranks with bad losses keep their batches, as far as there is room; return where, alike on all ranks."""
    gathered = comm.all_gather((bad, socket.gethostname(), places))
    failed_ranks = [other for other, (losses, _, _) in enumerate(gathered) if losses]
    keepers = failed_ranks[: gathered[0][2]]
    paths = comm.all_gather(keep([batch]) if comm.get_rank() in keepers else None)  # all wait until they are written
    where = []
    for other in failed_ranks[:3]:
        losses, host, _ = gathered[other]
        where.append(", ".join(losses) + (f" on rank {other} of {len(gathered)} on {host}" if gathered[1:] else ""))
    more = f" and {len(failed_ranks) - 3} ranks more" if failed_ranks[3:] else ""
    return "; ".join(where) + more, paths


def _keep_gradients(bad: list[str], batch: _Batch, places: int, keep: _Keep) -> tuple[str, Sequence[Path | None]]:
    """Have rank 0 keep the batches of all, since the gradients are of all; return where, alike on all ranks."""
    shares = comm.gather([plain_image(image) for image in batch])
    path = keep(shares) if comm.is_main_process() and places else None
    first, path = comm.all_gather((bad[:1], path))[0]
    return f"the first of them of {first[0]}" if first else "all of them together", [path]


def _kept(paths: Sequence[Path | None]) -> str:
    found = [path for path in paths if path]
    if found:
        return f"; to see why: focal-det replay {found[0]}" + "".join(f", or {path}" for path in found[1:])
    return f"; nothing was kept of it: diverged/ is full with {KEPT} files, or cannot be written"
