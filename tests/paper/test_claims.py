"""The paper's claims: that they are the paper's, and when the trainings bear one out, refute it, or cannot tell."""

import math

import numpy as np
import pytest

from focal_det.paper.claims import (
    _T_95,
    Claim,
    RowComparison,
    RowResult,
    Verdict,
    claims_page,
    decide,
    difference,
    judge,
    load_claims,
)
from focal_det.paper.tables import load_tables

ROWS = {row.path: row for table in load_tables().values() for row in table.rows.values()}
WITHOUT_RESULT = ("diverges", "unstable, no meaningful result")
HOLDS, FAILS, UNDECIDED, NOT_RUN = Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED, Verdict.NOT_RUN


def as_published(row):
    """Return the result of two trainings that reach exactly the paper's figure."""
    return RowResult([row.published["AP"]] * 2) if row.published else RowResult([0.0, 0.0], diverged=2)


def has_figures(claim):
    return all(ROWS[path].published or ROWS[path].statement in WITHOUT_RESULT for path in claim.rows)


@pytest.mark.parametrize("claim", filter(has_figures, load_claims()), ids=lambda claim: claim.text)
def test_the_papers_own_figures_bear_its_claims_out(claim):
    assert decide(claim, {path: as_published(ROWS[path]) for path in claim.rows})[0] is HOLDS


def test_a_claim_without_figures_is_about_what_the_text_says_of_a_row():
    for claim in load_claims():
        assert has_figures(claim) or any(ROWS[path].statement for path in claim.rows), claim.text


def test_every_table_with_figures_is_in_a_claim():
    tables = {path.split("/")[0] for claim in load_claims() for path in claim.rows}
    assert tables >= {"table1a", "table1b", "table1c", "table1d", "table1e", "table2", "table3", "section5_1"}


def test_the_difference_of_two_means_has_welchs_interval():
    # means 2 and 6; variances 1 and 4, so the squared errors are 1/3 and 4/3, together 5/3
    # freedom (5/3)^2 / ((1/3)^2 / 2 + (4/3)^2 / 2) = 2.94, of which 2, where t is 4.303
    found = difference([1.0, 2.0, 3.0], [4.0, 6.0, 8.0])
    assert found.ap == -4
    assert found.margin == pytest.approx(4.303 * math.sqrt(5 / 3))
    assert difference([1.0], [4.0, 6.0]) == (-4, math.inf)
    assert difference([1.0, 1.0], [4.0, 4.0]) == (-3, 0)


def test_students_t_is_95_percent_of_its_density():
    for freedom, t in enumerate(_T_95, start=1):
        x = np.linspace(-t, t, 200_001)
        scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
        assert np.trapezoid(scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2), x) == pytest.approx(0.95, abs=1e-4)


LOW, HIGH, LOOSE = [10.0, 10.1, 10.2], [14.0, 14.1, 14.2], [4.0, 14.0, 24.0]


@pytest.mark.parametrize(
    ("kind", "row", "other", "within", "verdict"),
    [
        ("above", HIGH, LOW, 0, HOLDS),
        ("above", LOW, HIGH, 0, FAILS),
        ("above", LOOSE, LOW, 0, UNDECIDED),
        ("above", HIGH, LOW[:1], 0, UNDECIDED),
        ("above", HIGH, [], 0, NOT_RUN),
        ("not below", HIGH, LOW, 0, HOLDS),
        ("not below", LOOSE, LOW, 0, HOLDS),
        ("not below", LOW, HIGH, 0, FAILS),
        ("not below", HIGH[:1], LOW, 0, UNDECIDED),
        ("close", HIGH, LOW, 5, HOLDS),
        ("close", LOW, HIGH, 5, HOLDS),
        ("close", HIGH, LOW, 3, FAILS),
        ("close", LOW, HIGH, 3, FAILS),
        ("close", HIGH, LOW, 4, UNDECIDED),
        ("close", LOOSE, LOW, 3, UNDECIDED),
        ("no gain", LOW, HIGH, 1, HOLDS),
        ("no gain", HIGH, LOW, 5, HOLDS),
        ("no gain", HIGH, LOW, 3, FAILS),
        ("no gain", LOOSE, LOW, 1, UNDECIDED),
    ],
)
def test_two_rows_bear_a_claim_out_refute_it_or_cannot_tell(kind, row, other, within, verdict):
    results = {"t/a": RowResult(row), "t/b": RowResult(other)}
    assert judge(RowComparison(kind, "t/a", "t/b", within), results) is verdict


@pytest.mark.parametrize(
    ("kind", "ap", "diverged", "verdict"),
    [
        ("diverges", [0.0, 0.0], 2, HOLDS),
        ("diverges", [0.0, 0.0], 0, FAILS),
        ("diverges", [0.0, 30.0], 1, UNDECIDED),
        ("diverges", [0.0], 1, UNDECIDED),
        ("diverges", [], 0, NOT_RUN),
        ("learns nothing", [0.0, 0.9], 0, HOLDS),
        ("learns nothing", [1.0, 30.0], 0, FAILS),
        ("learns nothing", [0.9, 1.0], 0, UNDECIDED),
        ("learns nothing", [1.0], 0, UNDECIDED),
    ],
)
def test_a_row_that_diverges_or_learns_nothing_does_so_with_every_seed(kind, ap, diverged, verdict):
    assert judge(RowComparison(kind, "t/a"), {"t/a": RowResult(ap, diverged)}) is verdict


def order_of(*names):
    pairs = [(b, a) for i, a in enumerate(names) for b in names[i + 1 :]]
    kinds = ["above" if pair == (names[-1], names[0]) else "not below" for pair in pairs]
    return Claim("rises", "", tuple(RowComparison(kind, *pair) for kind, pair in zip(kinds, pairs, strict=True)))


def test_what_rises_is_compared_from_end_to_end_and_falls_nowhere():
    gammas = next(claim for claim in load_claims() if claim.text.startswith("With more focus"))
    rows = ["gamma_0", "gamma_.1", "gamma_.2", "gamma_.5", "gamma_1", "gamma_2"]
    assert gammas.comparisons == order_of(*(f"table1b/{row}" for row in rows)).comparisons
    results = {"a": RowResult(LOW), "b": RowResult(HIGH), "c": RowResult([ap - 1 for ap in HIGH])}
    assert decide(order_of("a", "b"), results)[0] is HOLDS
    between = RowResult([12.0, 12.1, 12.2])
    verdict, decisive = decide(order_of("a", "between", "b"), results | {"between": between})
    assert (verdict, decisive) == (HOLDS, RowComparison("above", "b", "a"))
    assert decide(order_of("a", "between", "b"), results | {"between": RowResult([12.0])})[0] is UNDECIDED
    verdict, decisive = decide(order_of("a", "b", "c"), results)
    assert (verdict, decisive) == (FAILS, RowComparison("not below", "c", "b"))
    assert decide(order_of("a", "b", "d"), results | {"d": RowResult(LOOSE)})[0] is UNDECIDED


def test_a_claim_about_several_rows_has_the_verdict_of_the_one_that_decides():
    claim = Claim("best", "", tuple(RowComparison("above", "t/fl", f"t/{name}") for name in ("a", "b", "c")))
    results = {"t/fl": RowResult(HIGH), "t/a": RowResult(LOW), "t/b": RowResult([12.0, 12.1, 12.2])}
    assert decide(claim, results | {"t/c": RowResult([11.0, 11.2])}) == (HOLDS, claim.comparisons[1])
    assert decide(claim, results | {"t/c": RowResult(LOOSE)}) == (UNDECIDED, claim.comparisons[2])
    assert decide(claim, results | {"t/c": RowResult([])}) == (NOT_RUN, claim.comparisons[2])
    assert decide(claim, results | {"t/b": RowResult([]), "t/c": RowResult([20.0, 20.1])})[0] is FAILS


def test_the_page_counts_the_verdicts_and_shows_what_decides():
    results = {path: RowResult([]) for claim in load_claims() for path in claim.rows}
    results |= {path: RowResult([10.0, 10.2]) for path in results if path.startswith("table1a")}
    results |= {"table1b/gamma_2": RowResult([50.0, 52.0]), "table1a/alpha_.75": RowResult([30.0, 30.2])}
    results |= {"section5_1/ce": RowResult([30.0]), "section5_1/ce_no_prior": RowResult([0.0, 0.0])}
    results |= {"section5_1/ce_no_prior_no_warmup": RowResult([0.0, 0.0])}
    lines = claims_page(results, {path: ROWS[path].published for path in results}, ["# Claims"]).splitlines()
    assert lines[0] == "# Claims"
    assert lines[2] == f"**2 holds, 3 cannot be told, {len(load_claims()) - 7} not run, 2 does not hold**"
    cells = {line.split(" | ")[0]: line.strip("| ").split(" | ")[2:] for line in lines if line.startswith("| ")}
    # 51 - 30.1; the squared errors are 1 and .01: t of one degree of freedom, 12.706, times the root of 1.01
    first = cells["| The focal loss is ahead of cross-entropy, balanced at its best alpha"]
    assert first == ["table1b/gamma_2 - table1a/alpha_.75", "+2.9", "+20.9 ± 12.8", "holds"]
    assert cells["| Balancing improves on plain cross-entropy"][2:] == ["+0.1, one seed", "cannot be told"]
    diverges = cells["| Without the prior, and without a warm-up, cross-entropy diverges"]
    assert diverges == ["section5_1/ce_no_prior_no_warmup", "—", "0 of 2 seeds", "does not hold"]
    assert "| table1b/gamma_2 | 34.0 | 51.0 ± 1.4 | 2 |" in lines
    assert "| table1b/gamma_5 | 32.2 | — | 0 |" in lines
