"""From the command line to a job: find every problem, freeze the configuration, then write what the job reads."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode

from .. import plugin  # noqa: F401 - registers what a configuration may name
from ..data.catalog import JsonDataset, known_classes, prepare_shapes, write_checked_copy
from ..data.coco_json import CocoFile
from ..data.sources import Use
from ..engine.advice import schedule_warnings
from ..engine.checks import class_problems, config_problems
from ..engine.config_changes import config_changes
from ..engine.config_file import UNSET_NUM_CLASSES, key_value_pairs, load_config, read_config
from ..engine.devices import choose_device
from ..engine.job import Job
from ..engine.model_checks import model_problems, weights_problems
from ..engine.run_record import RunRecord, UsedSet
from ..engine.schedule import scale_schedule
from ..errors import InputError, visible_lines
from ..inference.classes import Classes, numbered_classes, write_classes
from .class_order import order_problems
from .common import print_problems
from .datasets import read_own_sets, weights_folder
from .described_sets import DescribedSet, read_sets
from .resuming import Resumption, change_lines, find_checkpoint, settle_seed
from .summary import describe_training, summary_lines


class Plan(NamedTuple):
    """A job whose input has been checked, what has to be written before it can start, and what to say of it."""

    job: Job
    json_files: dict[JsonDataset, CocoFile]
    dataset_names: tuple[str, ...]
    summary: list[str]
    classes: Classes
    resumption: Resumption | None


def write(plan: Plan) -> None:
    """Draw the shapes that are needed and not there yet; write the checked annotations."""
    prepare_shapes(plan.dataset_names)
    for dataset, coco_file in plan.json_files.items():
        write_checked_copy(dataset, coco_file)
    if not plan.job.eval_only:
        write_classes(Path(plan.job.cfg.OUTPUT_DIR), plan.classes)


def _classes_of(first: DescribedSet, num_classes: int) -> Classes:
    """The labels' names, and their ids in the first set."""
    if first.class_names is not None and first.content is not None:
        return Classes(first.class_names, first.content.category_ids)
    known = known_classes(first.name)
    return Classes(*known) if known is not None else numbered_classes(num_classes)


def check(args: argparse.Namespace, *, own_gpu: bool = False) -> Plan:
    """Check the command line, the configuration and the data; print warnings, and nothing else.

    Args:
        own_gpu: each process sees one GPU, which no other one sees.

    Raises:
        InputError: every problem found; nothing is written.
    """
    try:
        cfg, problems, places = read_config(args.config_file, args.overrides)
    except InputError as error:  # of the data that flags name something can still be said
        problems = [*error.problems, *_flag_problems(args), *read_own_sets(args, load_config(""))[2]]
        raise InputError(problems) from error
    loaded = cfg.clone()
    training = not args.eval_only
    warnings, device_problems = choose_device(cfg, args.num_gpus, own_gpu=own_gpu)
    if training and not problems:
        warnings += [*_settle_schedule(cfg, args), *schedule_warnings(cfg)]
    json_files, sets, set_problems = _read_data(args, cfg)
    value_problems = problems + config_problems(
        cfg, num_processes=max(1, args.num_gpus * args.num_machines), training=training
    )
    resumption = find_checkpoint(Path(cfg.OUTPUT_DIR), args.resume) if training else None
    checkpoint = resumption.checkpoint if resumption else None
    of_classes = _settle_classes(cfg, sets)
    if args.eval_only or checkpoint or (args.resume and resumption and resumption.problems):
        files = {dataset.name: dataset.json_file for dataset in json_files}
        of_sets = {files.get(s.name, f"data set {s.name}"): s.class_names for s in sets}
        of_classes += order_problems(weights_folder(cfg) if args.eval_only else Path(cfg.OUTPUT_DIR), of_sets)
    problems = [
        *(*value_problems, *device_problems, *_flag_problems(args)),
        *(*set_problems, *(resumption.problems if resumption else ()), *of_classes),
    ]
    if not value_problems:  # else the parts trip over the same
        problems += model_problems(_with_classes(cfg))
    _raise_if(problems)

    # From here on the configuration is sound, and the files are there.
    weights = str(checkpoint.path if checkpoint else cfg.MODEL.WEIGHTS)
    # A training fetches an address by itself.
    if weights and (args.eval_only or args.preflight_only or os.path.isfile(weights)):
        problems = weights_problems(cfg, weights, whole=bool(args.eval_only or checkpoint))
    summary = summary_lines(cfg, sets, full=args.preflight_only)
    if training:
        found = describe_training(cfg, [s for s in sets if s.is_trained_on], full=args.preflight_only)
        problems, warnings, summary = problems + found.problems, warnings + found.warnings, summary + found.lines
    classes = _classes_of(sets[0], cfg.MODEL.RETINANET.NUM_CLASSES)
    record = None
    if resumption:
        seed_words = settle_seed(cfg, checkpoint)
        warnings += [*resumption.warnings, *([seed_words] if seed_words else [])]
        record = _record(cfg, args, sets, classes)
        if checkpoint:
            of_changes, refused = change_lines(checkpoint, record, allowed=args.allow_changes)
            problems, warnings = problems + refused, warnings + of_changes
    _raise_if(problems)

    of_data = [note for described in sets for note in described.notes]
    if warnings:
        print_problems(warnings, "warning")
    cfg.freeze()
    job = Job(
        cfg=cfg,
        json_datasets=tuple(json_files),
        eval_only=args.eval_only,
        processes_per_machine=args.num_gpus,
        checkpoint=checkpoint.path if checkpoint else None,
        record=record,
        notes=(*(f"warning: {visible_lines(warning)}" for warning in warnings), *of_data),
        changes=config_changes(cfg, loaded, places),
        hang_timeout=args.hang_timeout,
    )
    return Plan(job, json_files, tuple(s.name for s in sets), [*of_data, *summary], classes, resumption)


def _read_data(
    args: argparse.Namespace, cfg: CfgNode
) -> tuple[dict[JsonDataset, CocoFile], list[DescribedSet], list[str]]:
    """The files that flags name, whose sets the configuration now has; the sets of the job, and their problems."""
    json_files, own_names, own_problems = read_own_sets(args, cfg)
    trained_on = () if args.eval_only else cfg.DATASETS.TRAIN
    sets, problems = read_sets(
        (*trained_on, *cfg.DATASETS.TEST),
        json_files,
        own_names,
        evaluated=cfg.DATASETS.TEST,
        pictures=args.preflight_only,
        allow_outside=args.allow_outside,
    )
    sets = [s._replace(is_trained_on=place < len(trained_on)) for place, s in enumerate(sets)]
    if problems and _has_flags(args, "train") and not _has_flags(args, "val"):
        problems.append(
            "the sets to evaluate on are the configuration's, since only those to train on were given by flag: add "
            "--val-json FILE --val-images DIR, or --val-voc DIR[:SPLIT]"
        )
    left_out = sum(file.pictures_left_out for file in json_files.values())
    if left_out > max(0, args.skip_bad_images):
        problems.append(f"{left_out} pictures of all sets are bad, more than --skip-bad-images {args.skip_bad_images}")
    return json_files, sets, own_problems + problems


def _record(cfg: CfgNode, args: argparse.Namespace, sets: Sequence[DescribedSet], classes: Classes) -> RunRecord:
    used = {s.name: UsedSet(s.name, s.content.pictures if s.content else None, s.fingerprint) for s in sets}
    return RunRecord.of(
        cfg,
        training_sets=[used[s.name] for s in sets if s.is_trained_on],
        tested_on=used[cfg.DATASETS.TEST[0]],
        class_names=classes.names,
        world_size=max(1, args.num_gpus * args.num_machines),
    )


def _raise_if(problems: list[str]) -> None:
    if problems:
        raise InputError(problems)


def _has_flags(args: argparse.Namespace, use: Use) -> bool:
    return bool(getattr(args, f"{use}_json") or getattr(args, f"{use}_voc"))


def _flag_problems(args: argparse.Namespace) -> list[str]:
    problems = []
    if args.num_machines < 1 or not 0 <= args.machine_rank < max(1, args.num_machines):
        problems.append(
            f"--machine-rank {args.machine_rank} of --num-machines {args.num_machines}: ranks go from 0 to machines - 1"
        )
    port = re.fullmatch(r"tcp://[^/]+:(\d{1,5})", args.dist_url)
    if args.dist_url != "auto" and not (port and 0 < int(port[1]) < 65536):
        problems.append(f"--dist-url is {args.dist_url!r}; give tcp://HOST:PORT, or leave it out on one machine")
    elif args.num_machines > 1 and not port:
        problems.append(
            "--num-machines above 1 needs --dist-url tcp://HOST:PORT of machine 0, the same on each machine"
        )
    if args.eval_only and args.resume:
        problems.append("--eval-only and --resume exclude each other: name the checkpoint with MODEL.WEIGHTS")
    if not 0 <= args.hang_timeout < math.inf:
        problems.append(f"--hang-timeout is {args.hang_timeout:g}; it must be 0 (never) or a number of seconds")
    if args.allow_changes and not args.resume:
        problems.append("--allow-changes is of a run that goes on; add --resume")
    if args.skip_bad_images < 0:
        problems.append(f"--skip-bad-images is {args.skip_bad_images}; it must be 0 or more")
    return problems


def _settle_classes(cfg: CfgNode, sets: Sequence[DescribedSet]) -> list[str]:
    """Take NUM_CLASSES from the data if it is left out; what speaks against it otherwise."""
    classes = {described.name: described.class_names for described in sets}
    if cfg.MODEL.RETINANET.NUM_CLASSES == UNSET_NUM_CLASSES:
        known = next((found for found in classes.values() if found is not None), None)
        if known is None:
            silent = [described.name for described in sets if described.is_sound]
            return (
                [f"data set {silent[0]} does not name its classes; set MODEL.RETINANET.NUM_CLASSES"] if silent else []
            )
        cfg.MODEL.RETINANET.NUM_CLASSES = len(known)
    return class_problems(cfg.MODEL.RETINANET.NUM_CLASSES, classes)


def _with_classes(cfg: CfgNode) -> CfgNode:
    """With some number of classes where broken data leave it open: a model can be built of any."""
    cfg = cfg.clone()
    cfg.MODEL.RETINANET.NUM_CLASSES = max(1, cfg.MODEL.RETINANET.NUM_CLASSES)
    return cfg


def _settle_schedule(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    """Scale the schedule to the batch if asked; warn if the batch was changed without it."""
    own_keys = set(args.overrides[::2])
    of_file = [
        word for key, value in key_value_pairs(args.overrides) if key != "SOLVER.IMS_PER_BATCH" for word in (key, value)
    ]
    written_for = load_config(args.config_file, of_file).SOLVER.IMS_PER_BATCH
    if args.scale_lr:
        change = scale_schedule(cfg, written_for, own_keys)
        return [f"--scale-lr: {change or 'the batch is that of the config file, nothing to scale'}"]
    if written_for != cfg.SOLVER.IMS_PER_BATCH and "SOLVER.BASE_LR" not in own_keys:
        return [
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, but lr and schedule were written for {written_for}; "
            "--scale-lr fits them"
        ]
    return []
