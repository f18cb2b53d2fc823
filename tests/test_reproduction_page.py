"""docs/reproduction.md: the paper's claims stand there as the miniature's trainings decide them."""

import csv
import re
from collections import Counter
from pathlib import Path
from statistics import mean, stdev

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
def measured():
    """By row, the AP of its trainings in the file; one that detects nothing has 0."""
    by_training = {}
    with TRAININGS.open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["lr"] == LR:
                by_training.setdefault(line["row"], []).append(line)

    def of_rows(table, names):
        rows = [find_table(table).rows[name] for name in names]
        plan = plan_table(find_table(table), rows, SweepOptions("mini", (1,), Path("out")))
        found = {}
        for name in names:
            # those of the first row with its configuration
            lines = by_training.get(plan.rows[name][1].name.split(" ")[0], [])
            diverged = sum(line["status"] == Status.DIVERGED for line in lines)
            found[f"{table}/{name}"] = RowResult([float(line["AP"] or 0) for line in lines], diverged)
        return found

    return of_rows


@pytest.fixture(scope="module")
def results(measured):
    """The AP of each row that a claim names."""
    of_tables = {}
    for path in sorted({path for claim in load_claims() for path in claim.rows}):
        table, name = path.split("/")
        of_tables.setdefault(table, []).append(name)
    return {path: result for table, names in of_tables.items() for path, result in measured(table, names).items()}


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


def test_the_page_has_every_alpha_with_every_gamma(measured):
    head, _, *lines = re.search(r"^\| \w \| \w = 0 .*?(?=\n\n)", PAGE, re.DOTALL | re.MULTILINE)[0].splitlines()
    gammas = re.findall(r"= ([\d.]+)", head)
    told = {}
    for line in lines:
        alpha, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        told |= {f"alpha_gamma/gamma_{gamma}_alpha_{alpha}": cell for gamma, cell in zip(gammas, cells, strict=True)}
    names = list(find_table("alpha_gamma").rows)
    aps = {path: result.ap for path, result in measured("alpha_gamma", names).items()}
    best = {
        max((path for path in aps if f"gamma_{gamma}_" in path), key=lambda path: mean(aps[path])) for gamma in gammas
    }

    def cell(path):
        spread = f" ± {stdev(aps[path]):.1f}" if len(aps[path]) > 1 else ""
        bold = "**" if path in best else ""
        return f"{bold}{mean(aps[path]):.1f}{spread}{bold}"

    assert told == {path: cell(path) for path in aps}
