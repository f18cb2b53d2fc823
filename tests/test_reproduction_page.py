"""docs/reproduction.md: the paper's claims stand there as the miniature's trainings decide them."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from focal_det.paper.claims import RowResult, claims_page, decide, load_claims
from focal_det.paper.results import Status
from focal_det.paper.runs import SweepOptions, plan_table
from focal_det.paper.tables import find_table, load_tables

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
TRAININGS = ROOT / "benchmarks" / "results" / "miniature_learning_rates.csv"
LR = "0.0075"  # the miniature's


@pytest.fixture(scope="module")
def results():
    """The AP of each row that a claim names, from the file of trainings; one that detects nothing has 0."""
    by_training = {}
    with TRAININGS.open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["lr"] == LR:
                by_training.setdefault(line["row"], []).append(line)
    found = {}
    for path in {path for claim in load_claims() for path in claim.rows}:
        table, name = path.split("/")
        plan = plan_table(find_table(table), [find_table(table).rows[name]], SweepOptions("mini", (1,), Path("out")))
        lines = by_training.get(plan.rows[name][1].name.split(" ")[0], [])  # of the first row with its configuration
        diverged = sum(line["status"] == Status.DIVERGED for line in lines)
        found[path] = RowResult([float(line["AP"] or 0) for line in lines], diverged)
    return found


def test_the_page_has_every_claim_with_what_decides_it(results):
    published = {row.path: row.published for table in load_tables().values() for row in table.rows.values()}
    lines = [line for line in claims_page(results, published, []).splitlines() if line.count(" | ") == 5]
    of_claims = lines[1:]
    assert len(of_claims) == len(load_claims())
    assert sorted(line for line in PAGE.splitlines() if line in of_claims) == sorted(of_claims)


def test_the_page_counts_the_verdicts(results):
    counts = Counter(decide(claim, results)[0].value for claim in load_claims())
    said = r"Of the (\d+) claims .*?, (\d+) hold, (\d+) do not, (\d+) cannot be told"
    ((total, *verdicts),) = re.findall(said, PAGE.replace("\n", " "))
    assert int(total) == len(load_claims())
    names = ("holds", "does not hold", "cannot be told")
    assert dict(zip(names, map(int, verdicts), strict=True)) == counts
