"""What a run is about to do, in words: its data, schedule, disk and anchors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from detectron2.config import CfgNode

from ..data.statistics import SetStatistics
from ..engine.advice import checkpoint_bytes, checkpoints_to_come, disk_advice, epoch_warnings, free_bytes, gigabytes
from ..engine.anchor_report import AnchorReport, Row, anchor_warnings, iou_words, report_anchors
from ..engine.model_checks import build_cpu_model
from .described_sets import DescribedSet, objects_of

_CLASSES_SHOWN = 10  # without --preflight-only, which shows all


class TrainingSummary(NamedTuple):
    """What there is to say of a training: lines for the summary, warnings and problems."""

    lines: list[str]
    warnings: list[str]
    problems: list[str]


def summary_lines(cfg: CfgNode, sets: Sequence[DescribedSet], *, full: bool) -> list[str]:
    """The data, line by line; `full`: with all classes."""
    return [*_data_lines(cfg, sets), *_class_lines(sets, full=full)]


def describe_training(cfg: CfgNode, sets: Sequence[DescribedSet], *, full: bool) -> TrainingSummary:
    """Schedule, disk and anchors of a configuration that is sound.

    Args:
        sets: that are trained on.
        full: with the anchors of each kind of object.
    """
    model = build_cpu_model(cfg)
    size = checkpoint_bytes(model)
    warnings, problems = disk_advice(cfg, size)
    warnings += epoch_warnings(cfg, _trained_pictures(cfg, sets))
    anchors = report_anchors(cfg, model, *objects_of(sets))
    lines = [*_schedule_lines(cfg, sets), *_disk_lines(cfg, size)]
    if anchors:
        lines += _anchor_lines(anchors, full=full)
        warnings += anchor_warnings(anchors)
    return TrainingSummary(lines, warnings, problems)


def _data_lines(cfg: CfgNode, sets: Sequence[DescribedSet]) -> Iterator[str]:
    for described in sets:
        content = described.content
        role = "train on" if described.is_trained_on else "evaluate on"
        if content is None:
            yield f"{role} {described.name}: {described.remark}"
            continue
        without = content.pictures - content.with_objects
        told = f"{content.pictures} pictures, {content.with_objects} with objects, {without} without"
        if without and role == "train on" and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            told += ", which are filtered (DATALOADER.FILTER_EMPTY_ANNOTATIONS)"
        told += f"; {len(content.objects.boxes)} objects"
        told += f", {content.crowds} crowds" if content.crowds else ""
        told += f"; {described.boxes_left_out} boxes left out" if described.boxes_left_out else ""
        yield f"{role} {described.name}: {told}"


def _class_lines(sets: Sequence[DescribedSet], *, full: bool) -> Iterator[str]:
    known = {described.name: described.content for described in sets if described.content is not None}
    if not known:
        return
    first = next(iter(known.values()))
    shown = len(first.class_names) if full else min(len(first.class_names), _CLASSES_SHOWN)
    counts = [content.instances for content in known.values()]
    names = [f"{label} = {name} (id {category})" for label, (name, category) in _numbered(first)][:shown]
    width, widths = max(map(len, ["class", *names])), [max(7, len(name)) for name in known]
    yield f"{'class':{width}}  " + "  ".join(f"{n:>{w}}" for n, w in zip(known, widths, strict=True))
    for label, name in enumerate(names):
        numbers = "  ".join(f"{c[label]:>{w}}" for c, w in zip(counts, widths, strict=True))
        yield f"{name:{width}}  {numbers}"
    if shown < len(first.class_names):
        yield f"and {len(first.class_names) - shown} more classes, which --preflight-only lists"


def _numbered(content: SetStatistics) -> Iterator[tuple[int, tuple[str, int]]]:
    return enumerate(zip(content.class_names, content.category_ids, strict=True))


def _schedule_lines(cfg: CfgNode, sets: Sequence[DescribedSet]) -> Iterator[str]:
    solver = cfg.SOLVER
    told = f"schedule: {solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} pictures"
    used = _trained_pictures(cfg, sets)
    if used:
        told += f" = {solver.MAX_ITER * solver.IMS_PER_BATCH / used:.1f} epochs of {used}"
    of_one = solver.BASE_LR / solver.IMS_PER_BATCH
    lr = f"lr {solver.BASE_LR:g}, {of_one:.2g} a picture, {solver.WARMUP_ITERS} iterations of warm-up"
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        drops = ", ".join(str(step) for step in solver.STEPS if step < solver.MAX_ITER)
        lr += f", times {solver.GAMMA:g} at {drops}" if drops else ", no drops"
    yield f"{told}; {lr}"


def _trained_pictures(cfg: CfgNode, sets: Sequence[DescribedSet]) -> int | None:
    """Of an epoch; None if a set does not say."""
    counts = [
        s.content.with_objects if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else s.content.pictures
        for s in sets
        if s.content is not None
    ]
    return max(1, sum(counts)) if len(counts) == len(sets) else None


def _disk_lines(cfg: CfgNode, checkpoint: int) -> Iterator[str]:
    number = checkpoints_to_come(cfg)
    yield (
        f"disk: {number} checkpoints of {gigabytes(checkpoint)} to come, {gigabytes(number * checkpoint)} of the "
        f"{gigabytes(free_bytes(cfg.OUTPUT_DIR))} free at {cfg.OUTPUT_DIR}"
    )


def _anchor_lines(report: AnchorReport, *, full: bool) -> Iterator[str]:
    whole = report.whole
    low, high = map(iou_words, report.thresholds)
    yield (
        f"anchors: {whole.reached:.1%} of {whole.number} objects have one with IoU >= {high} at {report.shorter} px, "
        f"{whole.near:.1%} one of {low} to {high}, {whole.missed:.1%} none of {low}; median side {whole.side:.0f} px"
    )
    if not full:
        return
    yield f"  {'':14}{'objects':>9}{'>= ' + high:>9}{f'{low} to {high}':>10}{'< ' + low:>8}{'median side':>15}"
    yield from (_row(row) for row in report.by_size)
    yield from (_row(row) for row in report.by_shape)
    yield from (_row(row._replace(name=f"class {row.name}")) for row in report.worst_classes)
    for overrides, share in report.better:
        yield f"  {share:.1%} would have one of {high} with: {overrides}"


def _row(row: Row) -> str:
    return f"  {row.name:14}{row.number:9}{row.reached:9.1%}{row.near:10.1%}{row.missed:8.1%}{row.side:12.0f} px"
