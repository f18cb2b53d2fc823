"""What the documentation points to exists: links, tests, files, names, flags and messages. The README is short."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "focal_det"
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS, *sorted((ROOT / "models").glob("*.md")), ROOT / "benchmarks" / "NOTES.md"]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(page):
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_linked_from_the_readme_or_from_a_page_that_is():
    reached, new = set(), {README}
    while new:
        reached |= new
        links = {page.parent / link for page in new for link in re.findall(r"\]\(([\w./-]+\.md)", page.read_text())}
        new = {link.resolve() for link in links} - reached
    assert [page.name for page in PAGES if page not in reached] == []


def test_the_tests_that_are_named_exist():
    text = "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("complaints", "resume"))
    file, count = None, 0
    for path, name in re.findall(r"`(tests/[\w/]*\.py)?::(\w+)`", text):
        file = ROOT / path if path else file
        assert f"def {name}(" in file.read_text(), (path, name)
        count += 1
    assert count > 50


@each_page
def test_the_files_that_are_named_exist(page):
    folders = (ROOT, PACKAGE, page.parent, ROOT / "benchmarks", PACKAGE / "losses", PACKAGE / "modeling")
    named = set(re.findall(r"`([\w/]+\.py)`", page.read_text()))
    named -= {
        "detect.py",
        "openvino_detect.py",
        "my_loss.py",
        "tests/test_rules.py",
    }  # a reader's, and one of another version
    named -= {f"{tool}.py" for tool in ("analyze_model", "lazyconfig_train_net", "visualize_data")}  # Detectron2's
    named -= {"tools/visualize_json_results.py"}
    assert [name for name in sorted(named) if not any((folder / name).is_file() for folder in folders)] == []


def test_the_map_names_what_its_files_define():
    text = " ".join((ROOT / "docs" / "architecture.md").read_text().split())
    named = re.findall(r"`(\w+)` in `([\w/]+\.py)`", text)
    assert len(named) > 20
    missing = [
        f"{name} in {file}"
        for name, file in named
        if not re.search(rf"^(?:    )?(?:def|class) {name}\b", (PACKAGE / file).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_every_room_is_on_the_map_and_in_the_readme():
    text, readme = (ROOT / "docs" / "architecture.md").read_text(), README.read_text()
    rooms = [init.parent.name for init in PACKAGE.glob("*/__init__.py")]
    assert [room for room in rooms if f"`{room}/`" not in text] == []
    assert [room for room in rooms if f"focal_det/{room}/ " not in readme] == []


def test_every_command_of_the_tool_stands_in_the_readme_or_a_page():
    from focal_det.cli.main import _COMMANDS

    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in _COMMANDS if f"focal-det {name}" not in text] == []


# A command and what follows it on its line or in its backticks, up to a comment; `train` as two pages abbreviate it.
COMMAND = re.compile(r"(?:focal-det|python train_net\.py|(?<=`)train)(?= )[^\n`#|]*")
FLAG = re.compile(r"(?<=\s)--[a-z][\w-]*")


def command_lines(text):
    """The command lines of a page, with lines that end in a backslash joined."""
    return [line.strip() for line in COMMAND.findall(text.replace("\\\n", " "))]


def known_flags(line, capsys):
    """What `--help` lists for a command line."""
    from focal_det.cli.main import main
    from focal_det.cli.train import parse_arguments

    tool, *words = line.split()
    if tool != "focal-det":
        run, words = parse_arguments, []
    else:
        run, words = main, words[: 2 if words[0] in ("data", "plot", "analyze") else 1]
    with pytest.raises(SystemExit):
        run([*words, "--help"])
    return set(FLAG.findall(capsys.readouterr().out.replace("[", " ")))


@each_page
def test_the_flags_of_the_commands_exist(page, capsys):
    for line in command_lines(page.read_text()):
        if flags := set(FLAG.findall(line)):
            assert flags <= known_flags(line, capsys), line


def test_command_lines_are_found():
    text = "```sh\npython train_net.py --a \\\n    --b 1   # why --c\n```\n`focal-det data inspect --d`, `train --e`"
    assert command_lines(text) == ["python train_net.py --a      --b 1", "focal-det data inspect --d", "train --e"]


# Marks what a message has at run time only, in a string literal of the package and at its ends.
GAP = "\0"


def literals_of(source):
    """Return the string literals of a module, an f-string as one in which each value is a gap."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return re.sub(rf" ?{GAP} ?", GAP, "".join(f"{GAP}{text}{GAP}" for text in found))


# In a quoted message: an ellipsis, a text in quotes, a list, a word with a number, path or name in it.
VALUES = r"""\.\.\.|'[^']*'|\[[^\]]*\]|\S*[\d/_]\S*|\S+\.(?:json|pth|jpg)\b"""
QUOTED = re.compile(r"^(?:error|warning): (.+)$|`(?:error|warning): ([^`]+)`", re.MULTILINE)


def literal_parts(message):
    """Return the parts of a message that the code has to contain, each of at least two words."""
    parts = (part.strip() for part in re.split(rf"{VALUES}|[:;,()]", message))
    return [part for part in parts if " " in part]


def stands_in(part, literals):
    """Whether the part is in a literal, or is with up to three words of it that another literal puts there."""
    if part in literals:
        return True
    words = part.split()
    for start in range(len(words)):
        for end in range(start + 1, min(start + 3, len(words) - 1 + (start > 0)) + 1):
            rest = " ".join(words[:start]) + GAP + " ".join(words[end:])
            if rest in literals and " ".join(words[start:end]) in literals:
                return True
    return False


def test_quoted_messages_are_those_of_the_code():
    literals = "".join(literals_of(file.read_text()) for file in sorted(PACKAGE.rglob("*.py")))
    pages = "\n".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("troubleshooting", "resume"))
    messages = [line or inline for line, inline in QUOTED.findall(pages)]
    assert len(messages) > 20
    missing = [part for message in messages for part in literal_parts(message) if not stands_in(part, literals)]
    assert missing == []


@pytest.mark.parametrize(
    ("quoted", "missing"),
    [
        ("error: a.json: 3 weights have another shape, such as x/y", []),
        ("error: a.json: 3 weights have a wrong shape, such as x/y", ["weights have a wrong shape"]),
        ("error: OUTPUT_DIR is a/b, which already has files", ["which already has files"]),
    ],
)
def test_a_reworded_message_is_seen(quoted, missing):
    literals = literals_of(
        """f"{n} weights {what}, such as {x}"; "have another shape"; f"is {a}, which already holds {b}" """
    )
    message = QUOTED.search(quoted)[1]
    assert [part for part in literal_parts(message) if not stands_in(part, literals)] == missing


def test_the_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 190
    assert [line for line in lines if len(line) > 120] == []


@each_page
def test_prose_is_at_most_120_columns_wide(page):
    """Tables, code and generated paragraphs are as wide as they have to be."""
    code, wide = False, []
    for line in page.read_text().splitlines():
        code ^= line.lstrip().startswith("```")
        if len(line) > 120 and not code and not line.startswith("|"):
            wide.append(line)
    if page.name == "configuration.md":
        head = set((ROOT / "tools" / "configuration_head.md").read_text().splitlines())
        wide = [line for line in wide if line in head and not line.startswith("<!--")]
    assert wide == []
