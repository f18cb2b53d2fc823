"""From the command line to a job: find every problem, freeze the configuration, then write what the job reads."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode

from .. import plugin  # noqa: F401 - registers what a configuration may name
from ..data.catalog import JsonDataset, class_names, dataset_problems, prepare_shapes, write_checked_copy
from ..data.coco_json import CocoFile, read_coco
from ..engine.checks import class_problems, config_problems
from ..engine.config_changes import config_changes
from ..engine.config_file import UNSET_NUM_CLASSES, key_value_pairs, load_config, load_config_and_places
from ..engine.devices import choose_device
from ..engine.job import Job
from ..engine.model_checks import model_problems, weights_problems
from ..engine.schedule import scale_schedule
from ..errors import InputError


class Plan(NamedTuple):
    """A job whose input has been checked, and what has to be written before it can start."""

    job: Job
    json_files: dict[JsonDataset, CocoFile]
    dataset_names: tuple[str, ...]


def write(plan: Plan) -> None:
    """Draw the shapes that are needed and not there yet; write the checked annotations."""
    prepare_shapes(plan.dataset_names)
    for dataset, coco_file in plan.json_files.items():
        write_checked_copy(dataset, coco_file)


def check(args: argparse.Namespace) -> Plan:
    """Check the command line, the configuration and the data, and print what they are.

    Raises:
        InputError: every problem found; nothing is written.
    """
    cfg, places = load_config_and_places(args.config_file, args.overrides)
    loaded = cfg.clone()
    training = not args.eval_only
    warnings, problems = choose_device(cfg, args.num_gpus)
    if training:
        warnings += _settle_schedule(cfg, args)
    problems += _machine_problems(args)
    json_files, json_problems = _read_json_flags(args, cfg)
    problems += json_problems
    names = (*(cfg.DATASETS.TRAIN if training else ()), *cfg.DATASETS.TEST)
    problems += dataset_problems(name for name in names if name not in _JSON_NAMES.values())
    problems += config_problems(cfg, num_processes=max(1, args.num_gpus * args.num_machines), training=training)
    checkpoint, resume_problems = _checkpoint_to_resume(cfg, args.resume) if training else (None, [])
    problems += resume_problems
    _raise_if(problems)

    # From here on the configuration is sound by itself, and the files are there.
    _settle_classes(cfg, names, {d.name: f.class_names for d, f in json_files.items()})
    _raise_if(model_problems(cfg))
    weights = str(checkpoint or cfg.MODEL.WEIGHTS)
    if args.eval_only or Path(weights).is_file():  # an address is fetched by the run, unless that is all it would do
        _raise_if(weights_problems(cfg, weights, whole=bool(args.eval_only or checkpoint)))

    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    for dataset, coco_file in json_files.items():
        for note in coco_file.notes:
            print(note, flush=True)
        print(f"{dataset.json_file}: {_summary(coco_file)}", flush=True)
    cfg.freeze()
    job = Job(
        cfg=cfg,
        json_datasets=tuple(json_files),
        eval_only=args.eval_only,
        resume=checkpoint is not None,
        processes_per_machine=args.num_gpus,
        changes=config_changes(cfg, loaded, places),
    )
    return Plan(job, json_files, names)


# Names in Detectron2's catalogue of the data sets that the flags give.
_JSON_NAMES = {"train": "train_json", "val": "val_json"}


def _raise_if(problems: list[str]) -> None:
    if problems:
        raise InputError(problems)


def _machine_problems(args: argparse.Namespace) -> list[str]:
    problems = []
    if args.num_machines < 1 or not 0 <= args.machine_rank < max(1, args.num_machines):
        problems.append(
            f"--machine-rank {args.machine_rank} of --num-machines {args.num_machines}: ranks go from 0 to machines - 1"
        )
    if args.num_machines > 1 and not re.fullmatch(r"tcp://.+:\d+", args.dist_url):
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
        name = _JSON_NAMES[split]
        cfg.DATASETS[key] = (name,)
        folder = Path(cfg.OUTPUT_DIR) / ("inference/annotations" if args.eval_only else "annotations")
        dataset = JsonDataset(name, json_file, image_dir, str(folder / f"{name}.json"))
        try:
            files[dataset] = read_coco(json_file, image_dir)
            if split == "train" and all(a["iscrowd"] for a in files[dataset].coco["annotations"]):
                problems.append(f"{json_file}: no box to train on; annotate at least one object that is no crowd")
        except InputError as error:
            problems += error.problems
    return files, problems


def _checkpoint_to_resume(cfg: CfgNode, wish: str | None) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, if any, and what speaks against the wish. No run is ever written over."""
    folder = Path(cfg.OUTPUT_DIR)
    pointer = folder / "last_checkpoint"
    if pointer.is_file():
        name = pointer.read_bytes()[:256].decode(errors="replace").strip()
        if wish is None:
            return None, [
                f"OUTPUT_DIR is {folder}, which already holds a run ({name}): "
                "add --resume to go on with it, or name another OUTPUT_DIR"
            ]
        if not name or Path(name).name != name or len(name) > 255 or not (folder / name).is_file():
            return None, [f"--resume: {pointer} names {name!r}, which is no checkpoint in that folder; name one"]
        return folder / name, []
    if any(folder.glob("*.pth")):
        return None, [
            f"OUTPUT_DIR is {folder}, which holds checkpoints but no last_checkpoint: write the name of one into "
            f"{pointer} and add --resume, or name another OUTPUT_DIR"
        ]
    if wish == "required":
        return None, [f"--resume: no last_checkpoint in {folder}; use --resume auto to start fresh"]
    metrics = folder / "metrics.json"
    if wish is None and metrics.is_file() and metrics.stat().st_size:
        return None, [
            f"OUTPUT_DIR is {folder}, which holds a run that ended before its first checkpoint: name another, or add "
            "--resume auto to start again in it"
        ]
    return None, []


def _settle_classes(cfg: CfgNode, names: tuple[str, ...], json_classes: dict[str, list[str]]) -> None:
    """Take NUM_CLASSES from the data if it is left out; refuse it if it contradicts them."""
    classes = {name: json_classes[name] if name in json_classes else class_names(name) for name in names}
    if cfg.MODEL.RETINANET.NUM_CLASSES == UNSET_NUM_CLASSES:
        known = next((found for found in classes.values() if found is not None), None)
        if known is None:
            raise InputError(f"data set {names[0]} does not name its classes; set MODEL.RETINANET.NUM_CLASSES")
        cfg.MODEL.RETINANET.NUM_CLASSES = len(known)
    _raise_if(class_problems(cfg.MODEL.RETINANET.NUM_CLASSES, classes))


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


def _summary(coco_file: CocoFile) -> str:
    coco = coco_file.coco
    names = {c["id"]: c["name"] for c in coco["categories"]}
    counts = dict.fromkeys(names, 0)
    for annotation in coco["annotations"]:
        counts[annotation["category_id"]] += 1
    with_objects = len({a["image_id"] for a in coco["annotations"]})
    classes = ", ".join(f"{label} = {names[i]} (id {i}): {counts[i]}" for label, i in enumerate(sorted(names)))
    return f"{len(coco['images'])} pictures, {with_objects} with objects; boxes by class: {classes}"
