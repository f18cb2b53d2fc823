"""The tables' figures are the paper's, and their names are found."""

import re
from pathlib import Path

import pytest

from focal_det.errors import InputError
from focal_det.paper.tables import (
    SCALES,
    configs_of,
    find_rows,
    find_table,
    list_tables,
    load_tables,
)

# As in the paper: rows in order, AP/AP50/AP75[/APs/APm/APl][, ms].
PUBLISHED = {
    "table1a": "0.0/0.0/0.0 10.8/16.0/11.7 30.2/46.7/32.8 31.1/49.4/33.0 30.8/49.7/32.3 28.7/47.4/29.9 25.1/41.7/26.1",
    "table1b": "31.1/49.4/33.0 31.4/49.9/33.1 31.9/50.7/33.4 32.9/51.7/35.2 33.7/52.0/36.2 34.0/52.5/36.5 "
    "32.2/49.6/34.8",
    "table1c": "30.3/49.0/31.8 31.9/50.0/34.0 31.8/49.4/33.7 32.4/52.3/33.9 34.2/53.1/36.5 34.0/52.5/36.5 "
    "33.8/52.1/36.2",
    "table1d": "31.1/47.2/33.2 31.8/48.8/33.9 30.6/47.0/32.6 32.8/50.3/35.1 31.0/47.4/33.0 27.6/42.0/29.2 "
    "31.1/47.2/33.2 28.3/42.4/30.3 24.0/35.5/25.8 36.0/54.9/38.7",
    "table1e": "30.5/47.8/32.7/11.2/33.8/46.1/64 32.5/50.9/34.8/13.9/35.8/46.7/72 34.3/53.2/36.9/16.2/37.4/47.4/98 "
    "35.1/54.2/37.7/18.0/39.3/46.4/121 35.7/55.0/38.5/18.9/38.9/46.3/153 31.9/49.5/34.1/11.6/35.8/48.5/81 "
    "34.4/53.1/36.8/14.7/38.5/49.1/90 36.0/55.2/38.7/17.4/39.6/49.7/122 37.1/56.6/39.8/19.1/40.6/49.4/154 "
    "37.8/57.5/40.8/20.2/41.1/49.2/198",
    "table2": "39.1/59.1/42.3/21.8/42.7/50.2 40.8/61.1/44.1/24.1/44.2/51.2",
    "table3": "31.1/49.4/33.0 34.0/52.5/36.5 33.8/52.7/36.3 33.9/51.8/36.4",
}
PAPER = Path(__file__).parents[3] / "shared" / "PAPER.md"
HEADINGS = {"table1a": "**1a**", "table1b": "**1b**", "table1c": "**1c**", "table1d": "**1d**", "table3": "**3**"}


def figures_of(table):
    return [list(row.published.values()) for row in load_tables()[table].rows.values()]


@pytest.mark.parametrize("table", PUBLISHED)
def test_published_figures(table):
    assert figures_of(table) == [[float(x) for x in row.split("/")] for row in PUBLISHED[table].split()]


def test_what_the_text_says_of_the_prior_and_of_alpha():
    rows = load_tables()["section5_1"].rows
    assert rows["ce"].published == {"AP": 30.2}
    assert rows["fl_alpha_.5"].published["AP"] == pytest.approx(34.0 - 0.4)
    assert rows["fl_normalizer_image"].published == {"AP": 34.0}
    assert rows["ce_no_prior_no_warmup"].statement == "diverges"
    assert (rows["ce_no_prior"].statement, rows["hinge"].statement) == ("diverges", "unstable, no meaningful result")


def test_the_grid_of_alpha_and_gamma_has_the_figures_of_tables_1a_and_1b():
    published = {}
    for name, row in load_tables()["alpha_gamma"].rows.items():
        _, gamma, _, alpha = name.split("_")
        if row.published:
            published[float(gamma), float(alpha)] = list(row.published.values())
    of_ce = [(0, alpha) for alpha in (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)]
    expected = dict(zip(of_ce, figures_of("table1a"), strict=True))
    best = ((0, 0.75), (0.1, 0.75), (0.2, 0.75), (0.5, 0.5), (1, 0.25), (2, 0.25), (5, 0.25))
    assert published == expected | dict(zip(best, figures_of("table1b"), strict=True))


def test_figure_7_has_table_3s_two_figures():
    published = {row.name: row.published["AP"] for row in load_tables()["figure7"].rows.values() if row.published}
    assert published == {"gamma_2_beta_1": 33.8, "gamma_4_beta_0": 33.9}


@pytest.mark.skipif(not PAPER.is_file(), reason="the page with the paper's tables is not beside this checkout")
def test_published_figures_against_the_page_of_the_papers_tables():
    lines = PAPER.read_text().splitlines()
    for table, heading in HEADINGS.items():
        (line,) = [line for line in lines if line.startswith(heading)]
        triples = re.findall(r"\d+\.\d(?:/\d+\.\d){2}", line)
        assert figures_of(table) == [[float(x) for x in triple.split("/")] for triple in triples], table
    found = {}
    for depth in ("50", "101"):
        (line,) = [line for line in lines if line.startswith(f"{depth}: ")]
        for scale, figures, ms in re.findall(r"(\d+) (\d+\.\d(?:/\d+\.\d){5}), (\d+)", line):
            found[f"depth_{depth}_scale_{scale}"] = [*map(float, figures.split("/")), float(ms)]
    assert {row.name: list(row.published.values()) for row in load_tables()["table1e"].rows.values()} == found
    (line,) = [line for line in lines if line.startswith("**2**")]
    sixes = re.findall(r"\d+\.\d(?:/\d+\.\d){5}", line)
    assert figures_of("table2") == [[float(x) for x in six.split("/")] for six in sixes]


def test_the_list_shows_every_row_with_its_published_ap():
    lines, table = {}, ""
    for line in list_tables(load_tables().values()).splitlines():
        if line.startswith(" "):
            lines[table, line.split()[0]] = line
        else:
            table = line.split()[0]
    rows = {(row.table, row.name): row for table in load_tables().values() for row in table.rows.values()}
    assert lines.keys() == rows.keys()
    for key, row in rows.items():
        expected = row.statement or (f"{row.published['AP']}" if row.published else "-")
        assert f" {expected} " in lines[key]


def test_the_page_has_every_table_with_its_number_of_rows():
    page = (Path(__file__).parents[2] / "docs" / "reproduction.md").read_text(encoding="utf-8")
    counts = {name: int(count) for name, count in re.findall(r"^\| `(\w+)` \| (\d+) \|", page, re.MULTILINE)}
    assert counts == {name: len(table.rows) for name, table in load_tables().items()}


def test_a_scale_adds_its_file_and_its_overrides():
    table = load_tables()["table1e"]
    assert configs_of(table, "full") == ["focal_det://paper/table1e.yaml"]
    assert configs_of(table, "mini") == ["focal_det://paper/table1e.yaml", "focal_det://paper/miniature.yaml"]
    row = table.rows["depth_101_scale_400"]
    assert set(row.overrides) == set(SCALES)
    assert row.arguments("mini")[:2] == ["MODEL.RESNETS.DEPTH", "34"]
    assert row.arguments("full")[:2] == ["MODEL.RESNETS.DEPTH", "101"]


def test_rows_are_found_by_pattern_in_the_tables_order():
    table = find_table("table1d")
    names = [row.name for row in find_rows(table, ["fl", "ohem_1_3_*"])]
    assert names == ["ohem_1_3_128_.5", "ohem_1_3_256_.5", "ohem_1_3_512_.5", "fl"]
    assert len(find_rows(table, [])) == 10


def test_unknown_tables_and_rows_are_named_with_those_there_are():
    with pytest.raises(InputError, match="no table 'table4'; there are table1a, table1b"):
        find_table("table4")
    with pytest.raises(InputError, match=r"--rows gama_2: table3 has no such row; it has ce, fl, fl_star_2_1"):
        find_rows(find_table("table3"), ["fl", "gama_2"])
