"""The paper's tables, from tables.yaml: the configuration of each row and what the paper found for it."""

from __future__ import annotations

import fnmatch
import functools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError

SCALES = ("full", "mini")


@dataclass(frozen=True)
class TableRow:
    """A row: its overrides, KEY to VALUE, at each scale; its published figures by column, or what the paper says."""

    table: str
    name: str
    overrides: Mapping[str, Mapping[str, Any]] = field(hash=False)
    published: Mapping[str, float] = field(hash=False)
    statement: str

    @property
    def path(self) -> str:
        """Table and row, as folders and messages name it."""
        return f"{self.table}/{self.name}"

    def arguments(self, scale: str) -> list[str]:
        """Return the overrides as a command line has them, KEY VALUE ..."""
        return [str(part) for pair in self.overrides[scale].items() for part in pair]


@dataclass(frozen=True)
class Table:
    """A table, or a figure that is made like one, as tables.yaml explains it."""

    name: str
    title: str
    source: str
    config: str
    split: str
    columns: tuple[str, ...]
    rows: Mapping[str, TableRow]


@functools.cache
def load_tables() -> Mapping[str, Table]:
    """Return every table by its name, in the paper's order."""
    return {name: _table(name, entry) for name, entry in _contents()["tables"].items()}


def find_table(name: str) -> Table:
    """Return the table of that name, or raise an InputError."""
    tables = load_tables()
    if name not in tables:
        raise InputError(f"no table {name!r}; there are {', '.join(tables)} and, for every one, all")
    return tables[name]


def find_rows(table: Table, patterns: Sequence[str]) -> list[TableRow]:
    """Return the rows that match one of the patterns, in the table's order; all if there are no patterns.

    Args:
        patterns: names, in which * and ? may stand for others.

    Raises:
        InputError: a pattern that no row matches.
    """
    for pattern in patterns:
        if not fnmatch.filter(table.rows, pattern):
            raise InputError(f"--rows {pattern}: {table.name} has no such row; it has {', '.join(table.rows)}")
    chosen = [row for row in table.rows.values() if any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)]
    return chosen or list(table.rows.values())


def configs_of(table: Table, scale: str) -> list[str]:
    """Return the names of the configurations of a table's rows, lowest first."""
    extra = _contents()["scales"][scale].get("config")
    return [table.config, *([extra] if extra else [])]


def trains_backbone(scale: str) -> bool:
    """Tell whether a scale's rows start from a backbone of `pretraining`; else they name weights."""
    return bool(_contents()["scales"][scale].get("trains_backbone"))


def default_out(scale: str) -> Path:
    """Return where `focal-det reproduce` puts a scale's results, relative to the working directory."""
    return Path("output/reproduce") / scale


def list_tables(tables: Iterable[Table]) -> str:
    """Return a text of every row with its published figures and its overrides."""
    lines = []
    for table in tables:
        lines.append(f"{table.name}  {table.source}: {table.title}; {table.config}; {' / '.join(table.columns)}")
        for row in table.rows.values():
            published = " / ".join(f"{value:.1f}" for value in row.published.values()) or row.statement or "-"
            lines.append(f"    {row.name:<22}{published:<48}{shlex.join(row.arguments('full'))}")
    return "\n".join(lines)


@functools.cache
def _contents() -> Any:
    return yaml.safe_load((Path(__file__).parent / "tables.yaml").read_text(encoding="utf-8"))


def _table(name: str, entry: dict[str, Any]) -> Table:
    columns = tuple(entry["columns"])
    rows = {}
    for row_name, row in entry["rows"].items():
        overrides = {scale: row.get("set", {}) | row.get(scale, {}) for scale in SCALES}
        published = dict(zip(columns, row["published"], strict=True)) if "published" in row else {}
        rows[row_name] = TableRow(name, row_name, overrides, published, row.get("statement", ""))
    return Table(name, entry["title"], entry["source"], entry["config"], entry["split"], columns, rows)
