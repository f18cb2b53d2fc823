"""torch.compile with the plain function as fallback where no compiler works."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed

logger = logging.getLogger(__name__)


class CompiledOrPlain:
    """Calls a function compiled; if compiling it fails, it warns once and calls it as it is from then on.

    PyTorch compiles the backward pass when it is first needed; if only that fails, so does the training.

    A copy compiles anew: compiled code belongs to the model that it was made of.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.plain = function
        self.compiled: Callable[..., Any] | None = torch.compile(function)

    def __getstate__(self) -> dict[str, Any]:
        return {"plain": self.plain}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["plain"])  # type: ignore[misc]

    def __call__(self, *args: Any) -> Any:
        if self.compiled is not None:
            try:
                return self.compiled(*args)
            except (BackendCompilerFailed, OSError) as error:  # a mistake in the function itself is another error
                self.compiled = None
                reason = " ".join(str(error).split())[:200]
                logger.warning(
                    f"MODEL.FOCAL_DET.SPEED.COMPILE is on, but torch.compile fails here ({reason}): continuing without"
                )
        return self.plain(*args)
