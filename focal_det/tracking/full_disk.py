"""A full disk under a log or under TensorBoard's file: one warning for each, instead of a trace for every line.

The training continues. Where it cannot write its metrics or checkpoints either, it ends with its own message.
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import IO, Any

from ..checkpoint.disk_space import DISK_ERRORS
from ..errors import print_problems

_warned_of: set[str] = set()  # names of files; the loggers of several packages share one


def watch_log(package_logger: logging.Logger) -> None:
    """Let the handlers of a logger warn of what they cannot write, where logging prints a trace for every line."""
    for handler in package_logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.handleError = partial(_on_failed_record, handler)  # type: ignore[method-assign]
            if handler.stream is not sys.stdout:
                atexit.register(_close, handler.stream)  # before Detectron2's own, which would raise


def watch_threads() -> None:
    """Do the same for threads, of which TensorBoard's writes its file; other errors go to the hook of before."""
    if getattr(threading.excepthook, "func", None) is not _on_ended_thread:
        threading.excepthook = partial(_on_ended_thread, threading.excepthook)


def _on_failed_record(handler: logging.StreamHandler[Any], record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if isinstance(error, OSError):
        _warn_once(str(getattr(handler.stream, "name", handler.stream)), error)
    else:  # a fault of the record's
        logging.Handler.handleError(handler, record)


def _on_ended_thread(otherwise: Callable[[threading.ExceptHookArgs], object], ended: threading.ExceptHookArgs) -> None:
    error = ended.exc_value
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        _warn_once(str(error.filename or "TensorBoard's file"), error)
    else:
        otherwise(ended)


def _warn_once(name: str, error: OSError) -> None:
    if name not in _warned_of:
        _warned_of.add(name)
        with suppress(OSError):  # where standard error cannot be written either
            print_problems(
                [f"{name} cannot be written ({error.strerror or error}), so it is incomplete"], kind="warning"
            )


def _close(stream: IO[str]) -> None:
    with suppress(OSError):
        stream.close()
