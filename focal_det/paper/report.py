"""A table of the paper with what was measured beside what was published: Markdown, CSV and a plot."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from ..files import write_text_whole
from .figures import new_axes, save_figures
from .results import Record, Status
from .runs import Plan, Run
from .star_grid import draw_star_grid
from .sweep import outcome
from .tables import Row

_DIVERGED_AP = 0.0


class Measured(NamedTuple):
    """One column of one row over its finished seeds: their figures, their mean, and their sample deviation."""

    each: tuple[float, ...]
    mean: float
    spread: float | None


def measured(row_runs: Mapping[int, Run], column: str) -> Measured | None:
    """None if no seed is finished, or none has that column. A training that diverged counts as 0 AP."""
    figures = []
    for run in row_runs.values():
        if run.status is Status.DIVERGED and column.startswith("AP"):
            figures.append(_DIVERGED_AP)
        elif column in (found := run.metrics()):
            figures.append(found[column])
    if not figures:
        return None
    spread = statistics.stdev(figures) if len(figures) > 1 else None
    return Measured(tuple(figures), statistics.mean(figures), spread)


def report_files(plan: Plan) -> list[Path]:
    """The files of a table."""
    return [plan.options.out / f"{plan.table.name}.{suffix}" for suffix in ("md", "csv", "png", "svg")]


def write_report(plan: Plan, command: str) -> list[Path]:
    """Write `report_files`, each at once or not at all, and return them.

    Args:
        command: that the figures were obtained by.

    Raises:
        OSError: what cannot be written; files of before stay whole.
    """
    folder = plan.options.out
    texts = {f"{plan.table.name}.md": _markdown(plan, command), f"{plan.table.name}.csv": _csv(plan)}
    for name, text in texts.items():
        write_text_whole(folder / name, text)
    plot = _plot_grid(plan) if plan.table.name == "figure7" else _plot_rows(plan)
    save_figures({plan.table.name: plot}, folder)
    return report_files(plan)


def _markdown(plan: Plan, command: str) -> str:
    table, options = plan.table, plan.options
    records = [record for run in plan.runs if run.is_finished and (record := run.record)]
    in_miniature = "" if options.scale == "full" else f", in the scale {options.scale}"
    lines = [
        f"# {table.source}: {table.title}{in_miniature}",
        "",
        f"- Scale: {options.scale}. Published: COCO {table.split}. Measured: {_tested_on(plan)}.",
        f"- Last command: `{command}`",
        f"- Overrides by hand: {'`' + ' '.join(options.overrides) + '`' if options.overrides else 'none'}",
        *([f"- Data: `{' '.join(options.data_flags)}`"] if options.data_flags else []),
        f"- Hardware: {_distinct(records, 'hardware')}",
        f"- Commit: {_distinct(records, 'commit')}. Versions: {_distinct(records, 'versions')}",
        f"- Seeds: {', '.join(map(str, _seeds(plan)))}; the spread is their sample standard deviation, and one that "
        "diverged counts as 0 AP",
        "",
        f"| row | sets | trained | published {' / '.join(table.columns)} | AP measured | {_difference_title(plan)} | "
        "each seed | AP50 | AP75 | s per iteration | state |",
        "|---" * 11 + "|",
    ]
    for name, runs in plan.rows.items():
        row = table.rows[name]
        own = row.overrides[options.scale].items()
        sets = ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in own) or "—"
        cells = [name, sets, _trained(runs), *_cells(row, plan, runs), _state(runs)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _cells(row: Row, plan: Plan, runs: Mapping[int, Run]) -> list[str]:
    published = (
        " / ".join(_number(c, row.published[c]) for c in plan.table.columns if c in row.published) or row.said or "—"
    )
    ap = measured(runs, "AP")
    others = [measured(runs, column) for column in ("AP50", "AP75")]
    seconds = measured(runs, "s_per_iteration")
    return [
        published,
        _with_spread(ap),
        _difference(row, plan, ap),
        ", ".join(f"{value:.1f}" for value in ap.each) if ap else "—",
        *(f"{other.mean:.1f}" if other else "—" for other in others),
        f"{seconds.mean:.3f}" if seconds else "—",
    ]


def _is_comparable(plan: Plan) -> bool:
    """Whether an AP measured can be held against the published: on COCO, by the paper's detector."""
    return plan.options.scale == "full" and not plan.options.data_flags


def _difference_title(plan: Plan) -> str:
    return "difference" if _is_comparable(plan) else f"against {next(iter(plan.rows))}: published, measured"


def _difference(row: Row, plan: Plan, ap: Measured | None) -> str:
    """From the published AP; where that is of other data, both AP's difference from the first row's."""
    # with a key of its own changed by hand, a row is no longer what the published figure is of
    is_own = not set(row.overrides[plan.options.scale]) & set(plan.options.overrides[::2])
    if ap is None or not is_own or "AP" not in row.published:
        return "—"
    if _is_comparable(plan):
        return f"{ap.mean - row.published['AP']:+.1f}"
    name, runs = next(iter(plan.rows.items()))
    first = plan.table.rows[name]
    first_ap = measured(runs, "AP")
    if first_ap is None or "AP" not in first.published or name == row.name:
        return "—"
    return f"{row.published['AP'] - first.published['AP']:+.1f}, {ap.mean - first_ap.mean:+.1f}"


def _trained(runs: Mapping[int, Run]) -> str:
    """What was trained, which in a miniature is not what the row's name says."""
    run = next(iter(runs.values()), None)
    if run is None:
        return "—"
    config = run.config
    depth, groups = config["MODEL.RESNETS.DEPTH"], config["MODEL.RESNETS.NUM_GROUPS"]
    name = f"R-{depth}" if groups == 1 else f"X-{depth}-{groups}x{config['MODEL.RESNETS.WIDTH_PER_GROUP']}d"
    return f"{name}, {config['INPUT.MIN_SIZE_TEST']} px, {config['SOLVER.MAX_ITER']} it"


def _state(runs: Mapping[int, Run]) -> str:
    if not runs:
        return "not run"
    unfinished = {seed: run for seed, run in runs.items() if run.status is not Status.DONE}
    if not unfinished:
        return "done"
    return "; ".join(f"seed {seed}: {outcome(run, run.status)}" for seed, run in unfinished.items())


def _csv(plan: Plan) -> str:
    text = io.StringIO()
    columns = plan.table.columns
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "row",
            *(f"published_{c}" for c in columns),
            "seed",
            *columns,
            "s_per_iteration",
            "status",
            "hardware",
            "commit",
        ]
    )
    for name, runs in plan.rows.items():
        row = plan.table.rows[name]
        for seed, run in runs.items():
            record, status = run.record, run.status
            found = dict.fromkeys(columns, _DIVERGED_AP) if status is Status.DIVERGED else run.metrics()
            writer.writerow(
                [
                    name,
                    *(row.published.get(c, "") for c in columns),
                    seed,
                    *(round(found[c], 3) if c in found else "" for c in columns),
                    round(found["s_per_iteration"], 4) if "s_per_iteration" in found else "",
                    status.value if status else "not run",
                    record.hardware if record else "",
                    record.commit if record else "",
                ]
            )
    return text.getvalue()


def _plot_grid(plan: Plan) -> Figure:
    """Figure 7, of the rows that are finished."""
    found = {}
    for name, runs in plan.rows.items():
        ap = measured(runs, "AP")
        if ap:
            overrides = plan.table.rows[name].overrides[plan.options.scale]
            gamma, beta = (float(overrides[f"MODEL.FOCAL_DET.LOSS.{key}"]) for key in ("GAMMA", "BETA"))
            found[gamma, beta] = ap.mean
    return draw_star_grid(found, f"{plan.table.source}: {plan.table.title} ({plan.options.scale})")


def _plot_rows(plan: Plan) -> Figure:
    """Every row's AP: published as a ring, measured as a dot with its spread."""
    names = list(plan.rows)
    figure, axes = new_axes("AP", "", size=(6, 1.2 + 0.3 * len(names)))
    places = range(len(names))
    published = [plan.table.rows[name].published.get("AP") for name in names]
    at = [(value, place) for value, place in zip(published, places, strict=True) if value is not None]
    if at:
        axes.plot(
            *zip(*at, strict=True), "o", color="C7", fillstyle="none", label=f"published (COCO {plan.table.split})"
        )
    found = [(measured(runs, "AP"), place) for runs, place in zip(plan.rows.values(), places, strict=True)]
    dots = [(m.mean, place, m.spread or 0.0) for m, place in found if m]
    if dots:
        means, rows, spreads = zip(*dots, strict=True)
        label = f"measured ({plan.options.scale}, seeds {', '.join(map(str, _seeds(plan)))})"
        axes.errorbar(means, rows, xerr=spreads, fmt="o", color="C0", capsize=3, label=label)
    axes.set_yticks(list(places), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    scale = "" if plan.options.scale == "full" else f"; measured in the scale {plan.options.scale}"
    axes.set_title(f"{plan.table.source}: {plan.table.title}{scale}", fontsize="small", loc="left")
    if at or dots:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def _seeds(plan: Plan) -> list[int]:
    return sorted({seed for runs in plan.rows.values() for seed in runs})


def _tested_on(plan: Plan) -> str:
    sets = {str(run.config["DATASETS.TEST"][0]) for run in plan.runs}
    return "the files given" if plan.options.data_flags else ", ".join(sorted(sets))


def _with_spread(found: Measured | None) -> str:
    if found is None:
        return "—"
    return f"{found.mean:.1f}" + (f" ± {found.spread:.1f}" if found.spread is not None else "")


def _distinct(records: Sequence[Record], key: str) -> str:
    return "; ".join(dict.fromkeys(getattr(record, key) for record in records)) or "—"


def _number(column: str, value: float) -> str:
    return f"{value:g} ms" if column == "ms" else f"{value:.1f}"
