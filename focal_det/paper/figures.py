"""What the figures share: their look, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files import written_whole


def new_axes(x_label: str, y_label: str, *, size: tuple[float, float] = (6, 4)) -> tuple[Figure, Axes]:
    """A figure of a size in inches, with one pair of axes."""
    figure = Figure(figsize=size, layout="constrained")  # not pyplot's, which would keep it and pick a window
    axes = figure.add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def save_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write each figure as PNG and SVG and return the files; the same figures make the same bytes.

    Args:
        folder: there already; figures of these names in it are replaced, each at once.

    Raises:
        OSError: what cannot be written; the figures before it are.
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
    return paths
