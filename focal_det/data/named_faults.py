"""What goes wrong with a picture while a run reads it, with the picture's name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import TrainingError


class BrokenPictureError(TrainingError):
    """A picture that was looked at before the run cannot be read any more; the message names it.

    A loader's worker sends its whole trace, of which PyTorch makes a new error of the same class: the message is the
    trace's last line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.strip().rpartition(f"{type(self).__name__}: ")[2])


def named_faults(mapper: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """A data set mapper whose faults name the picture: it was deleted, replaced or damaged after it was looked at.

    Args:
        mapper: from a record of a data set, with "file_name", to what the model takes; Detectron2's `DatasetMapper`.

    Returns:
        A mapper that raises `BrokenPictureError` for whatever that one raises. It can be pickled if that one can.
    """
    return partial(_map, mapper)


def _map(mapper: Callable[[dict[str, Any]], Any], record: dict[str, Any]) -> Any:
    try:
        return mapper(record)
    except Exception as error:  # whatever a decoder may raise on somebody's file
        said = (str(error).splitlines() or [""])[0]
        raise BrokenPictureError(
            f"{record.get('file_name')!r}: cannot be read any more ({type(error).__name__}: {said}); replace the "
            "picture and go on with --resume; --preflight-only decodes them all"
        ) from error
