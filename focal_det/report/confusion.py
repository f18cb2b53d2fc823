"""The confusion matrix as a table that can be read, also with 80 classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST_CLASSES = 20  # in the table; also the most pairs that are listed


class Confusion(NamedTuple):
    """A table of counts.

    names: the classes shown, with "other classes" last if some are not.
    rows: (name, [(count, share of the row in [0, 1], is the diagonal)]) for each class and for background.
    pairs: (annotated as, detected as, count, share of that class's objects) of the most frequent confusions.
    """

    names: list[str]
    rows: list[tuple[str, list[tuple[int, float, bool]]]]
    pairs: list[tuple[str, str, int, float]]


def make_confusion(counts: np.ndarray, names: Sequence[str]) -> Confusion:
    """Make a table of (K+1, K+1) counts as `match` gives them.

    With more than 20 classes those that are most often confused with another are shown, and the rest as one.
    """
    num_classes = len(names)
    between = counts[:num_classes, :num_classes].copy()
    np.fill_diagonal(between, 0)
    order = np.argsort(-between, axis=None, kind="stable")[:MOST_CLASSES]
    pairs = [
        (names[i], names[j], int(between[i, j]), between[i, j] / counts[i].sum())
        for i, j in zip(*np.unravel_index(order, between.shape), strict=True)
        if between[i, j]
    ]
    shown_names = list(names)
    if num_classes > MOST_CLASSES:
        errors = between.sum(axis=0) + between.sum(axis=1)
        chosen = np.sort(np.argsort(-errors, kind="stable")[:MOST_CLASSES])
        shown_names = [*(names[i] for i in chosen), "other classes"]
        counts = _merge_others(counts, chosen)
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = [
        (name, [(int(c), c / totals[i, 0], i == j < len(shown_names)) for j, c in enumerate(counts[i])])
        for i, name in enumerate([*shown_names, "nothing there"])
    ]
    return Confusion(shown_names, rows, pairs)


def _merge_others(counts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Sum (K+1, K+1) to (C+2, C+2): the chosen classes, all others, background."""
    num_classes = len(counts) - 1
    group = np.full(num_classes + 1, len(chosen))
    group[chosen] = np.arange(len(chosen))
    group[num_classes] = len(chosen) + 1
    onto = np.eye(len(chosen) + 2, dtype=counts.dtype)[group]  # (K+1, C+2)
    return onto.T @ counts @ onto
