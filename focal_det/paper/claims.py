"""The paper's claims about trainings, from claims.yaml: which of them the finished trainings bear out."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from statistics import mean, stdev, variance
from typing import Any, NamedTuple

import yaml

LEARNS_NOTHING_AP = 1.0

# Student's t that 95 % lie within, two-sided, for 1, 2, ... degrees of freedom; beyond the last, that one, which is a
# little too large.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class Verdict(Enum):
    """The verdict on a claim: of those that its comparisons have, the first in this order."""

    FAILS = "does not hold"
    NOT_RUN = "not run"
    UNDECIDED = "cannot be told"
    HOLDS = "holds"


class RowResult(NamedTuple):
    """A row's AP, one for each seed that has its result, and how many of these diverged, whose AP is 0."""

    ap: Sequence[float]
    diverged: int = 0


class Difference(NamedTuple):
    """A difference of two rows' mean AP and half the width of its 95 % interval, infinite where a row has one seed."""

    ap: float
    margin: float

    def __str__(self) -> str:
        return f"{self.ap:+.1f} ± {self.margin:.1f}" if math.isfinite(self.margin) else f"{self.ap:+.1f}, one seed"


class RowComparison(NamedTuple):
    """A comparison that a claim makes, of one row or of two; `within` so many points of AP where its kind needs it."""

    kind: str
    row: str
    other: str = ""
    within: float = 0.0

    @property
    def name(self) -> str:
        """The rows, as a difference."""
        return " - ".join(path for path in (self.row, self.other) if path)


@dataclass(frozen=True)
class Claim:
    """A claim in words, its place in the paper, and the comparisons that it makes: it holds if all of them do."""

    text: str
    source: str
    comparisons: tuple[RowComparison, ...]

    @property
    def rows(self) -> list[str]:
        """TABLE/ROW of every row that it is about, once."""
        paths = (path for comparison in self.comparisons for path in (comparison.row, comparison.other))
        return list(dict.fromkeys(filter(None, paths)))


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Return the difference of two means, with Welch's interval: neither the spreads nor the numbers need be equal.

    Args:
        first, second: AP of one seed or more.
    """
    ap = mean(first) - mean(second)
    if min(len(first), len(second)) < 2:
        return Difference(ap, math.inf)
    errors = [variance(row) / len(row) for row in (first, second)]
    if not sum(errors):
        return Difference(ap, 0.0)
    freedom = sum(errors) ** 2 / sum(e**2 / (len(row) - 1) for e, row in zip(errors, (first, second), strict=True))
    return Difference(ap, _T_95[max(1, min(int(freedom), len(_T_95))) - 1] * math.sqrt(sum(errors)))


def judge(comparison: RowComparison, results: Mapping[str, RowResult]) -> Verdict:
    """Judge one comparison. What one seed alone shows, in either row, tells nothing.

    Args:
        results: of rows by TABLE/ROW; one without an AP has not been run.
    """
    rows = [results[path] for path in (comparison.row, comparison.other) if path]
    if not all(row.ap for row in rows):
        return Verdict.NOT_RUN
    if comparison.other:
        ap, margin = difference(rows[0].ap, rows[1].ap)
        low, high, within = ap - margin, ap + margin, comparison.within
        holds, fails = {
            "above": (low > 0, high < 0),
            "not below": (high >= 0 and math.isfinite(margin), high < 0),
            "close": (-within <= low and high <= within, high < -within or low > within),
            "no gain": (high <= within, low > within),
        }[comparison.kind]
    else:
        number = len(rows[0].ap)
        flat = sum(ap < LEARNS_NOTHING_AP for ap in rows[0].ap)
        count = {"diverges": rows[0].diverged, "learns nothing": flat}[comparison.kind]
        holds, fails = number > 1 and count == number, number > 1 and count == 0
    return Verdict.HOLDS if holds else Verdict.FAILS if fails else Verdict.UNDECIDED


def decide(claim: Claim, results: Mapping[str, RowResult]) -> tuple[Verdict, RowComparison]:
    """Return a claim's verdict and the comparison that decides it.

    Of those with its verdict that is the one of the closest rows, or of the farthest where they should be close; of
    rows that rise, the first and the last.

    Args:
        results: as for `judge`.
    """
    order = list(Verdict)

    def weight(comparison: RowComparison) -> tuple[int, bool, float]:
        verdict = judge(comparison, results)
        rows = [results[path].ap for path in (comparison.row, comparison.other) if path]
        closeness = difference(*rows).ap if len(rows) == 2 and all(rows) else 0.0
        by_distance = {"close": -abs(closeness), "no gain": -closeness}.get(comparison.kind, closeness)
        return order.index(verdict), comparison.kind == "not below", by_distance

    decisive = min(claim.comparisons, key=weight)
    return judge(decisive, results), decisive


def claims_page(
    results: Mapping[str, RowResult], published: Mapping[str, Mapping[str, float]], heading: Sequence[str]
) -> str:
    """Return a page in Markdown: how many claims hold, each with its verdict and why, then the rows.

    Args:
        results: of every row that a claim is about, by TABLE/ROW.
        published: the paper's figures of the same rows, by column.
        heading: lines above the tables.
    """
    decided = [(claim, *decide(claim, results)) for claim in load_claims()]
    count = Counter(verdict for _, verdict, _ in decided)
    lines = [
        *(*heading, ""),
        "**" + ", ".join(f"{count[verdict]} {verdict.value}" for verdict in reversed(Verdict)) + "**",
        "",
        "A difference of means is given with its 95 % interval (Welch's t over the seeds). It is told apart from 0, or "
        "from the points that a claim allows, if the interval lies beyond; one seed tells nothing. A claim about "
        "several rows holds if each comparison does, and shows the one that decides.",
        "",
        "| claim | in the paper | decided by | published | measured | verdict |",
        "|---" * 6 + "|",
    ]
    for claim, verdict, by in decided:
        allowed = f", at most {by.within:g} {'apart' if by.kind == 'close' else 'above'}" if by.within else ""
        cells = (claim.text, claim.source, by.name + allowed, *_figures(by, results, published), verdict.value)
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| row | published AP | measured AP | seeds |", "|---" * 4 + "|"]
    for path in dict.fromkeys(path for claim in load_claims() for path in claim.rows):
        ap = results[path].ap
        spread = f" ± {stdev(ap):.1f}" if len(ap) > 1 else ""
        measured = f"{mean(ap):.1f}{spread}" if ap else "—"
        lines.append(f"| {path} | {_one(published[path].get('AP'))} | {measured} | {len(ap)} |")
    return "\n".join(lines) + "\n"


def _figures(
    by: RowComparison, results: Mapping[str, RowResult], published: Mapping[str, Mapping[str, float]]
) -> tuple[str, str]:
    """Return what a comparison is about as published and as measured."""
    ap, diverged = results[by.row]
    if not by.other:
        found = f"{diverged} of {len(ap)} seeds" if by.kind == "diverges" else ", ".join(f"{value:.1f}" for value in ap)
        return _one(published[by.row].get("AP")), found if ap else "—"
    theirs = [published[path]["AP"] for path in (by.row, by.other) if "AP" in published[path]]
    in_paper = f"{theirs[0] - theirs[1]:+.1f}" if len(theirs) == 2 else "—"
    other = results[by.other].ap
    return in_paper, str(difference(ap, other)) if ap and other else "—"


def _one(value: float | None) -> str:
    return "—" if value is None else f"{value:.1f}"


@functools.cache
def load_claims() -> tuple[Claim, ...]:
    """Return every claim, in the order of claims.yaml."""
    entries = yaml.safe_load((Path(__file__).parent / "claims.yaml").read_text(encoding="utf-8"))
    return tuple(Claim(entry["claim"], entry["source"], tuple(_comparisons(entry))) for entry in entries)


def _comparisons(entry: Mapping[str, Any]) -> list[RowComparison]:
    """Return the comparisons of an entry of claims.yaml, pair by pair."""
    pairs = (("above", "higher", "lower"), ("close", "close", "to"), ("no gain", "no_gain", "over"))
    for kind, rows, others in pairs:
        if rows in entry:
            both = itertools.product(entry[rows], entry[others])
            return [RowComparison(kind, row, other, entry.get("within", 0.0)) for row, other in both]
    if "rises" in entry:
        found = []
        for chain in entry["rises"]:
            for earlier, later in itertools.combinations(chain, 2):
                kind = "above" if (earlier, later) == (chain[0], chain[-1]) else "not below"
                found.append(RowComparison(kind, later, earlier))
        return found
    (kind,) = entry.keys() & {"diverges", "learns_nothing"}
    return [RowComparison(kind.replace("_", " "), row) for row in entry[kind]]
