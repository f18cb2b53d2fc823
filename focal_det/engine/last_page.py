"""The page about a run, at its end."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.utils import comm

from ..report import write_report


def write_last_page(output_dir: str) -> Path | None:
    """Write OUTPUT_DIR/report.html on the main process; see `write_report`.

    The training is done and saved by then, so whatever goes wrong is logged and not raised.

    Returns:
        The page; None on other processes and if it could not be made.
    """
    if not comm.is_main_process():
        return None
    try:
        path = write_report(output_dir)
    except Exception as error:
        logging.getLogger(__name__).warning(
            f"The report could not be made ({type(error).__name__}: {error}). All else is done and saved; "
            f"to try again: focal-det report {output_dir}"
        )
        return None
    logging.getLogger(__name__).info(f"Report, to be opened in a browser: {path}")
    return path
