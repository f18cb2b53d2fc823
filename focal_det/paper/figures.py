"""The look that all figures share, and how they and their numbers are written."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files import write_text_whole, written_whole

EDGE = "0.25"  # grey level of outlines and arrows


def new_axes(x_label: str, y_label: str, *, size: tuple[float, float] = (6, 4)) -> tuple[Figure, Axes]:
    """Return a figure of a size in inches, with one pair of axes."""
    figure = Figure(figsize=size, layout="constrained")  # not pyplot's, which would keep it and pick a window
    axes = figure.add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label, axisbelow=True)
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figures(figures: Mapping[str, Figure], folder: Path, tables: Mapping[str, str] | None = None) -> list[Path]:
    """Write each figure as PNG and SVG and return the files; the same figures make the same bytes.

    Args:
        folder: exists already; files of these names in it are replaced, each at once.
        tables: CSV beside the figures, by name.

    Raises:
        OSError: a file cannot be written; the files before it are.
    """
    paths = []
    for name, figure in figures.items():
        # No date and no random ids: the same curves are the same file.
        with rc_context({"svg.hashsalt": name}):
            for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                path = folder / f"{name}.{suffix}"
                with written_whole(path) as partial:
                    figure.savefig(partial, dpi=150, metadata=metadata)
                paths.append(path)
    for name, text in (tables or {}).items():
        paths.append(folder / f"{name}.csv")
        write_text_whole(paths[-1], text)
    return paths


def as_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def times(*sizes: object) -> str:
    """Return sizes with the multiplication sign between them."""
    return "\N{MULTIPLICATION SIGN}".join(map(str, sizes))


def draw_label(axes: Axes, x: float, y: float, text: str, align: str = "center") -> None:
    """Write small above a point, such as on an arrow."""
    axes.text(x, y, text, ha=align, va="bottom", fontsize=7.5, color="0.3")


def draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = EDGE) -> None:
    """Draw a thin arrow between two points."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": color, "linewidth": 1})
