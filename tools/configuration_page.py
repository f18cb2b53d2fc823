"""Write docs/configuration.md: every key of focal_det/defaults.py with its default and the comment above it.

    python tools/configuration_page.py

The head of the page is configuration_head.md, beside this; the rest is the comments of defaults.py, so that a key is
explained in one place. Needs no package but the standard library.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "focal_det" / "defaults.py"
PAGE = ROOT / "docs" / "configuration.md"

HEAD = Path(__file__).with_name("configuration_head.md")


class Key(NamedTuple):
    """A key, its default as Python writes it, and the comment above it as one paragraph."""

    name: str
    default: str
    meaning: str


class Group(NamedTuple):
    """Keys of one node, with the comment on all of them."""

    name: str
    meaning: str
    keys: list[Key]


def groups_of(source: str) -> list[Group]:
    """Return the keys in the order of the file; a node of its own, such as MODEL.FOCAL_DET.SPEED, makes a group.

    Raises:
        ValueError: a key without a comment above it.
    """
    lines = source.splitlines()
    function = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    aliases: dict[str, str] = {"cfg": ""}  # Python name to the node that it is
    groups: list[Group] = [Group("", "", [])]
    meaning, after = "", -1
    for node in function.body:
        if not isinstance(node, ast.Assign):
            continue
        said = _comment_above(lines, node.lineno)
        if said or node.lineno != after + 1:  # keys without a line between share a comment
            meaning = said
        after = node.end_lineno or node.lineno
        target = next(_dotted(t, aliases) for t in node.targets if isinstance(t, ast.Attribute))
        if isinstance(node.value, ast.Call):  # a new node
            aliases |= {t.id: target for t in node.targets if isinstance(t, ast.Name)}
            groups.append(Group(target, meaning, []))
            continue
        if not meaning:
            raise ValueError(f"{SOURCE.name}, line {node.lineno}: {target} has no comment that says what it is")
        home = max((group for group in groups if target.startswith(group.name)), key=lambda group: len(group.name))
        home.keys.append(Key(target, ast.unparse(node.value), meaning))
    return [group for group in groups if group.keys]


def page(groups: list[Group]) -> str:
    """Return the page in Markdown."""
    parts = [HEAD.read_text(encoding="utf-8")]
    for group in groups:
        if group.name:
            parts.append(f"\n### `{group.name}`\n")
            own = [key.meaning for key in group.keys]
            if group.meaning and group.meaning not in own:
                parts.append(f"\n{group.meaning}\n")
        together: dict[str, list[Key]] = {}
        for key in group.keys:
            together.setdefault(key.meaning, []).append(key)
        for meaning, keys in together.items():
            names = ", ".join(f"**`{key.name}`** (default `{key.default}`)" for key in keys)
            parts.append(f"\n{names}  \n{meaning}\n")
    return "".join(parts)


def _comment_above(lines: list[str], lineno: int) -> str:
    """Return the comment that ends on the line before, as one paragraph."""
    said: list[str] = []
    for line in reversed(lines[: lineno - 1]):
        if not line.strip().startswith("#"):
            break
        said.insert(0, line.strip().removeprefix("#").strip())
    return " ".join(said)


def _dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return aliases[node.id]
    assert isinstance(node, ast.Attribute)
    above = _dotted(node.value, aliases)
    return f"{above}.{node.attr}" if above else node.attr


if __name__ == "__main__":
    PAGE.write_text(page(groups_of(SOURCE.read_text(encoding="utf-8"))), encoding="utf-8")
    print(PAGE)
