"""What one rank knows, known by all ranks at the same place of their programs."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm


class Agreement:
    """The largest of the ranks' numbers, over a group of gloo's own: no GPU has to wait for it.

    To be made by all ranks at once. With one rank it is that rank's number.
    """

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo") if comm.get_world_size() > 1 else None
        self._given: tuple[Any, torch.Tensor] | None = None

    def now(self, number: int) -> int:
        """The largest of what the ranks give, >= 0; waits for all of them."""
        if self._group is None:
            return number
        tensor = torch.tensor([number])
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return int(tensor)

    def one_call_later(self, number: int) -> int:
        """The largest of what the ranks gave at the call before, 0 at the first.

        It has had a whole training step to come together, so no rank waits. With one rank there is no delay.
        """
        if self._group is None:
            return number
        largest = 0
        if self._given is not None:
            work, tensor = self._given
            work.wait()
            largest = int(tensor)
        tensor = torch.tensor([number])
        self._given = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group, async_op=True), tensor
        return largest
