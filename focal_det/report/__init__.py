"""The page about a run, from the files that the run left: no Detectron2."""

from .page import REPORT_NAME, write_report

__all__ = ["REPORT_NAME", "write_report"]
