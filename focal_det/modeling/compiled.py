"""Networks run as they are, or by torch.compile unless no compiler works; the log says when it compiles."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch._dynamo.config as dynamo
from torch._dynamo.callback import callback_handler
from torch._dynamo.exc import BackendCompilerFailed

logger = logging.getLogger(__name__)
_THREADS = "TORCHINDUCTOR_COMPILE_THREADS"
_STATIC_LIMIT = 64  # compilations where each shape has its own

# Global, as PyTorch's callbacks are, which do not say whose function they are about: that of the last call.
_last_called: weakref.ref[CompiledOrPlain] | None = None


class NetworkRunner:
    """Runs a network, a function of images, as it is; subclasses compile or capture it.

    A copy prepares anew: what was compiled or captured belongs to the model that it was made of.

    Args:
        function: the network, or another runner of it.

    Attributes:
        while_preparing: opened while the network is compiled, perhaps in another thread, or captured; not copied.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.while_preparing: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self.function}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def prepare_within(self, context: Callable[[], AbstractContextManager[Any]]) -> None:
        """Open such a context while something is compiled or captured, here or by the runner within."""
        self.while_preparing = context
        if isinstance(self.function, NetworkRunner):
            self.function.prepare_within(context)

    def summary(self) -> list[str]:
        """Say in lines for the log what was done in how many calls."""
        return []


class CompiledOrPlain(NetworkRunner):
    """Calls a function compiled; if compiling it fails, it warns once and calls it as it is from then on.

    PyTorch compiles for the first size alone, which is fastest, then for any length of the sides that have changed: at
    most three times for images of all sizes. Another compilation follows for images so small that a map of theirs is
    one pixel wide, for a batch of one, and for detecting; after eight it compiles no more.

    With `static` it compiles for each shape, for batches that are padded to a few: up to 64 times.

    PyTorch compiles the backward pass when it is first needed; if only that fails, so does the training.

    Attributes:
        compilations: how often PyTorch has compiled, for forward and backward passes.
    """

    def __init__(self, function: Callable[..., Any], *, static: bool = False) -> None:
        super().__init__(function)
        self.static = static
        self.compiled: Callable[..., Any] | None = torch.compile(function, dynamic=False if static else None)
        if static:
            dynamo.recompile_limit = max(dynamo.recompile_limit, _STATIC_LIMIT)
        self.compilations = 0
        self._about = ""
        self._open: tuple[float, AbstractContextManager[Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "static": self.static}

    def __call__(self, *args: Any) -> Any:
        if self.compiled is not None:
            self._listen(args)
            try:
                return self.compiled(*args)
            except (BackendCompilerFailed, OSError) as error:  # a mistake in the function itself is another error
                self.compiled = None
                reason = " ".join(str(error).split())[:200]
                logger.warning(
                    f"MODEL.FOCAL_DET.SPEED.COMPILE is on, but torch.compile fails here ({reason}): continuing without"
                )
        return self.function(*args)

    def _listen(self, args: tuple[Any, ...]) -> None:
        """Let what PyTorch compiles from now on be taken for this call's, or its backward pass's."""
        global _last_called
        self._about = ", ".join("x".join(map(str, arg.shape)) for arg in args if torch.is_tensor(arg))
        _last_called = weakref.ref(self)
        if _compile_begins not in callback_handler.start_callbacks:  # they are forgotten by torch.compiler.reset()
            callback_handler.register_start_callback(_compile_begins)
            callback_handler.register_end_callback(_compile_ends)

    def begin(self) -> None:
        """Say that PyTorch compiles."""
        self.compilations += 1
        logger.info(f"torch.compile: compiling for a batch of {self._about} ({self.compilations} so far) ...")
        self._open = time.monotonic(), self.while_preparing()
        self._open[1].__enter__()

    def end(self) -> None:
        """Say that PyTorch has compiled."""
        if self._open is not None:
            (start, opened), self._open = self._open, None
            opened.__exit__(None, None, None)
            logger.info(f"torch.compile: compiled in {time.monotonic() - start:.1f} s")


def _compile_begins(_: Any) -> None:
    if _last_called is not None and (one := _last_called()) is not None:
        one.begin()


def _compile_ends(_: Any) -> None:
    if _last_called is not None and (one := _last_called()) is not None:
        one.end()


def share_compilers(processes: int) -> None:
    """Let torch.compile start no more compilers at once than this process's part of the cores; the user's number wins.

    To be called before the first compilation. PyTorch itself would start up to 32 in each of the machine's processes.
    """
    if _THREADS not in os.environ:
        import torch._inductor.config as inductor  # takes long, and few compile

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        inductor.compile_threads = max(1, min(inductor.compile_threads or 32, cores // processes))
