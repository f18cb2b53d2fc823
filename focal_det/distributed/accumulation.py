"""Gradient accumulation: a batch is passed in parts, and its gradients are averaged over the ranks once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .cluster import unwrapped
from .heartbeat import begin_step


def losses_and_gradients(
    model: nn.Module,
    batch: Any,
    parts: int,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    backward: Callable[[Tensor], None] = Tensor.backward,
    before_first: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Compute the losses of a batch, and add their gradients to the parameters', with the memory of one part.

    A model with `arguments_of_parts`, as `FocalRetinaNet` has, gives losses that add up to those of the batch in one
    pass; of others it is the mean of the parts' losses.

    Args:
        batch: this rank's images.
        parts: into how many equal parts to split it, alike on all ranks.
        precision: makes what a forward pass is done within.
        backward: computes the gradients of a loss.
        before_first: called between the first forward and the first backward pass.

    Returns:
        The losses by name, without their graphs; "total_loss" if the model returns one loss alone.
    """
    arguments_of: Any = getattr(unwrapped(model), "arguments_of_parts", None)
    images = [batch] if parts == 1 else equal_parts(batch, parts)
    if parts > 1 and arguments_of is not None:
        begin_step()  # the normaliser's sum over the ranks waits for those that have no images yet
        arguments = arguments_of(images)
    else:
        arguments = [(part,) for part in images]
    is_mean = parts > 1 and arguments_of is None
    found: dict[str, Tensor] = {}
    for number, part in enumerate(arguments, 1):
        is_ranks = isinstance(model, DistributedDataParallel)
        with model.no_sync() if is_ranks and number < parts else nullcontext():  # type: ignore[operator]
            with precision():
                losses = model(*part)
            losses = {"total_loss": losses} if isinstance(losses, Tensor) else losses
            losses = {name: loss / parts for name, loss in losses.items()} if is_mean else losses
            if number == 1:
                before_first()
            backward(sum(losses.values()))
        for name, loss in losses.items():
            found[name] = found[name] + loss.detach() if name in found else loss.detach()
    return found


def equal_parts(batch: list[Any], parts: int) -> list[list[Any]]:
    """Split a batch into so many parts, which divide its images."""
    size = len(batch) // parts
    return [batch[start : start + size] for start in range(0, len(batch), size)]
