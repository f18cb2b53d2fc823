"""What a run is about to do, in lines for its user: data, classes, schedule, disk space and anchors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from detectron2.config import CfgNode

from ..checkpoint.disk_space import check_disk, checkpoint_bytes, checkpoints_to_come, free_bytes, gigabytes
from ..config.sampling import check_subset, images_of_epoch
from ..config.schedule import epoch_warnings
from ..data.statistics import iou_text
from ..errors import Findings
from .anchor_fit import fit_lines
from .anchor_report import AnchorReport, anchor_warnings, candidate_warnings, report_anchors
from .datasets import DataSets, DescribedSet, objects_of
from .options import TrainOptions
from .scored_sets import ap_set

_FEW = 1000  # images, with which a detector that starts from random weights remains poor
_CLASSES_SHOWN = 10  # without --preflight-only, which shows all


def describe(options: TrainOptions, cfg: CfgNode, data: DataSets, model: torch.nn.Module) -> Findings:
    """Describe a run whose configuration is sound; check the space on its disk, its epochs and its anchors."""
    full = options.preflight_only
    found = Findings(notes=[*_data_lines(cfg, data.sets), *_class_lines(data.sets, full=full)])
    if options.eval_only:
        return found
    found.notes += ap_set(cfg, data.unscored)[1]
    sets, size = data.trained_on, checkpoint_bytes(model, has_average=cfg.MODEL.FOCAL_DET.EMA.DECAY > 0)
    found.add(check_disk(cfg, size))
    images = trained_images(cfg, sets)
    found.add(check_subset(cfg, images))
    found.warnings += epoch_warnings(cfg, images and images_of_epoch(cfg, images))
    number, free = checkpoints_to_come(cfg), gigabytes(free_bytes(cfg.OUTPUT_DIR))
    needed = f"{number} checkpoints of {gigabytes(size)} to come, {gigabytes(number * size)}"
    found.notes += [_schedule_line(cfg, sets), f"disk: {needed} of the {free} free at {cfg.OUTPUT_DIR}"]
    whole = trained_images(cfg, sets, count_tiles=False)  # which are no further scenes to learn from
    if whole and whole < _FEW and not cfg.MODEL.WEIGHTS and not options.resume:
        start = "start from COCO's detector on a GPU, --config-file focal_det://retinanet_coco_finetune.yaml"
        found.notes.append(f"from scratch on {whole} images: if you can, {start}")
    found.warnings += candidate_warnings(cfg, model)
    anchors = report_anchors(cfg, model, *objects_of(sets))
    if anchors:
        found.notes += _anchor_lines(anchors, full=full)
        found.warnings += anchor_warnings(anchors)
    return found


def _data_lines(cfg: CfgNode, sets: Sequence[DescribedSet]) -> Iterator[str]:
    for described in sets:
        content = described.content
        role = "train on" if described.is_trained_on else "evaluate on"
        if content is None:
            yield f"{role} {described.name}: {described.remark}"
            continue
        without = content.images - content.with_objects
        text = f"{content.images} images, {content.with_objects} with objects, {without} without"
        if without and described.is_trained_on and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            text += ", which are filtered (DATALOADER.FILTER_EMPTY_ANNOTATIONS)"
        text += f"; {len(content.objects.boxes)} objects"
        text += f", {content.crowds} crowds" if content.crowds else ""
        text += f"; {described.boxes_left_out} boxes left out" if described.boxes_left_out else ""
        size = cfg.MODEL.FOCAL_DET.TILES.SIZE
        if size and not content.tiles:
            text += f"; no tiles, as no image is larger than {size} px"
        elif content.tiles:
            text += f"; and {content.tiles} tiles of {size} px, {content.tiles_with_objects} of them with objects"
            if described.is_trained_on and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
                text += ", the others are filtered"
        yield f"{role} {described.name}: {text}"


def _class_lines(sets: Sequence[DescribedSet], *, full: bool) -> Iterator[str]:
    known = {described.name: described.content for described in sets if described.content is not None}
    if not known:
        return
    first = next(iter(known.values()))
    shown = len(first.class_names) if full else min(len(first.class_names), _CLASSES_SHOWN)
    counts = [content.instances for content in known.values()]
    numbered = enumerate(zip(first.class_names, first.category_ids, strict=True))
    names = [f"{label} = {name} (id {category})" for label, (name, category) in numbered][:shown]
    width, widths = max(map(len, ["class", *names])), [max(7, len(name)) for name in known]
    yield f"{'class':{width}}  " + "  ".join(f"{n:>{w}}" for n, w in zip(known, widths, strict=True))
    for label, name in enumerate(names):
        numbers = "  ".join(f"{c[label]:>{w}}" for c, w in zip(counts, widths, strict=True))
        yield f"{name:{width}}  {numbers}"
    if shown < len(first.class_names):
        yield f"and {len(first.class_names) - shown} more classes, which --preflight-only lists"


def _schedule_line(cfg: CfgNode, sets: Sequence[DescribedSet]) -> str:
    solver = cfg.SOLVER
    length = f"{solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} images"
    images = trained_images(cfg, sets)
    if images and (drawn := images_of_epoch(cfg, images)):
        length += f" = {solver.MAX_ITER * solver.IMS_PER_BATCH / drawn:.1f} epochs of {drawn}"
        length += f", a random subset of {images}" if drawn < images else ""
    per_image = solver.BASE_LR / solver.IMS_PER_BATCH
    lr = f"lr {solver.BASE_LR:g}, {per_image:.2g} an image, {solver.WARMUP_ITERS} iterations of warm-up"
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        drops = ", ".join(str(step) for step in solver.STEPS if step < solver.MAX_ITER)
        lr += f", times {solver.GAMMA:g} at {drops}" if drops else ", no drops"
    return f"schedule: {length}; {lr}"


def trained_images(cfg: CfgNode, sets: Sequence[DescribedSet], *, count_tiles: bool = True) -> int | None:
    """Return the number of images, and tiles of them, that may be trained on; None if a set does not say."""
    contents = [described.content for described in sets if described.content is not None]
    if len(contents) < len(sets):
        return None
    only_with_objects = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    counts = [(c.with_objects, c.tiles_with_objects) if only_with_objects else (c.images, c.tiles) for c in contents]
    return max(1, sum(images + (tiles if count_tiles else 0) for images, tiles in counts))


def _anchor_lines(report: AnchorReport, *, full: bool) -> Iterator[str]:
    yield from fit_lines(report.rows, report.fit, full=full)
    for overrides, share in report.better if full else ():
        yield f"  {share:.1%} would have one of {iou_text(report.fit.thresholds[1])} with: {overrides}"
