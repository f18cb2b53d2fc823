"""Curves as SVG that stands in a page: no fonts, no links, in the page's own colour of text."""

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
_LINE_STYLES = ("-", "--", ":")  # one for each time that the colours start again
_DASHES = {"-": "solid", "--": "dashed", ":": "dotted"}
_INK = "#123456"  # put in the place of the page's colour of text

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


class Line(NamedTuple):
    """A curve: its name in the legend and its points. `is_main` draws it thicker, `is_dotted` with its points."""

    label: str
    points: Sequence[tuple[float, float]]
    is_main: bool = False
    has_markers: bool = False


class Chart(NamedTuple):
    """An SVG element, and (colour, CSS border style, label) of each curve for the legend below it."""

    svg: Markup
    legend: list[tuple[str, str, str]]


def draw_lines(
    name: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    is_log: bool = False,
    x_limits: tuple[float, float] | None = None,
    y_limits: tuple[float, float] | None = None,
) -> Chart:
    """Draw curves into one pair of axes.

    Args:
        name: of the chart, its own in the page.
        is_log: the vertical axis is logarithmic, if all values are positive.
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
            marker = "o" if line.has_markers or len(line.points) == 1 else ""
            axes.plot(
                [x for x, _ in line.points],
                [y for _, y in line.points],
                color=colour,
                linestyle=style,
                linewidth=2.2 if line.is_main else 1.2,
                marker=marker,
                markersize=4,
            )
            legend.append((colour, _DASHES[style], line.label))
        if is_log and all(y > 0 for line in lines for _, y in line.points):
            axes.set_yscale("log")
            for axis_format in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                axis_format(FuncFormatter(lambda value, _: f"{value:g}"))  # not 10^-1, which would need its own fonts
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        if x_limits:
            axes.set_xlim(*x_limits)
        if y_limits:
            axes.set_ylim(*y_limits)
        return Chart(_as_svg(figure, name, f"{y_label} over {x_label}"), legend)


def _as_svg(figure: Figure, name: str, title: str) -> Markup:
    text = io.StringIO()
    figure.savefig(
        text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"), None)
    )
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)  # the page gives it its size
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    slug = re.sub(r"[^A-Za-z0-9]+", "-", name)
    svg = re.sub(r'(\sid=")', rf"\g<1>{slug}-", svg)  # ids are the whole page's
    svg = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{slug}-", svg)
    svg = svg.replace(_INK, "currentColor")
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{Markup.escape(title)}"', 1))
