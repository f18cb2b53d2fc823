"""What goes wrong with a picture while a run reads it, with the picture's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import TrainingError


class named_faults:  # noqa: N801 - a function, but for loader workers that are started anew, which pickle it
    """A data set mapper whose faults name the picture: it was deleted, replaced or damaged after it was looked at.

    Args:
        mapper: from a record of a data set, with "file_name", to what the model takes; Detectron2's `DatasetMapper`.
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]) -> None:
        self.mapper = mapper

    def __call__(self, record: dict[str, Any]) -> Any:
        """What the mapper gives.

        Raises:
            TrainingError: whatever it raises on a picture, with the picture's name.
        """
        try:
            return self.mapper(record)
        except Exception as error:  # whatever a decoder may raise on somebody's file
            said = (str(error).splitlines() or [""])[0]
            raise TrainingError(
                f"{record.get('file_name', 'a record without file_name')}: the picture cannot be read any more "
                f"({type(error).__name__}: {said}); replace it, and look at all with --preflight-only, which decodes them"
            ) from error
