"""Which model a page's figures are of, and which one was the best."""

from __future__ import annotations

from .progress import BestScore
from .run_files import EvaluatedSet, Run

_BEST, _FINAL = "model_best.pth", "model_final.pth"


def evaluated_weights(found: EvaluatedSet, run: Run) -> str:
    """Such as "model_final.pth, after 400 iterations"; "" if it was not recorded."""
    if found.iterations is None:
        return found.weights
    planned = run.config_value("SOLVER.MAX_ITER")
    is_last = isinstance(planned, int) and found.iterations >= planned
    files = [_FINAL] * is_last + [f"model_{found.iterations - 1:07d}.pth"]
    file = next((name for name in files if name in run.weights), None)
    words = f"after {found.iterations:,} iterations"
    return f"{file}, {words}" if file else f"the model {words}"


def best_words(found: EvaluatedSet, best: BestScore | None, run: Run) -> str:
    """A sentence where another model was the best; "" if it is the evaluated one, or there is none to compare."""
    if best is None or found.iterations == best.iterations or found.weights == _BEST:
        return ""
    words = f"The training's best was AP {best.ap:.1f} after {best.iterations:,} iterations"
    return f"{words}: {_BEST}, which predict and export take." if _BEST in run.weights else f"{words}."
