"""The divisor of the summed losses (section 4.1: "the number of anchors assigned to a ground-truth box")."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

MODES = ("global", "image", "ema")


class LossNormalizer(nn.Module):
    """Turns the number of assigned anchors of each image into one divisor per image.

    Args:
        mode:
            "global": the assigned anchors of the whole batch on all ranks. A rank divides by the mean over
                ranks, and the averaging of gradients over ranks then gives sum / total: the step does not
                depend on how many processes share the batch.
            "image": each image by its own number, then the mean over the rank's images: the paper's text.
            "ema": Detectron2's moving average (from 100, momentum .9) of the number per rank, averaged over
                the ranks so that all of them hold the state that the checkpoint saves.

    Counts below 1 count as 1. Nothing is read back to the host; the average is a saved buffer, `ema`.

    Raises:
        ValueError: unknown mode.
    """

    def __init__(self, mode: str = "global") -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f'normalizer "{mode}" is not one of {", ".join(MODES)}')
        self.mode = mode
        if mode == "ema":
            self.ema: Tensor
            self.register_buffer("ema", torch.tensor(100.0))

    def forward(self, num_assigned: Tensor) -> Tensor:
        """Turn the counts (N,) int64 of this rank's images into divisors (N,) float32 of their summed losses."""
        return self.start(num_assigned)()

    @torch.no_grad()
    def start(self, num_assigned: Tensor) -> Callable[[], Tensor]:
        """Begin to sum over the ranks what `forward` needs of them; return what waits for it and gives the divisors."""
        count = len(num_assigned)
        if self.mode == "image":
            divisors = num_assigned.clamp(min=1).float() * count
            return lambda: divisors
        of_ranks = num_assigned.sum().float()
        if self.mode == "ema":
            of_ranks = of_ranks.clamp(min=1)
        world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        work = dist.all_reduce(of_ranks, async_op=True) if world_size > 1 else None

        @torch.no_grad()
        def finish() -> Tensor:
            if work is not None:
                work.wait()  # over NCCL the GPU does, and not the host
            mean_per_rank = of_ranks / world_size
            if self.mode == "ema":
                self.ema.mul_(0.9).add_(mean_per_rank, alpha=0.1)
                return self.ema.expand(count).clone()
            return mean_per_rank.clamp(min=1 / world_size).expand(count)

        return finish
