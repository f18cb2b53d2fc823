"""Compare two runs, and write the comparison as one page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import Findings
from ..files import write_text_whole
from .page import IMAGE_BYTES, fill, option_problems
from .run_files import EvaluatedSet, RunFiles, read_run
from .run_pair import Fact, Key, compare_curves, compare_facts, compare_keys, seed_words
from .set_pair import SetPair, compare_sets, noise_words, same_set
from .set_result import evaluated_weights

COMPARISON = "compare.html"


@dataclass(frozen=True)
class RunComparison:
    """The comparison of two runs.

    names: of their folders, as they were given.
    prefixes: of the sets that both were evaluated on, what the names of their scores begin with; see `compare_curves`.
    sets: those of them that could be compared, each with sentences: which weights, how sure the difference is.
    notes: what is not compared, and why.
    conclusion: what the differences allow to conclude.
    """

    runs: tuple[RunFiles, RunFiles]
    names: tuple[str, str]
    facts: list[Fact]
    keys: list[Key]
    prefixes: dict[str, tuple[str, str]]
    sets: list[tuple[SetPair, str]]
    notes: list[str]
    conclusion: str


def compare_runs(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    score_threshold: float | None = None,
    images: int = 6,
) -> RunComparison:
    """Compare two runs by the files in their folders.

    Args:
        first, second: OUTPUT_DIR of trainings, finished or not.
        score_threshold: least score of what counts as found and is drawn, in [0, 1]; None for the one with the best F1
            of each run.
        images: how many are drawn where the one is better, and as many where the other is.

    Raises:
        InputError: no run in a folder, the same folder twice, a threshold or number out of range.
    """
    folders = Path(first), Path(second)
    problems = option_problems(score_threshold, images)
    if os.path.realpath(first) == os.path.realpath(second):
        problems.append(f"{first} and {second} are the same folder; name two runs")
    Findings(problems).raise_if_errors()
    runs = read_run(folders[0]), read_run(folders[1])
    partners, notes = _partners(*runs)
    sets = []
    for pair in partners:
        budget = IMAGE_BYTES // len(partners)
        try:
            compared = compare_sets(*pair, threshold=score_threshold, images=images, max_bytes=budget)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # strangers' files
            notes.append(f"{pair[0].name}: annotations and detections do not fit together ({error}); evaluate again.")
            continue
        weights = [evaluated_weights(found, run) or "not recorded" for found, run in zip(pair, runs, strict=True)]
        sets.append((compared, f"Of A {weights[0]}; of B {weights[1]}. {noise_words(compared)}"))
    facts, keys = compare_facts(*runs), compare_keys(*runs)
    names = (str(first), str(second))
    prefixes = {a.name: (a.metric_prefix, b.metric_prefix) for a, b in partners}
    conclusion = seed_words(keys, facts, all(run.config for run in runs))
    return RunComparison(runs, names, facts, keys, prefixes, sets, notes, conclusion)


def write_comparison(compared: RunComparison, out: Path) -> Path:
    """Write compare.html to a folder, whole or not at all."""
    page = fill("compare.html.j2", c=compared, charts=compare_curves(*compared.runs, compared.prefixes))
    path = out / COMPARISON
    write_text_whole(path, page.encode("utf-8", "replace").decode("utf-8"))
    return path


def _partners(first: RunFiles, second: RunFiles) -> tuple[list[tuple[EvaluatedSet, EvaluatedSet]], list[str]]:
    """Return the sets that both were evaluated on, whatever their names, and why the others are not compared."""
    pairs, notes, left = [], [], list(second.sets)
    for one in first.sets:
        same = next((other for other in left if same_set(one, other)), None)
        if same is not None:
            pairs.append((one, same))
            left.remove(same)
            continue
        if any(other.name == one.name for other in left):
            why = "its content is another in B, or not readable; APs on different images are not compared"
        else:
            why = "B was not evaluated on it"
        notes.append(f"Test set {one.name} of A: {why}.")
    named = {one.name for one in first.sets}
    notes += [f"Test set {other.name} of B: A was not evaluated on it." for other in left if other.name not in named]
    if not pairs:
        notes.append("No test set is the same in both, so keys, losses and lr alone are compared.")
    return pairs, notes
