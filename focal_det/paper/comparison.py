"""A table of the paper, measured beside published: Markdown, CSV and a plot."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure

from ..files import write_text_whole
from .competitors import COLUMNS, compared_in_table2
from .figures import as_csv, new_axes, save_figures
from .loss_figures import draw_star_grid
from .results import Status
from .runs import SweepPlan, SweepRun
from .sweep import outcome
from .tables import TableRow

_DIVERGED_AP = 0.0
_TITLE_WIDTH = 90  # characters in a line above a plot
_WITH_COMPETITORS = "table2"
_DIGITS = {"hours": 2, "s_per_iteration": 3}
_MEASURED = (*COLUMNS, "ms", "hours", "s_per_iteration")


def measured(row_runs: Mapping[int, SweepRun], column: str) -> list[float]:
    """Return a row's figures in a column, one for each finished seed that has it. What diverged counts as 0 AP."""
    figures = []
    for run in row_runs.values():
        if run.status is Status.DIVERGED and column.startswith("AP"):
            figures.append(_DIVERGED_AP)
        elif column in (found := run.figures()):
            figures.append(found[column])
    return figures


def diverged(row_runs: Mapping[int, SweepRun]) -> int:
    """Return how many of a row's runs diverged."""
    return sum(run.status is Status.DIVERGED for run in row_runs.values())


def report_files(plan: SweepPlan) -> list[Path]:
    """Return the files of a table."""
    return [plan.options.out / f"{plan.table.name}.{suffix}" for suffix in ("md", "csv", "png", "svg")]


def write_report(plan: SweepPlan, command: str) -> list[Path]:
    """Write `report_files`, each at once or not at all, and return them.

    Args:
        command: the command line that measured the figures.

    Raises:
        OSError: a file cannot be written; files from before stay intact.
    """
    files = report_files(plan)
    for path, text in zip(files, (_markdown(plan, command), _csv(plan)), strict=False):
        write_text_whole(path, text)
    plot = _plot_grid(plan) if plan.table.name == "figure7" else _plot_rows(plan)
    save_figures({plan.table.name: plot}, plan.options.out)
    return files


def provenance(plans: Sequence[SweepPlan], command: str) -> list[str]:
    """Return what the figures of some plans were measured with, as a list in Markdown."""
    options = plans[0].options
    records = [record for plan in plans for run in plan.runs if run.is_finished and (record := run.record)]
    hardware, commits, versions = (
        "; ".join(dict.fromkeys(getattr(record, key) for record in records)) or "—"
        for key in ("hardware", "commit", "versions")
    )
    return [
        f"- Last command: `{command}`",
        f"- Overrides by hand: {'`' + ' '.join(options.overrides) + '`' if options.overrides else 'none'}",
        *([f"- Data: `{' '.join(options.data_flags)}`"] if options.data_flags else []),
        f"- Hardware, also of the times: {hardware}",
        f"- Commit: {commits}. Versions: {versions}",
        f"- Seeds: {_seeds(plans)}. Spread: their sample standard deviation. Diverged: counts as 0 AP",
    ]


def _markdown(plan: SweepPlan, command: str) -> str:
    table, options = plan.table, plan.options
    sets = sorted({str(run.config["DATASETS.TEST"][0]) for run in plan.runs})
    tested_on = "the files given" if options.data_flags else ", ".join(sets) or "nothing yet"
    against = "difference" if _is_comparable(plan) else f"against {next(iter(plan.rows))}: published, measured"
    lines = [
        f"# {table.source}: {table.title}{in_miniature(options.scale, ', ')}",
        "",
        f"- Scale: {options.scale}. Published: COCO {table.split}. Measured: {tested_on}.",
        *provenance([plan], command),
        "",
        f"| row | sets | trained | published {' / '.join(table.columns)} | AP measured | {against} | "
        f"each seed | {' | '.join(COLUMNS[1:])} | ms per image | hours | s per iteration | state |",
        "|---" * 15 + "|",
    ]
    for name, runs in plan.rows.items():
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(plan, name, runs)) + " |")
    if table.name == _WITH_COMPETITORS:
        lines += _with_competitors(plan)
    lines += ["", "Times are of one image at a time, and of the whole training with its evaluation."]
    return "\n".join(lines) + "\n"


def _with_competitors(plan: SweepPlan) -> list[str]:
    """Return the paper's comparison as a table: its own rows and the others' as published, and ours as measured."""
    lines = ["", "## Beside other detectors", "", f"| detector | stages | backbone | {' | '.join(COLUMNS)} |"]
    lines.append("|---" * (3 + len(COLUMNS)) + "|")
    for name, other in compared_in_table2().items():
        lines.append(f"| {name} | {other.stages} | {other.backbone} | {_joined(other.table2)} |")
    for name, runs in plan.rows.items():
        row = plan.table.rows[name]
        lines.append(f"| RetinaNet | 1 | {name}, published | {_joined(row.published)} |")
        found = {column: mean(figures) for column in COLUMNS if (figures := measured(runs, column))}
        if found:
            lines.append(f"| RetinaNet | 1 | {name}, measured ({_trained(runs)}) | {_joined(found)} |")
    return lines


def _joined(figures: Mapping[str, float]) -> str:
    return " | ".join(f"{figures[column]:.1f}" if column in figures else "—" for column in COLUMNS)


def _cells(plan: SweepPlan, name: str, runs: Mapping[int, SweepRun]) -> list[str]:
    row = plan.table.rows[name]
    overrides = row.overrides[plan.options.scale].items()
    published = (f"{value:g} ms" if column == "ms" else f"{value:.1f}" for column, value in row.published.items())
    ap = measured(runs, "AP")
    others = [(column, measured(runs, column)) for column in _MEASURED[1:]]
    spread = f" ± {stdev(ap):.1f}" if len(ap) > 1 else ""
    return [
        name,
        ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in overrides) or "—",
        _trained(runs),
        " / ".join(published) or row.statement or "—",
        f"{mean(ap):.1f}{spread}" if ap else "—",
        _difference(row, plan, ap),
        ", ".join(f"{value:.1f}" for value in ap) or "—",
        *(f"{mean(found):.{_DIGITS.get(column, 1)}f}" if found else "—" for column, found in others),
        _state(runs),
    ]


def _is_comparable(plan: SweepPlan) -> bool:
    """Tell whether a measured AP compares with the published: on COCO, by the paper's detector."""
    return plan.options.scale == "full" and not plan.options.data_flags


def _difference(row: TableRow, plan: SweepPlan, ap: list[float]) -> str:
    """Return the difference from the published AP; on other data, from the first row's, published and measured."""
    # With a key of its own changed by hand, a row is not what was published.
    is_unchanged = not set(row.overrides[plan.options.scale]) & set(plan.options.overrides[::2])
    if not ap or not is_unchanged or "AP" not in row.published:
        return "—"
    if _is_comparable(plan):
        return f"{mean(ap) - row.published['AP']:+.1f}"
    name, runs = next(iter(plan.rows.items()))
    first = plan.table.rows[name]
    first_ap = measured(runs, "AP")
    if not first_ap or "AP" not in first.published or name == row.name:
        return "—"
    return f"{row.published['AP'] - first.published['AP']:+.1f}, {mean(ap) - mean(first_ap):+.1f}"


def _trained(runs: Mapping[int, SweepRun]) -> str:
    """Return what was trained, which in a miniature is not what the row's name says."""
    if not runs:
        return "—"
    config = next(iter(runs.values())).config
    depth, groups = config["MODEL.RESNETS.DEPTH"], config["MODEL.RESNETS.NUM_GROUPS"]
    name = f"R-{depth}" if groups == 1 else f"X-{depth}-{groups}x{config['MODEL.RESNETS.WIDTH_PER_GROUP']}d"
    return f"{name}, {config['INPUT.MIN_SIZE_TEST']} px, {config['SOLVER.MAX_ITER']} it"


def _state(runs: Mapping[int, SweepRun]) -> str:
    unfinished = {seed: run for seed, run in runs.items() if run.status is not Status.DONE}
    states = "; ".join(f"seed {seed}: {outcome(run, run.status)}" for seed, run in unfinished.items())
    return states or ("done" if runs else "not run")


def _csv(plan: SweepPlan) -> str:
    """Return each run as a line; what the paper or the training does not have is empty."""
    in_paper = (*COLUMNS, "ms")
    lines = []
    for name, runs in plan.rows.items():
        row = plan.table.rows[name]
        for seed, run in runs.items():
            record, status = run.record, run.status
            found = dict.fromkeys(COLUMNS, _DIVERGED_AP) if status is Status.DIVERGED else run.figures()
            lines.append(
                [
                    *(name, *(row.published.get(column, "") for column in in_paper), seed),
                    *(round(found[column], 4) if column in found else "" for column in _MEASURED),
                    status.value if status else "not run",
                    *((record.hardware, record.commit) if record else ("", "")),
                ]
            )
    published = (f"published_{column}" for column in in_paper)
    return as_csv(["row", *published, "seed", *_MEASURED, "status", "hardware", "commit"], lines)


def _plot_grid(plan: SweepPlan) -> Figure:
    """Draw figure 7 of the rows that are finished."""
    found = {}
    for name, runs in plan.rows.items():
        if ap := measured(runs, "AP"):
            overrides = plan.table.rows[name].overrides[plan.options.scale]
            gamma, beta = (float(overrides[f"MODEL.FOCAL_DET.LOSS.{key}"]) for key in ("GAMMA", "BETA"))
            found[gamma, beta] = mean(ap)
    return draw_star_grid(found, _plot_title(plan))


def _plot_rows(plan: SweepPlan) -> Figure:
    """Draw every row's AP: published as a ring, measured as a dot with its spread."""
    others = compared_in_table2() if plan.table.name == _WITH_COMPETITORS else {}
    published = {name: plan.table.rows[name].published for name in plan.rows} | {
        f"{name} ({other.backbone})": other.table2 for name, other in others.items()
    }
    names = list(published)
    figure, axes = new_axes("AP", "", size=(6, 1.2 + 0.3 * len(names)))
    rings = [(figures["AP"], y) for y, figures in enumerate(published.values()) if "AP" in figures]
    if rings:
        label = f"published (COCO {plan.table.split})"
        axes.plot(*zip(*rings, strict=True), "o", color="C7", fillstyle="none", label=label)
    found = [(y, ap) for y, runs in enumerate(plan.rows.values()) if (ap := measured(runs, "AP"))]
    dots = [(mean(ap), y, stdev(ap) if len(ap) > 1 else nan) for y, ap in found]
    if dots:
        means, rows, spreads = zip(*dots, strict=True)
        seeds = _seeds([plan])
        label = f"measured ({plan.options.scale}, {'seeds' if ',' in seeds else 'seed'} {seeds})"
        axes.errorbar(means, rows, xerr=spreads, fmt="o", color="C0", capsize=3, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)  # from above, with room for the marks of the first and the last
    axes.set_xlim(left=0)
    title = textwrap.fill(_plot_title(plan), _TITLE_WIDTH)
    figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize="small")
    if rings or dots:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def _plot_title(plan: SweepPlan) -> str:
    return f"{plan.table.source}: {plan.table.title}{in_miniature(plan.options.scale, '; measured ')}"


def in_miniature(scale: str, lead: str) -> str:
    """Return what a heading says of another scale than the paper's, after some words that lead to it."""
    return "" if scale == "full" else f"{lead}in miniature"


def _seeds(plans: Sequence[SweepPlan]) -> str:
    return ", ".join(map(str, sorted({seed for plan in plans for runs in plan.rows.values() for seed in runs})))
