"""What the documentation points to is there: files, headings, tests, commands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "models").glob("*.md"))]


def anchors(page):
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_tests_that_are_named_exist():
    text = "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("complaints", "resume"))
    file, count = None, 0
    for path, name in re.findall(r"`((?:P |tests/)[\w/. ]*\.py)?::(\w+)`", text):
        file = ROOT / path.replace("P ", "tests/plugin/") if path else file
        assert f"def {name}(" in file.read_text(), (path, name)
        count += 1
    assert count > 50


def test_every_command_of_the_tool_stands_in_the_readme_or_a_page():
    from focal_det.cli.main import _COMMANDS

    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in _COMMANDS if f"focal-det {name}" not in text] == []
