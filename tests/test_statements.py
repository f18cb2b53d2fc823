"""docs/statements.md: what it names is there, each statement has a state, and what is not there is told first."""

import ast
import functools
import re
from pathlib import Path

import pytest

from focal_det.cli.main import main
from focal_det.errors import InputError
from focal_det.paper.tables import find_rows, find_table

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "statements.md").read_text(encoding="utf-8")
KEYS = (ROOT / "docs" / "detectron2_keys.md").read_text(encoding="utf-8")
BUILT, CLAIMED = {"there", "partial", "missing"}, {"holds", "does not hold", "open", "not run"}
TOLD_FIRST = (BUILT | CLAIMED) - {"there", "holds"}
ROW = re.compile(r"^\| (\d+) \| (.*) \|$", re.MULTILINE)


def statements(page):
    """(number, cells) of each row: statement, place in the paper, place here, what shows it, state."""
    return [(int(number), cells.split(" | ")) for number, cells in ROW.findall(page)]


def told(page):
    """The numbers in bold of each part, by its heading."""
    parts = re.findall(r"^#+ (.+)\n((?:(?!#).*\n)*)", page, re.MULTILINE)
    return {heading.lower(): [int(number) for number in re.findall(r"\*\*(\d+)\*\*", text)] for heading, text in parts}


def is_command(text):
    """Whether the command line has that command, and the paper that table."""
    command, *rest = text.split()[1:]
    if command == "reproduce":
        return all(map(is_row, rest[:1]))
    with pytest.raises(SystemExit) as end:
        main([command, *rest[:1], "--help"])
    return end.value.code == 0


def is_row(text):
    """Whether the paper has that table, or that row of a table."""
    table, _, row = text.partition("/")
    try:
        find_rows(find_table(table), [row] if row else [])
    except InputError:
        return False
    return True


@functools.cache
def defined(path):
    """The names that a file gives to functions, classes, methods and variables; none of a file that is not there."""
    if not (ROOT / path).is_file():
        return set()
    nodes = list(ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))))
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return names | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


@functools.cache
def is_there(text):
    """Whether there is what a cell names: a command, a definition, a key, a file, or a row of the paper's tables."""
    if text.startswith("focal-det "):
        return is_command(text)
    if "::" in text:
        path, name = text.split("::")
        return name in defined(path)
    if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+", text):
        return f"| `{text}` |" in KEYS
    return (ROOT / text).is_file() or is_row(text)


def problems(page):
    """What is wrong with the page's tables and with what stands before them."""
    rows = statements(page)
    if [number for number, _ in rows] != list(range(1, len(rows) + 1)):
        yield "the numbers are not 1, 2, 3, ..."
    for number, cells in rows:
        if len(cells) != 5:
            yield f"{number}: {len(cells) + 1} cells"
            continue
        _, _, here, shown, state = cells
        named = [re.findall(r"`([^`]+)`", cell) for cell in (here, shown)]
        yield from (f"{number}: {text} is not there" for cell in named for text in cell if not is_there(text))
        if state not in BUILT | CLAIMED:
            yield f"{number}: no such state: {state}"
        if state == "missing" and (here, shown) != ("—", "—"):
            yield f"{number}: is missing, and names something"
        if state == "there" and not (here.strip("—") and re.search("`(tests/|focal-det )", shown)):
            yield f"{number}: is there, and no place or no test is named"
        if state in CLAIMED and not named[0]:
            yield f"{number}: is claimed, and nothing is named that could show it"
        if (state in CLAIMED - {"not run"}) != ("`benchmarks/results/" in shown):
            yield f"{number}: {state}, and results are {'' if state == 'not run' else 'not '}named"
    parts = told(page)
    for state in sorted(TOLD_FIRST):
        in_tables = [number for number, cells in rows if cells[-1] == state]
        if parts.get(state) != in_tables:
            yield f"told first as {state}: {parts.get(state)}; in the tables: {in_tables}"
    for state in sorted(BUILT | CLAIMED):
        count = sum(cells[-1] == state for _, cells in rows)
        if not re.search(rf"\b{count} {state}\b", " ".join(page.split())):
            yield f"the first paragraphs do not say {count} {state}"
    if f"{len(rows)} in all" not in page:
        yield f"the first paragraph does not say {len(rows)} in all"


def test_what_the_page_says_is_so():
    found = list(problems(PAGE))
    assert not found, "\n".join(found)


THERE = "1 | x | section 1 | `focal_det/losses/focal.py::focal_loss` | `tests/test_docs.py::test_the_readme_is_short`"
COUNTS = "1 in all: 1 there, 0 partial, 0 missing, 0 holds, 0 does not hold, 0 open, 0 not run\n"
PARTS = "".join(f"## {state}\n" for state in TOLD_FIRST)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("", "", None),
        ("| 1 |", "| 2 |", "the numbers are not 1, 2, 3, ..."),
        ("section 1 | ", "", "1: 5 cells"),
        ("focal_loss`", "focal_lost`", "1: focal_det/losses/focal.py::focal_lost is not there"),
        ("focal.py", "lost.py", "1: focal_det/losses/lost.py::focal_loss is not there"),
        ("is_short`", "is_long`", "1: tests/test_docs.py::test_the_readme_is_long is not there"),
        ("`focal_det/losses/focal.py::focal_loss`", "`MODEL.RETINANET.ALPHA`", "1: MODEL.RETINANET.ALPHA is not there"),
        ("`focal_det/losses/focal.py::focal_loss`", "`table1a/alpha_.76`", "1: table1a/alpha_.76 is not there"),
        ("`focal_det/losses/focal.py::focal_loss`", "`table1a/alpha_.75`", None),
        ("`focal_det/losses/focal.py::focal_loss`", "`configs/none.yaml`", "1: configs/none.yaml is not there"),
        ("is_short`", "is_short`, `focal-det plot loss`", "1: focal-det plot loss is not there"),
        ("is_short`", "is_short`, `focal-det reproduce table9`", "1: focal-det reproduce table9 is not there"),
        ("is_short`", "is_short`, `focal-det plot losses`", None),
        ("`focal_det/losses/focal.py::focal_loss`", "—", "1: is there, and no place or no test is named"),
        (
            "`tests/test_docs.py::test_the_readme_is_short`",
            "`README.md`",
            "1: is there, and no place or no test is named",
        ),
        ("| there |", "| here |", "1: no such state: here"),
        ("| there |", "| missing |", "1: is missing, and names something"),
        ("| there |", "| holds |", "1: holds, and results are not named"),
        ("`focal_det/losses/focal.py::focal_loss`", "`benchmarks/NOTES.md`", None),
        ("| there |", "| partial |", "told first as partial: []; in the tables: [1]"),
        ("## open\n", "## open\nIt is **1**.\n", "told first as open: [1]; in the tables: []"),
        ("1 there", "2 there", "the first paragraphs do not say 1 there"),
        ("1 in all", "2 in all", "the first paragraph does not say 1 in all"),
    ],
)
def test_a_mistake_is_seen(old, new, problem):
    page = f"{COUNTS}{PARTS}## Section 1\n| {THERE} | there |\n"
    assert old in page
    found = list(problems(page.replace(old, new)))
    assert problem in found if problem else found == []
