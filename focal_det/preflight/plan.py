"""From the command line to a job: check everything in stages, freeze the configuration, write what the job reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode

from .. import plugin  # noqa: F401 - registers what a configuration may name
from ..checkpoint.class_rows import ClassRows
from ..checkpoint.compatibility import build_parts, check_weights
from ..checkpoint.resume import Checkpoint, Resumption, check_changes, choose_seed, find_checkpoint
from ..checkpoint.run_record import RunRecord, UsedSet
from ..config.diff import config_changes
from ..config.expected_results import check_expected_results, check_patience
from ..config.layers import key_value_pairs
from ..config.load import ConfigAsRead, load_config, read_config
from ..config.plugins import KEY as PLUGINS
from ..config.plugins import absolute, check_recorded
from ..config.sampling import fit_repeat_factors
from ..config.schedule import check_schedule, scale_schedule, scale_to_processes
from ..config.validate import check_config
from ..data.catalog import JsonDataset, prepare_shapes, write_checked_copy
from ..engine.run import Job
from ..environment import choose_device
from ..errors import Findings, InputError, print_problems, visible_lines
from ..formats.coco import CocoFile
from ..inference.classes import Classes, write_classes
from ..tracking.trackers import check_trackers
from .batch_memory import check_memory, choose_batch
from .class_counts import count_classes
from .datasets import DataSets, check_classes, classes_of, read_datasets
from .image_shapes import check_image_shapes
from .options import TrainOptions, check_options
from .own_datasets import read_own_sets, weights_folder
from .scored_sets import ap_set
from .summary import describe
from .workers import check_workers


class Plan(NamedTuple):
    """A job whose input has been checked, what has to be written before it can start, and what to say of it."""

    job: Job
    json_files: dict[JsonDataset, CocoFile]
    dataset_names: tuple[str, ...]
    summary: list[str]
    classes: Classes
    resumption: Resumption | None  # what a training begins with; None for an evaluation


def check(options: TrainOptions, *, own_gpu: bool = False) -> Plan:
    """Check the command line, the configuration, the data and the checkpoint; print warnings, and nothing else.

    Each stage returns what it made and what it found. A stage that settles keys of the configuration returns their
    values or another configuration, and changes none that it is given. Raises InputError with every problem found.

    Args:
        own_gpu: each process sees one GPU, which no other one sees.
    """
    # Stages that do not need one another's success: their errors come in one list.
    given = _load(options)
    resumption = None
    if options.training or options.resume:
        resumption = find_checkpoint(Path(given.cfg.OUTPUT_DIR), options.resume, trains=options.training)
    checkpoint = resumption.checkpoint if resumption else None
    _check_plugins(checkpoint)
    cfg, of_choice = _choose_weights(options, given.cfg, checkpoint)
    cfg, of_machine = choose_device(cfg, options.num_gpus, own_gpu=own_gpu)
    if options.batch_auto:  # until it is known, one that no check trips over
        cfg, of_schedule = _with(cfg, "SOLVER.IMS_PER_BATCH", _smallest_batch(options, cfg)), Findings()
    else:
        cfg, of_schedule = _fit_schedule(options, cfg, is_readable=not given.findings.errors)
    data, of_data = read_datasets(options, cfg)
    cfg, of_sampler = _name_sets(options, cfg, data)
    found = given.findings
    # What a run began with is not needed to resume it, so it need not be there.
    loading = _with(cfg, "MODEL.WEIGHTS", str(checkpoint.path)) if checkpoint else cfg
    found.add(check_config(loading, num_processes=options.world_size, training=options.training))
    found.add(of_sampler)
    found.add(check_expected_results(cfg, data.scores))
    found.add(check_patience(cfg, data.scores) if options.training else Findings())
    num_classes, of_classes = check_classes(cfg, data, _trained_in(options, cfg, resumption))
    cfg = _with(cfg, "MODEL.RETINANET.NUM_CLASSES", num_classes)
    cfg, of_counts = count_classes(cfg, data) if options.training else (cfg, Findings())
    # where values are wrong, the parts would trip over the same
    is_wrong = bool(found.errors or of_counts.errors)
    model, of_parts = (None, Findings()) if is_wrong else build_parts(cfg, training=options.training)
    of_folder = resumption.findings if resumption else Findings()
    of_flags = check_options(options)
    if options.training:
        of_flags.add(check_trackers(cfg))
    for of_stage in (of_machine, of_flags, of_schedule, of_data, of_folder, of_choice, of_classes, of_counts, of_parts):
        found.add(of_stage)
    _raise_if_errors(found)
    assert model is not None

    # From here on the configuration is sound, the data sets are there, and the model is built.
    if options.batch_auto:
        cfg, of_batch = _fit_batch(options, cfg, data, model, checkpoint)
        found.add(of_batch)
        _raise_if_errors(found)
    classes = classes_of(data.sets[0], cfg.MODEL.RETINANET.NUM_CLASSES)
    found.add(_check_weights(options, cfg, model, checkpoint, classes))
    found.add(check_image_shapes(cfg, data, model))
    found.add(describe(options, cfg, data, model))
    found.add(check_memory(options, cfg, data, model))
    found.add(check_workers(options, cfg, data))
    record = None
    if options.training:
        seed, of_seed = choose_seed(cfg, checkpoint)
        cfg = _with(cfg, "SEED", seed)
        record = _record(options, cfg, data, classes)
        found.add(of_seed)
        found.add(check_changes(checkpoint, record, allowed=options.allow_changes) if checkpoint else Findings())
    _raise_if_errors(found)
    _print_warnings(found)
    cfg.freeze()
    job = Job(
        cfg=cfg,
        json_datasets=tuple(data.files),
        eval_only=options.eval_only,
        processes_per_machine=options.num_gpus,
        checkpoint=checkpoint.path if checkpoint and options.training else None,
        record=record,
        notes=(*(f"warning: {visible_lines(warning)}" for warning in found.warnings), *of_data.notes),
        changes=config_changes(cfg, given.cfg, given.places),
        plugins=absolute(options.plugin),
        hang_timeout=options.hang_timeout,
    )
    names = tuple(described.name for described in data.sets)
    begins_with = resumption.without_contents() if resumption and options.training else None
    return Plan(job, data.files, names, found.notes, classes, begins_with)


def configured_device(options: TrainOptions) -> str:
    """Return MODEL.DEVICE as it is configured, whatever this machine has; "" where that cannot be read."""
    try:
        return str(read_config(options.config_file, options.settings).cfg.MODEL.DEVICE)
    except InputError:  # which `check` will say
        return ""


def write(plan: Plan) -> None:
    """Draw the shapes that are needed and not there yet; write the checked annotations and the classes.

    The plan no longer holds the annotations then, or they would be in memory for as long as the run takes.
    """
    prepare_shapes(plan.dataset_names)
    while plan.json_files:
        write_checked_copy(*plan.json_files.popitem())
    if not plan.job.eval_only:
        write_classes(Path(plan.job.cfg.OUTPUT_DIR), plan.classes)


def _raise_if_errors(found: Findings) -> None:
    """Raise InputError with all errors, after the warnings, which may tell what led to them."""
    if found.errors:
        _print_warnings(found)
    found.raise_if_errors()


def _print_warnings(found: Findings) -> None:
    if found.warnings:
        print_problems(found.warnings, "warning")


def _with(cfg: CfgNode, *keys_and_values: Any) -> CfgNode:
    """Return a copy of a configuration with other values: KEY, VALUE, KEY, VALUE, ..."""
    cfg = cfg.clone()
    cfg.merge_from_list(list(keys_and_values))
    return cfg


def _load(options: TrainOptions) -> ConfigAsRead:
    """Read the files and overrides.

    Raises InputError if one cannot be read at all, with what can still be said of the flags and the data they name.
    """
    try:
        return read_config(options.config_file, options.settings)
    except InputError as error:
        _, of_sets = read_own_sets(options, load_config(()))
        raise InputError([*error.problems, *check_options(options).errors, *of_sets.errors]) from error


def _check_plugins(checkpoint: Checkpoint | None) -> None:
    """Raise InputError at once if the checkpoint's run had plug-ins that are not loaded.

    Without them the keys and names that they register would be errors of their own.
    """
    if checkpoint and checkpoint.record:
        check_recorded(f"--resume: {checkpoint.path}", checkpoint.record.config.get(PLUGINS))


def _choose_weights(options: TrainOptions, cfg: CfgNode, checkpoint: Checkpoint | None) -> tuple[CfgNode, Findings]:
    """Return the configuration with the checkpoint as MODEL.WEIGHTS if --eval-only --resume evaluates it; say so."""
    if options.training or not options.resume:
        return cfg, Findings()
    weights = cfg.MODEL.WEIGHTS
    if checkpoint is None:
        return cfg, Findings(notes=[f"evaluate MODEL.WEIGHTS {weights}, since {cfg.OUTPUT_DIR} has no checkpoint"])
    found = Findings(notes=[f"evaluate {checkpoint.path}, after {checkpoint.done} iterations"])
    if weights and "MODEL.WEIGHTS" in options.settings[::2]:
        message = f"--resume: {checkpoint.path} is evaluated, not MODEL.WEIGHTS {weights}"
        found.warnings.append(f"{message}; leave out --resume to evaluate that")
    return _with(cfg, "MODEL.WEIGHTS", str(checkpoint.path)), found


def _fit_schedule(options: TrainOptions, cfg: CfgNode, *, is_readable: bool) -> tuple[CfgNode, Findings]:
    """Return the configuration with the schedule scaled to the batch if asked; warn if it fits the batch badly."""
    if options.eval_only or not is_readable:
        return cfg, Findings()
    cfg, found = cfg.clone(), Findings()
    set_by_user, written_for = set(options.settings[::2]), _written_for(options)
    scaled, of_processes = scale_to_processes(cfg, options.world_size)
    scale_lr = options.scale_lr or options.batch is not None
    if scale_lr and cfg.SOLVER.REFERENCE_WORLD_SIZE:
        found.errors.append(
            f"SOLVER.REFERENCE_WORLD_SIZE is {cfg.SOLVER.REFERENCE_WORLD_SIZE}, which scales lr and schedule to the "
            "number of processes, and --scale-lr or --batch to the batch; leave one of them out"
        )
    elif scale_lr:
        if change := scale_schedule(cfg, written_for, set_by_user):
            found.warnings.append(f"--scale-lr: {change}")
        elif options.scale_lr:
            found.warnings.append("--scale-lr: the batch is that of the config file, nothing to scale")
    elif written_for != cfg.SOLVER.IMS_PER_BATCH and "SOLVER.BASE_LR" not in set_by_user:
        message = f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, but lr and schedule were written for"
        found.warnings.append(f"{message} {written_for}; --scale-lr fits them")
    found.add(of_processes)
    found.add(check_schedule(scaled))
    return scaled, found


def _written_for(options: TrainOptions) -> int:
    """Return the batch that lr and schedule are written for: the files', without the command line's."""
    others = [pair for pair in key_value_pairs(options.settings) if pair[0] != "SOLVER.IMS_PER_BATCH"]
    return int(load_config(options.config_file, [word for pair in others for word in pair]).SOLVER.IMS_PER_BATCH)


def _smallest_batch(options: TrainOptions, cfg: CfgNode) -> int:
    return options.world_size * max(1, cfg.MODEL.FOCAL_DET.ACCUMULATION)


def _fit_batch(
    options: TrainOptions, cfg: CfgNode, data: DataSets, model: torch.nn.Module, checkpoint: Checkpoint | None
) -> tuple[CfgNode, Findings]:
    """Return the configuration with the batch that --batch auto chooses, lr and schedule fitted to it; say why."""
    record = checkpoint.record if checkpoint else None
    recorded = record.config.get("SOLVER.IMS_PER_BATCH") if record else None
    batch, reason = choose_batch(options, cfg, data, model, recorded, _written_for(options))
    cfg, found = _fit_schedule(options, _with(cfg, "SOLVER.IMS_PER_BATCH", batch), is_readable=True)
    found.notes.append(reason)
    return cfg, found


def _name_sets(options: TrainOptions, cfg: CfgNode, data: DataSets) -> tuple[CfgNode, Findings]:
    """Return the configuration with the catalogue's names for the sets that flags or DATASETS give by place."""
    named = _with(cfg, "DATASETS.TRAIN", data.train, "DATASETS.TEST", data.test)
    if options.eval_only:
        return named, Findings()
    given = (*options.train_data, *options.train_json, *options.train_voc) or tuple(cfg.DATASETS.TRAIN)
    factors, found = fit_repeat_factors(cfg, given, data.train)
    return _with(named, "DATASETS.TRAIN_REPEAT_FACTOR", factors), found


def _trained_in(options: TrainOptions, cfg: CfgNode, resumption: Resumption | None) -> Path | None:
    """Return the folder of the checkpoint that is evaluated, or that is or ought to be resumed."""
    if resumption is None or options.eval_only:
        return weights_folder(cfg)
    is_resumed = resumption.checkpoint or (options.resume and resumption.findings.errors)
    return Path(cfg.OUTPUT_DIR) if is_resumed else None


def _check_weights(
    options: TrainOptions, cfg: CfgNode, model: torch.nn.Module, checkpoint: Checkpoint | None, classes: Classes
) -> Findings:
    if checkpoint:
        return check_weights(model, str(checkpoint.path), needs_all=True, contents=checkpoint.contents)
    weights = cfg.MODEL.WEIGHTS
    # A training fetches an address by itself.
    if weights and (options.eval_only or options.preflight_only or os.path.isfile(weights)):
        rows = ClassRows.of(cfg, classes.names) if options.training else None
        return check_weights(model, weights, needs_all=options.eval_only, class_rows=rows)
    return Findings()


def _record(options: TrainOptions, cfg: CfgNode, data: DataSets, classes: Classes) -> RunRecord:
    used = {s.name: UsedSet(s.name, s.content.images if s.content else None, s.fingerprint) for s in data.sets}
    trained_on, tested_on = [used[described.name] for described in data.trained_on], used[ap_set(cfg, data.unscored)[0]]
    names, size = classes.names, options.world_size
    return RunRecord.of(cfg, training_sets=trained_on, tested_on=tested_on, class_names=names, world_size=size)
