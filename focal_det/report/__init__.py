"""One page about a run, made from the files that it left, without Detectron2.

metrics.json and the other files (metrics, run_files) → scores and errors of each test set (set_result, with confusion,
examples) and the course of the training (training_curves, charts) → report.html (page).
"""

from .page import write_report

__all__ = ["write_report"]
