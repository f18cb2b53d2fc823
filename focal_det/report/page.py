"""Put together what a run's files tell, and write it as one page."""

from __future__ import annotations

import math
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..errors import Findings, InputError
from ..files import write_text_whole
from ..output_layout import REPORT
from . import training_curves
from .charts import Chart, Line, draw_lines
from .run_files import RunFiles, environment_facts, read_run
from .set_result import SetResult, score_set
from .training_curves import course, thinned

_SCORE_THRESHOLD = 0.5  # where a run left no configuration
IMAGE_BYTES = 6_000_000  # of all images in the page, which stays below 10 MB with them
_TEMPLATES = Path(__file__).parent


def write_report(output_dir: str | os.PathLike[str], *, score_threshold: float | None = None, images: int = 6) -> Path:
    """Write OUTPUT_DIR/report.html, whole or not at all, from the files that are there.

    Args:
        output_dir: of a training, finished or not; it may have been moved.
        score_threshold: for confusions, errors and drawings, in [0, 1]; None for the run's own
            MODEL.FOCAL_DET.DRAW_SCORE_THRESH.
        images: how many of the worst and how many of the best images of each test set are shown.

    Raises:
        InputError: no run in the folder, a folder that cannot be written, one in place of the page, a threshold or
            number out of range.
    """
    folder = Path(output_dir)
    path = folder / REPORT
    Findings(option_problems(score_threshold, images)).raise_if_errors()
    run = read_run(folder)
    if not os.access(folder, os.W_OK):
        raise InputError(f"OUTPUT_DIR {folder} cannot be written; copy the run to where it can")
    if path.is_dir():
        raise InputError(f"OUTPUT_DIR {folder}: {REPORT} is to be a file, and is a folder there; move it away")
    page = render(run, score_threshold=score_threshold, images=images)
    write_text_whole(path, page.encode("utf-8", "replace").decode("utf-8"))  # names may hold half characters
    return path


def option_problems(score_threshold: float | None, images: int) -> list[str]:
    """Return what is wrong with the options that pages have in common."""
    problems = []
    if score_threshold is not None and not 0 <= score_threshold <= 1:
        problems.append(f"--score-thresh {score_threshold} is outside [0, 1]")
    if images < 0:
        problems.append(f"--images {images} must be at least 0")
    return problems


def render(run: RunFiles, *, score_threshold: float | None, images: int) -> str:
    """Return the page's HTML."""
    configured = run.config_value("MODEL.FOCAL_DET.DRAW_SCORE_THRESH")
    threshold = next((float(t) for t in (score_threshold, configured) if isinstance(t, (int, float))), _SCORE_THRESHOLD)
    budget = IMAGE_BYTES // max(1, len(run.sets))
    sets = [score_set(found, run, threshold=threshold, images=images, max_bytes=budget) for found in run.sets]
    return fill(
        "template.html.j2",
        run=run,
        name=run.folder.absolute().name,
        sets=sets,
        facts=_facts(run, sets),
        charts=_training_charts(run),
        environment=environment_facts(run.environment),
        threshold=threshold,
    )


def fill(template: str, **values: Any) -> str:
    """Return the HTML of a template of this folder, in which names are escaped."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["percent"] = _percent
    made_at = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return environment.get_template(template).render(values, made_at=made_at)


def _facts(run: RunFiles, sets: list[SetResult]) -> list[tuple[str, str]]:
    """Return the headline figures as (name, text); with several test sets, those of the first that is scored."""
    facts = []
    first = next((found for found in sets if found.own_scores or found.evaluation), sets[0] if sets else None)
    if first and (first.own_scores or first.evaluation):
        own, on = dict(first.own_scores), f" ({first.rule})" if first.rule else ""
        names = ("AP", "AP50", "AP75")
        facts += [(name + on, _percent(own.get(name, getattr(first.evaluation, name, math.nan)))) for name in names]
    if first and (best := first.best):
        facts.append((f"best AP, after {best.iterations:,}", _percent(best.ap)))
    done, planned = training_curves.iterations_done(run.metrics), run.config_value("SOLVER.MAX_ITER")
    if done:
        is_short = isinstance(planned, int) and done < planned
        facts.append(("iterations", f"{done:,} of {planned:,}" if is_short else f"{done:,}"))
        if is_short and (reason := _early_stop(run)):
            facts.append(("ended", reason))
    if (passes := training_curves.epochs(run.metrics)) is not None:
        facts.append(("epochs", f"{passes:.1f}"))
    if (seconds := training_curves.training_seconds(run.metrics)) is not None:
        facts.append(("training", _duration(seconds)))
    if first and first.weights:
        facts.append(("evaluated weights", first.weights))
    return facts


def _early_stop(run: RunFiles) -> str:
    """Say why early stopping ended the run; "" if it did not."""
    patience, metric = (run.config_value(f"MODEL.FOCAL_DET.PATIENCE{end}") for end in ("", "_METRIC"))
    # without a metric it goes by the first set that is scored
    names = [metric] if metric else [f"{found.metric_prefix}AP" for found in run.sets]
    measured = {name for record in run.metrics for name in record}
    name = next((name for name in names if name in measured), None)
    return training_curves.early_stop(run.metrics, name, patience) if name and isinstance(patience, int) else ""


def _training_charts(run: RunFiles) -> list[tuple[str, Chart]]:
    """Return (title, chart) of losses, AP and lr, each if there is something to draw."""
    charts = []
    losses = [
        Line(name, thinned(points), name.endswith("total_loss"), "val/" in name)
        for name, points in training_curves.losses(run.metrics).items()
        if points
    ]
    if losses:
        charts.append(("Loss", draw_lines("loss", losses, "iterations", "loss", is_log=True)))
    scores = [
        Line(
            name if len(run.sets) == 1 else f"{name}, {found.name}",
            thinned(points),
            name.partition(" ")[0] == "AP",
            True,
        )
        for found in run.sets
        for name, points in training_curves.scores(run.metrics, found.metric_prefix).items()
    ]
    if scores:
        charts.append(("AP", draw_lines("ap", scores, "iterations", "percent")))
    if rates := thinned(course(run.metrics, "lr")):
        charts.append(("Learning rate", draw_lines("lr", [Line("lr", rates)], "iterations", "lr")))
    return charts


def _percent(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:.1f}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
