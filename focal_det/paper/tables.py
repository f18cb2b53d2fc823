"""The paper's tables, as tables.yaml has them: what each row is and what the paper found for it."""

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

# The project's checkout, which holds the configurations and train_net.py.
ROOT = Path(__file__).parents[2]

SCALES = ("full", "mini")

_ALL_SCALES = "set"


@dataclass(frozen=True)
class Row:
    """One row.

    table, name: as in tables.yaml.
    overrides: KEY to VALUE at each scale.
    published: column to figure; empty where the paper has words alone.
    said: those words.
    """

    table: str
    name: str
    overrides: Mapping[str, Mapping[str, Any]] = field(hash=False)
    published: Mapping[str, float] = field(hash=False)
    said: str

    @property
    def path(self) -> str:
        """table/row, as folders and messages name it."""
        return f"{self.table}/{self.name}"

    def words(self, scale: str) -> list[str]:
        """The overrides as they are written on a command line."""
        return [str(word) for pair in self.overrides[scale].items() for word in pair]


@dataclass(frozen=True)
class Table:
    """A table, or a figure that is made like one.

    source: in the paper.
    config: the file that its rows share, from the checkout's folder.
    split: of COCO, that the published figures were measured on.
    columns: of the published figures; AP first.
    """

    name: str
    title: str
    source: str
    config: str
    split: str
    columns: tuple[str, ...]
    rows: Mapping[str, Row]


@functools.cache
def load_tables() -> Mapping[str, Table]:
    """Every table by its name, in the paper's order."""
    return {name: _table(name, entry) for name, entry in _contents()["tables"].items()}


def find_table(name: str) -> Table:
    """The table of that name.

    Raises:
        InputError: there is none.
    """
    tables = load_tables()
    if name not in tables:
        raise InputError(f"no table {name!r}; there are {', '.join(tables)}")
    return tables[name]


def find_rows(table: Table, patterns: Sequence[str]) -> list[Row]:
    """The rows that match one of the patterns, in the table's order; all for none.

    Args:
        patterns: names, or with * and ? in them.

    Raises:
        InputError: a pattern that no row matches.
    """
    for pattern in patterns:
        if not fnmatch.filter(table.rows, pattern):
            raise InputError(f"--rows {pattern}: {table.name} has no such row; it has {', '.join(table.rows)}")
    chosen = [row for row in table.rows.values() if any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)]
    return chosen or list(table.rows.values())


def configs_of(table: Table, scale: str) -> list[str]:
    """The configuration files of a table's rows, lowest first, from the checkout's folder."""
    extra = _contents()["scales"][scale].get("config")
    return [table.config, *([extra] if extra else [])]


def backbone_config(scale: str) -> str | None:
    """The configuration whose training gives a scale's rows their backbone; None where they name weights."""
    config: str | None = _contents()["scales"][scale].get("backbone")
    return config


def compared_detectors() -> Mapping[str, Mapping[str, float]]:
    """The paper's competitors: AP on test-dev and, for those of figure 2, milliseconds per image."""
    compared: Mapping[str, Mapping[str, float]] = _contents()["compared"]
    return compared


def default_out(scale: str) -> Path:
    """Where `focal-det reproduce` puts a scale's results, from where the user stands."""
    return Path("output/reproduce") / scale


def list_tables(tables: Iterable[Table]) -> str:
    """Every row of the tables with its published figures and what it changes."""
    lines = []
    for table in tables:
        lines.append(f"{table.name}  {table.source}: {table.title}; {table.config}; {' / '.join(table.columns)}")
        for row in table.rows.values():
            published = " / ".join(f"{value:.1f}" for value in row.published.values()) or row.said or "-"
            lines.append(f"    {row.name:<22}{published:<48}{shlex.join(row.words('full'))}")
    return "\n".join(lines)


@functools.cache
def _contents() -> dict[str, Any]:
    contents: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "tables.yaml").read_text(encoding="utf-8"))
    return contents


def _table(name: str, entry: dict[str, Any]) -> Table:
    columns = tuple(entry["columns"])
    rows = {}
    for row_name, row in entry["rows"].items():
        rows[row_name] = Row(
            table=name,
            name=row_name,
            overrides={scale: row.get(_ALL_SCALES, {}) | row.get(scale, {}) for scale in SCALES},
            published=dict(zip(columns, row["published"], strict=True)) if "published" in row else {},
            said=row.get("said", ""),
        )
    return Table(name, entry["title"], entry["source"], entry["config"], entry["split"], columns, rows)
