"""The log of a process; and one warning, not a trace for every line, of a full disk under it or TensorBoard's file.

The training continues then. Where it cannot write its metrics or checkpoints either, it ends with its own message.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from detectron2.utils.logger import setup_logger

from ..checkpoint.disk_space import DISK_ERRORS
from ..errors import print_problems

_PACKAGES = ("fvcore", "detectron2", "focal_det")

_handlers: list[logging.Handler] = []  # of the run whose log was started last in this process
_warned_of: set[str] = set()  # names of files; the loggers of several packages share one


def start_log(file: Path, rank: int) -> None:
    """Send what fvcore, Detectron2 and focal_det say to the console, of rank 0, and to a file, of each rank its own.

    In the form of Detectron2's `setup_logger`, which would do nothing for a folder that it has once set up in this
    process, though the handlers of that training are gone. The log of an earlier run ends.
    """
    end_log()
    in_file = logging.FileHandler(file, encoding="utf-8")
    in_file.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S"))
    for name in _PACKAGES:
        package_logger = logging.getLogger(name)
        others = len(package_logger.handlers)
        setup_logger.__wrapped__(None, rank, name=name, abbrev_name=name)
        for console in package_logger.handlers[others:]:
            console.addFilter(lambda record: not record.exc_info)  # the last line says what happened
        package_logger.addHandler(in_file)
        _handlers.extend(package_logger.handlers[others:])
    for handler in _handlers:
        handler.handleError = partial(_on_failed_record, handler)  # type: ignore[method-assign]


def end_log() -> None:
    """Take away what `start_log` added, and close its file."""
    for handler in _handlers:
        for name in _PACKAGES:
            logging.getLogger(name).removeHandler(handler)
        with suppress(OSError):  # of a full disk
            handler.close()
    _handlers.clear()


def watch_threads() -> None:
    """Warn in this way of threads, of which TensorBoard's writes its file; other errors go to the hook of before."""
    if getattr(threading.excepthook, "func", None) is not _on_ended_thread:
        threading.excepthook = partial(_on_ended_thread, threading.excepthook)


def _on_failed_record(handler: logging.Handler, record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if isinstance(error, OSError):
        stream = getattr(handler, "stream", handler)
        _warn_once(str(getattr(stream, "name", stream)), error)
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
