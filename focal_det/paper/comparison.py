"""A table of the paper, measured beside published: Markdown, CSV and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure

from ..files import write_text_whole
from .figures import as_csv, new_axes, save_figures
from .loss_figures import draw_star_grid
from .results import Status
from .runs import SweepPlan, SweepRun
from .sweep import outcome
from .tables import TableRow

_DIVERGED_AP = 0.0


def measured(row_runs: Mapping[int, SweepRun], column: str) -> list[float]:
    """Return a row's figures in a column, one for each finished seed that has it. What diverged counts as 0 AP."""
    figures = []
    for run in row_runs.values():
        if run.status is Status.DIVERGED and column.startswith("AP"):
            figures.append(_DIVERGED_AP)
        elif column in (found := run.metrics()):
            figures.append(found[column])
    return figures


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


def _markdown(plan: SweepPlan, command: str) -> str:
    table, options = plan.table, plan.options
    records = [record for run in plan.runs if run.is_finished and (record := run.record)]
    hardware, commits, versions = (
        "; ".join(dict.fromkeys(getattr(record, key) for record in records)) or "—"
        for key in ("hardware", "commit", "versions")
    )
    sets = sorted({str(run.config["DATASETS.TEST"][0]) for run in plan.runs})
    tested_on = "the files given" if options.data_flags else ", ".join(sets)
    in_miniature = "" if options.scale == "full" else f", in the scale {options.scale}"
    against = "difference" if _is_comparable(plan) else f"against {next(iter(plan.rows))}: published, measured"
    lines = [
        f"# {table.source}: {table.title}{in_miniature}",
        "",
        f"- Scale: {options.scale}. Published: COCO {table.split}. Measured: {tested_on}.",
        f"- Last command: `{command}`",
        f"- Overrides by hand: {'`' + ' '.join(options.overrides) + '`' if options.overrides else 'none'}",
        *([f"- Data: `{' '.join(options.data_flags)}`"] if options.data_flags else []),
        f"- Hardware: {hardware}",
        f"- Commit: {commits}. Versions: {versions}",
        f"- Seeds: {_seeds(plan)}; the spread is their sample standard deviation, and one that diverged counts as 0 AP",
        "",
        f"| row | sets | trained | published {' / '.join(table.columns)} | AP measured | {against} | "
        "each seed | AP50 | AP75 | s per iteration | state |",
        "|---" * 11 + "|",
    ]
    for name, runs in plan.rows.items():
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(plan, name, runs)) + " |")
    return "\n".join(lines) + "\n"


def _cells(plan: SweepPlan, name: str, runs: Mapping[int, SweepRun]) -> list[str]:
    row = plan.table.rows[name]
    overrides = row.overrides[plan.options.scale].items()
    published = (f"{value:g} ms" if column == "ms" else f"{value:.1f}" for column, value in row.published.items())
    ap, ap50, ap75, seconds = (measured(runs, column) for column in ("AP", "AP50", "AP75", "s_per_iteration"))
    spread = f" ± {stdev(ap):.1f}" if len(ap) > 1 else ""
    return [
        name,
        ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in overrides) or "—",
        _trained(runs),
        " / ".join(published) or row.statement or "—",
        f"{mean(ap):.1f}{spread}" if ap else "—",
        _difference(row, plan, ap),
        ", ".join(f"{value:.1f}" for value in ap) or "—",
        *(f"{mean(found):.1f}" if found else "—" for found in (ap50, ap75)),
        f"{mean(seconds):.3f}" if seconds else "—",
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
    columns = plan.table.columns
    lines = []
    for name, runs in plan.rows.items():
        row = plan.table.rows[name]
        for seed, run in runs.items():
            record, status = run.record, run.status
            found = dict.fromkeys(columns, _DIVERGED_AP) if status is Status.DIVERGED else run.metrics()
            lines.append(
                [
                    *(name, *(row.published.get(c, "") for c in columns), seed),
                    *(round(found[c], 3) if c in found else "" for c in columns),
                    round(found["s_per_iteration"], 4) if "s_per_iteration" in found else "",
                    status.value if status else "not run",
                    *((record.hardware, record.commit) if record else ("", "")),
                ]
            )
    published = (f"published_{column}" for column in columns)
    return as_csv(["row", *published, "seed", *columns, "s_per_iteration", "status", "hardware", "commit"], lines)


def _plot_grid(plan: SweepPlan) -> Figure:
    """Draw figure 7 of the rows that are finished."""
    found = {}
    for name, runs in plan.rows.items():
        if ap := measured(runs, "AP"):
            overrides = plan.table.rows[name].overrides[plan.options.scale]
            gamma, beta = (float(overrides[f"MODEL.FOCAL_DET.LOSS.{key}"]) for key in ("GAMMA", "BETA"))
            found[gamma, beta] = mean(ap)
    return draw_star_grid(found, f"{plan.table.source}: {plan.table.title} ({plan.options.scale})")


def _plot_rows(plan: SweepPlan) -> Figure:
    """Draw every row's AP: published as a ring, measured as a dot with its spread."""
    names = list(plan.rows)
    figure, axes = new_axes("AP", "", size=(6, 1.2 + 0.3 * len(names)))
    published = [plan.table.rows[name].published for name in names]
    rings = [(figures["AP"], y) for y, figures in enumerate(published) if "AP" in figures]
    if rings:
        label = f"published (COCO {plan.table.split})"
        axes.plot(*zip(*rings, strict=True), "o", color="C7", fillstyle="none", label=label)
    found = [(y, ap) for y, runs in enumerate(plan.rows.values()) if (ap := measured(runs, "AP"))]
    dots = [(mean(ap), y, stdev(ap) if len(ap) > 1 else 0.0) for y, ap in found]
    if dots:
        means, rows, spreads = zip(*dots, strict=True)
        label = f"measured ({plan.options.scale}, seeds {_seeds(plan)})"
        axes.errorbar(means, rows, xerr=spreads, fmt="o", color="C0", capsize=3, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    scale = "" if plan.options.scale == "full" else f"; measured in the scale {plan.options.scale}"
    axes.set_title(f"{plan.table.source}: {plan.table.title}{scale}", fontsize="small", loc="left")
    if rings or dots:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def _seeds(plan: SweepPlan) -> str:
    return ", ".join(map(str, sorted({seed for runs in plan.rows.values() for seed in runs})))
