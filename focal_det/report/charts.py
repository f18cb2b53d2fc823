"""Draw curves as SVG for a page: without fonts or links, in the page's own text colour."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

# Okabe and Ito's palette, which the colour-blind can tell apart, without its black and yellow, and three more.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c6bb1", "#7f7f7f", "#a6761d")
_LINE_STYLES = ("solid", "dashed", "dotted")  # one for each time that the colours start again; CSS's names, too
_INK = "#123456"  # replaced by the page's text colour

_STYLE: Any = {
    **{"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9},
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
}


class Line(NamedTuple):
    """A curve: its name in the legend and its points. `is_main` draws it thicker, `has_markers` with its points."""

    label: str
    points: Sequence[tuple[float, float]]
    is_main: bool = False
    has_markers: bool = False


class Chart(NamedTuple):
    """An SVG element, and (colour, CSS border style, label) of each curve for the legend below it."""

    svg: Markup
    legend: list[tuple[str, str, str]]


def draw_lines(
    name: str, lines: Sequence[Line], x_label: str, y_label: str, *, is_log: bool = False, is_share: bool = False
) -> Chart:
    """Draw curves into one pair of axes.

    Args:
        name: of the chart, unique in the page.
        is_log: the vertical axis is logarithmic, if all values are positive.
        is_share: both axes go from 0 to 1.
    """
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(color="#888888", alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        legend = []
        for place, line in enumerate(lines):
            colour = COLOURS[place % len(COLOURS)]
            style = _LINE_STYLES[place // len(COLOURS) % len(_LINE_STYLES)]
            marker, width = "o" if line.has_markers or len(line.points) == 1 else "", 2.2 if line.is_main else 1.2
            look: Any = {"color": colour, "linestyle": style, "linewidth": width, "marker": marker, "markersize": 4}
            axes.plot(*zip(*line.points, strict=True), **look)
            legend.append((colour, style, line.label))
        if is_log and all(y > 0 for line in lines for _, y in line.points):
            axes.set_yscale("log")
            for axis_format in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                axis_format(FuncFormatter(lambda value, _: f"{value:g}"))  # not 10^-1, which would need its own fonts
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        if is_share:
            axes.set(xlim=(0, 1), ylim=(0, 1.02))
        return Chart(_as_svg(figure, name, f"{y_label} over {x_label}"), legend)


def _as_svg(figure: Figure, name: str, title: str) -> Markup:
    text, no_metadata = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"), None)
    figure.savefig(text, format="svg", transparent=True, metadata=no_metadata)
    svg = "<svg" + text.getvalue().partition("<svg")[2]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for side in ("width", "height"):  # the page sets its size
        svg = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", svg, count=1)
    slug = re.sub(r"[^A-Za-z0-9]+", "-", name)
    svg = re.sub(r'(\sid=")', rf"\g<1>{slug}-", svg)  # ids are unique in the whole page
    svg = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{slug}-", svg)
    svg = svg.replace(_INK, "currentColor")
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{Markup.escape(title)}"', 1))
