"""Pages about a run, and about two, made from the files that they left, without Detectron2.

metrics.json and the other files (metrics, run_files) → scores and errors of each test set (set_result, with confusion,
score_charts, examples) and the course of the training (training_curves, charts) → report.html (page). Of two runs what
differs (run_pair), their scores on the same sets (set_pair) → compare.html (compare_page).
"""

from .compare_page import COMPARISON, compare_runs, write_comparison
from .page import write_report

__all__ = ["COMPARISON", "compare_runs", "write_comparison", "write_report"]
