"""torch.compile that gives way where no compiler works."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException


class CompiledOrPlain:
    """Calls a function compiled; if compiling fails it says so once and calls it as it is from then on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.plain = function
        self.compiled: Callable[..., Any] | None = torch.compile(function)

    def __call__(self, *args: Any) -> Any:
        if self.compiled is not None:
            try:
                return self.compiled(*args)
            except TorchDynamoException as error:
                self.compiled = None
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                logging.getLogger(__name__).warning(
                    f"MODEL.FOCAL_DET.SPEED.COMPILE is on, but torch.compile fails here ({reason}): going on without"
                )
        return self.plain(*args)
