"""From the command line to a job: find every problem, then write what the processes need, then freeze."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detectron2.config import CfgNode

from .. import plugin  # noqa: F401 - registers what a configuration may name
from ..data.catalog import JsonDataset, class_names, dataset_problems, prepare_shapes, write_checked_copy
from ..data.coco_json import CocoFile, read_coco
from ..data.shapes import CLASSES, parse_name
from ..engine.checks import class_problems, config_problems
from ..engine.config_file import UNSET_NUM_CLASSES, load_config
from ..engine.devices import choose_device
from ..engine.job import Job
from ..engine.schedule import scale_schedule
from ..errors import InputError


def prepare(args: argparse.Namespace) -> Job:
    """Check the command line, the configuration and the data; draw shapes that are needed and not there yet.

    Raises:
        InputError: every problem found; nothing has been written then.
    """
    cfg = load_config(args.config_file, args.overrides)
    warnings, problems = choose_device(cfg, args.num_gpus)
    problems += _machine_problems(args)
    json_files, json_problems = _read_json_flags(args, cfg)
    problems += json_problems

    training = not args.eval_only
    names = (*(cfg.DATASETS.TRAIN if training else ()), *cfg.DATASETS.TEST)
    problems += dataset_problems(name for name in names if name not in {d.name for d in json_files})
    problems += config_problems(cfg, num_processes=max(1, args.num_gpus * args.num_machines), training=training)
    resume = False
    if training:
        resume, resume_problems = _resume(cfg, args.resume)
        problems += resume_problems
    if problems:
        raise InputError(problems)
    _settle_classes(cfg, {d.name: f.class_names for d, f in json_files.items()}, training)

    warnings += _settle_schedule(cfg, args)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    for dataset, coco_file in json_files.items():
        for note in coco_file.notes:
            print(note, flush=True)
        print(f"{dataset.json_file}: {_summary(coco_file)}", flush=True)
    if not args.preflight_only:
        prepare_shapes(names)
        for dataset, coco_file in json_files.items():
            write_checked_copy(cfg.OUTPUT_DIR, dataset.name, coco_file)
    cfg.freeze()
    return Job(
        cfg=cfg,
        json_datasets=tuple(json_files),
        eval_only=args.eval_only,
        resume=resume,
        processes_per_machine=args.num_gpus,
    )


def _machine_problems(args: argparse.Namespace) -> list[str]:
    problems = []
    if args.num_machines < 1 or not 0 <= args.machine_rank < max(1, args.num_machines):
        problems.append(
            f"--machine-rank {args.machine_rank} of --num-machines {args.num_machines}: ranks go from 0 to machines - 1"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        problems.append(
            "--num-machines above 1 needs --dist-url tcp://HOST:PORT of machine 0, the same on each machine"
        )
    if args.eval_only and args.resume:
        problems.append("--eval-only and --resume exclude each other: name the checkpoint with MODEL.WEIGHTS")
    return problems


def _read_json_flags(args: argparse.Namespace, cfg: CfgNode) -> tuple[dict[JsonDataset, CocoFile], list[str]]:
    """Read the files that the flags name, and put their sets in the place of the configuration's."""
    files: dict[JsonDataset, CocoFile] = {}
    problems = []
    for split, key in (("train", "TRAIN"), ("val", "TEST")):
        json_file, image_dir = getattr(args, f"{split}_json"), getattr(args, f"{split}_images")
        if (json_file is None) != (image_dir is None):
            given, lacking = ("json", "images") if image_dir is None else ("images", "json")
            problems.append(f"--{split}-{given} is given without --{split}-{lacking}; both are needed")
        if json_file is None or image_dir is None or (split == "train" and args.eval_only):
            continue
        dataset = JsonDataset(f"{split}_json", json_file, image_dir)
        cfg.DATASETS[key] = (dataset.name,)
        try:
            files[dataset] = read_coco(json_file, image_dir)
            if split == "train" and not files[dataset].coco["annotations"]:
                problems.append(f"{json_file}: no box to train on; annotate at least one object")
        except InputError as error:
            problems += error.problems
    return files, problems


def _resume(cfg: CfgNode, wish: str | None) -> tuple[bool, list[str]]:
    """Whether to go on from a checkpoint, and what speaks against the wish. No run is ever written over."""
    folder = Path(cfg.OUTPUT_DIR)
    pointer = folder / "last_checkpoint"
    if pointer.is_file():
        if wish is None:
            return False, [
                f"OUTPUT_DIR is {folder}, which already holds a run ({pointer.read_text().strip()}): "
                "add --resume to go on with it, or name another OUTPUT_DIR"
            ]
        checkpoint = folder / pointer.read_text().strip()
        if not checkpoint.is_file():
            return False, [f"--resume: {pointer} names {checkpoint.name}, which is not there; restore it"]
        return True, []
    if any(folder.glob("*.pth")):
        return False, [
            f"OUTPUT_DIR is {folder}, which holds checkpoints but no last_checkpoint: name another OUTPUT_DIR"
        ]
    if wish == "required":
        return False, [f"--resume: no last_checkpoint in {folder}; use --resume auto to start fresh"]
    return False, []


def _settle_classes(cfg: CfgNode, json_classes: dict[str, list[str]], training: bool) -> None:
    """Take NUM_CLASSES from the data if it is left out; refuse it if it contradicts them."""

    def classes_of(names: tuple[str, ...]) -> list[str] | None:
        name = names[0]
        if name in json_classes:
            return json_classes[name]
        return list(CLASSES) if parse_name(name) is not None else class_names(name)

    train_classes = classes_of(cfg.DATASETS.TRAIN) if training else None
    test_classes = classes_of(cfg.DATASETS.TEST)
    if cfg.MODEL.RETINANET.NUM_CLASSES == UNSET_NUM_CLASSES:
        known = train_classes or test_classes
        if known is None:
            raise InputError(
                f"data set {cfg.DATASETS.TEST[0]} does not name its classes; set MODEL.RETINANET.NUM_CLASSES"
            )
        cfg.MODEL.RETINANET.NUM_CLASSES = len(known)
    problems = class_problems(cfg.MODEL.RETINANET.NUM_CLASSES, train_classes, test_classes)
    if problems:
        raise InputError(problems)


def _settle_schedule(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    """Scale the schedule to the batch if asked; warn if the batch was changed without it."""
    written_for = load_config(args.config_file).SOLVER.IMS_PER_BATCH
    own_keys = set(args.overrides[::2])
    if args.scale_lr:
        change = scale_schedule(cfg, written_for, own_keys)
        return [f"--scale-lr: {change or 'the batch is that of the config file, nothing to scale'}"]
    if written_for != cfg.SOLVER.IMS_PER_BATCH and "SOLVER.BASE_LR" not in own_keys:
        return [
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, but lr and schedule were written for {written_for}; "
            "--scale-lr fits them"
        ]
    return []


def _summary(coco_file: CocoFile) -> str:
    coco = coco_file.coco
    names = {c["id"]: c["name"] for c in coco["categories"]}
    counts = dict.fromkeys(names, 0)
    for annotation in coco["annotations"]:
        counts[annotation["category_id"]] += 1
    with_objects = len({a["image_id"] for a in coco["annotations"]})
    classes = ", ".join(f"{label} = {names[i]} (id {i}): {counts[i]}" for label, i in enumerate(sorted(names)))
    return f"{len(coco['images'])} pictures, {with_objects} with objects; boxes by class: {classes}"
