"""Check a configuration before anything starts: every problem at once, each with its fix.

What is allowed stands in `ranges`; a key that is not read with the others is not looked at.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode

from .. import output_layout as layout
from ..errors import Findings, cut
from ..files import is_writable
from ..registries import DENSE_LOSS_REGISTRY
from .layers import get_value
from .ranges import CHOICES, PARTS, Rule, detector_rules, training_rules
from .read_when import ARCHITECTURES, RESNETS, never_read, unmet_condition
from .unused_keys import constants_of_loss

_LARGEST_BATCH = 2**16  # images; more is a slip


def detector_problems(cfg: CfgNode) -> list[str]:
    """Return what prevents building a detector, whatever it is for."""
    problems = []
    for key, choices in CHOICES:
        names = choices if isinstance(choices, tuple) else [name for name, _ in choices]
        value = get_value(cfg, key)
        if value not in names and _has_range(cfg, key):
            problems.append(f"{key} is {value!r}; allowed are {', '.join(map(repr, sorted(names)))}")
    problems += _broken(cfg, detector_rules(cfg))
    for key, ask in PARTS:
        value = get_value(cfg, key)
        try:
            ask(value)
        except ValueError as error:
            problems.append(f"{key} is {cut(value)}: {error}")
        except OverflowError:  # from an integer of hundreds of digits
            problems.append(f"{key} is {cut(value)}; it must be numbers that a float can hold")
    if cfg.TEST.AUG.ENABLED and cfg.MODEL.META_ARCHITECTURE not in ARCHITECTURES:
        known = f"the boxes of {' and '.join(ARCHITECTURES)}, by MODEL.RETINANET.NMS_THRESH_TEST"
        problems.append(f"TEST.AUG.ENABLED is True; it must be False, since test-time augmentation merges {known}")
    return problems + constants_problems(cfg)


def _has_range(cfg: CfgNode, key: str) -> bool:
    """Tell whether a key is read, by a part whose range is known: a backbone of one's own may have other depths."""
    is_own = key.startswith(("MODEL.RESNETS.", "MODEL.FPN.")) and cfg.MODEL.BACKBONE.NAME not in RESNETS
    return not is_own and never_read(cfg, key) is None and unmet_condition(cfg, key) is None


def _broken(cfg: CfgNode, rules: Sequence[Rule]) -> list[str]:
    problems = []
    for key, is_possible, needed in rules:
        value = get_value(cfg, key)
        try:
            fits = is_possible(value)
        except OverflowError:  # infinity, which is no integer
            fits = False
        if not fits and _has_range(cfg, key):
            problems.append(f"{key} is {cut(value)}; it must be {needed}")
    return problems


def constants_problems(cfg: CfgNode) -> list[str]:
    """Return what the chosen loss says of its constants."""
    name = cfg.MODEL.FOCAL_DET.LOSS.NAME
    if cfg.MODEL.META_ARCHITECTURE != "FocalRetinaNet" or name not in DENSE_LOSS_REGISTRY:
        return []
    try:
        DENSE_LOSS_REGISTRY.get(name)(cfg)
    except ValueError as error:
        return [f"{name} cannot be built with {' and '.join(constants_of_loss(cfg))}: {error}"]
    return []


def check_config(cfg: CfgNode, *, num_processes: int, training: bool) -> Findings:
    """Find what cannot work, whatever the data; in training also of the schedule and the batch of all processes."""
    problems = detector_problems(cfg)
    if not cfg.DATASETS.TEST:
        problems.append("DATASETS.TEST is (); it must be at least one data set; or use --val")
    problems += _tiles_problems(cfg, training) + _path_problems(cfg, training)
    if training:
        problems += _schedule_problems(cfg, num_processes)
    return Findings(problems)


def check_num_classes(num_classes: int, classes: Mapping[str, list[str] | None], *, is_set: bool = True) -> Findings:
    """Find contradictions between NUM_CLASSES and the classes of the data sets by name; None: a set does not say.

    Where nobody has set the number (`is_set`), it is that of the first set.
    """
    known = {name: names for name, names in classes.items() if names is not None}
    problems = [
        f"data set {name} has {len(names)} classes ({_shortened(names)}), MODEL.RETINANET.NUM_CLASSES is "
        f"{num_classes}: set {len(names)} or leave it out"
        for name, names in known.items()
        if is_set and num_classes != len(names)
    ]
    first, expected = next(iter(known.items()), ("", []))
    problems += [
        f"data sets {first} and {name} differ in their classes: [{_shortened(expected)}] against "
        f"[{_shortened(names)}]; they need the same names in the same order of ids"
        for name, names in known.items()
        if names != expected
    ]
    return Findings(problems)


def _tiles_problems(cfg: CfgNode, training: bool) -> list[str]:
    """Return which keys ask for more than the boxes that tiles have, or a training for what it may not know."""
    size, of_whole = cfg.MODEL.FOCAL_DET.TILES.SIZE, "is of whole images, while tiles give boxes alone"
    keys = ("TEST.AUG.ENABLED", "MODEL.MASK_ON", "MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS")
    problems = [
        f"MODEL.FOCAL_DET.TILES.SIZE is {size} and {key} is True, which {of_whole}: set one of them to 0 or False"
        for key in keys
        if size and get_value(cfg, key) and never_read(cfg, key) is None
    ]
    if not (size and training):
        return problems
    architecture, sampler = cfg.MODEL.META_ARCHITECTURE, cfg.DATALOADER.SAMPLER_TRAIN
    if architecture not in ARCHITECTURES:
        problems.append(
            f"MODEL.META_ARCHITECTURE {architecture} is not known to ignore boxes of class -1, which are what tiles "
            f"cut off, as {' and '.join(ARCHITECTURES)} do, and MODEL.FOCAL_DET.TILES.SIZE is {size}: set it to 0, "
            "and evaluate in tiles with --eval-only"
        )
    if sampler.startswith("Weighted"):
        problems.append(
            f"DATALOADER.SAMPLER_TRAIN {sampler} weighs images as a whole, and MODEL.FOCAL_DET.TILES.SIZE is {size}: "
            "set that to 0, or another sampler"
        )
    return problems


def _schedule_problems(cfg: CfgNode, num_processes: int) -> list[str]:
    solver = cfg.SOLVER
    problems = []
    if not 1 <= solver.IMS_PER_BATCH <= _LARGEST_BATCH or solver.IMS_PER_BATCH % num_processes:
        problems.append(
            f"SOLVER.IMS_PER_BATCH is {cut(solver.IMS_PER_BATCH)}, the images of one step over all processes; "
            f"it must be a multiple of their number, {num_processes}, and at most {_LARGEST_BATCH:,}"
        )
    parts = cfg.MODEL.FOCAL_DET.ACCUMULATION
    if not problems and parts >= 1 and solver.IMS_PER_BATCH % (num_processes * parts):
        problems.append(
            f"MODEL.FOCAL_DET.ACCUMULATION is {parts}; it must divide SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} into "
            f"equal parts of each process, of which there are {num_processes}"
        )
    problems += _broken(cfg, training_rules(cfg))
    if solver.AMP.ENABLED and solver.AMP.DTYPE == "float16" and not cfg.MODEL.DEVICE.startswith("cuda"):
        fix = "set it to False, or SOLVER.AMP.DTYPE to bfloat16"
        problems.append(f"SOLVER.AMP.ENABLED is True, but float16 needs a GPU: {fix}")
    return problems


def _path_problems(cfg: CfgNode, training: bool) -> list[str]:
    problems = []
    weights = cfg.MODEL.WEIGHTS
    if "://" not in weights and weights and not os.path.isfile(weights):
        problems.append(f"MODEL.WEIGHTS is {cut(weights, 250)}: no such file; give a checkpoint, a URL, or '' for none")
    if not training and not weights:
        problems.append("--eval-only evaluates MODEL.WEIGHTS, which is empty; add MODEL.WEIGHTS <checkpoint>")
    taken = _in_the_way(Path(cfg.OUTPUT_DIR))
    if not cfg.OUTPUT_DIR or "://" in cfg.OUTPUT_DIR or "\0" in cfg.OUTPUT_DIR:
        problems.append(f"OUTPUT_DIR is {cfg.OUTPUT_DIR!r}; it must be a folder of this machine")
    elif cfg.OUTPUT_DIR.encode(errors="ignore").decode() != cfg.OUTPUT_DIR:
        problems.append(f"OUTPUT_DIR is {cfg.OUTPUT_DIR!r}; its name must be UTF-8, as the log that names it is")
    elif taken:
        problems.append(f"OUTPUT_DIR is {cfg.OUTPUT_DIR}, whose {taken}; name another or move that")
    elif not is_writable(Path(cfg.OUTPUT_DIR)):
        wrong = "not a folder that can be made and written"
        problems.append(f"OUTPUT_DIR is {cut(cfg.OUTPUT_DIR, 250)}: {wrong}; name another")
    return problems


# What a run makes in its OUTPUT_DIR.
_FOLDERS = (layout.INFERENCE, layout.INFERENCE_TTA, layout.INFERENCE_EMA, layout.DRAWINGS, layout.ANNOTATIONS)
_FILES = (
    *(layout.LOCK, layout.LOG, layout.CONFIG, layout.CONFIG_CHANGES, layout.ENVIRONMENT, layout.CLASSES_FILE),
    *(layout.METRICS, layout.LAST_CHECKPOINT, layout.BEST_CHECKPOINT, layout.FINAL_CHECKPOINT),
    *(layout.FINAL_EMA_CHECKPOINT, layout.BEST_EMA_CHECKPOINT, layout.DRAWINGS_SHEET, layout.REPORT),
)


def _in_the_way(folder: Path) -> str:
    """Return what in OUTPUT_DIR a run could not replace, such as a dangling link, and would meet late or wait for."""
    for name in (*_FOLDERS, *_FILES):
        path = folder / name
        is_file, is_folder = os.path.isfile(path), os.path.isdir(path)  # which take a path that is too long
        if os.path.lexists(path) and not (is_folder if name in _FOLDERS else is_file):
            return f"{name} is {'a file' if is_file else 'a folder' if is_folder else 'a link to nothing, or a device'}"
    return ""


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
