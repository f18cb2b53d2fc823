"""What a run is, as each of its checkpoints holds it, and how far the run that goes on may be another one.

Three rules, for a run that took a week:
1. What changes nothing of what is trained is free, such as where the run stands, how it is evaluated, what is drawn,
   how often it is saved; and so is what changes it by rounding alone, such as the device, and the number of processes
   where they don't group pictures by shape. It is told.
2. SOLVER.MAX_ITER is free, to train on or to end sooner, where the lr of an iteration does not depend on it.
3. Anything else makes another training of it: learning rate, schedule, loss, matching, augmentation, batch, data, SEED.
   Each is told with both values and refused, unless --allow-changes lets the new values hold from the resumed iteration
   on.
A key that only one of two versions of focal_det or Detectron2 has is told: its default is what was done before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode

from ..errors import cut
from .config_file import plain_values
from .environment import source_version
from .loss_keys import without_unread_keys

# By rule 1. A name that ends with a dot or an underscore stands for all keys that begin with it.
_FREE = (
    # where the run stands, and how it is reported
    *("OUTPUT_DIR", "VIS_PERIOD", "MODEL.FOCAL_DET.DRAW_", "MODEL.FOCAL_DET.VAL_LOSS"),
    *("SOLVER.CHECKPOINT_PERIOD", "MODEL.FOCAL_DET.CHECKPOINTS_KEPT"),
    # what is read when it evaluates
    *("DATASETS.TEST", "TEST.", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "MODEL.RETINANET.SCORE_THRESH_TEST"),
    *("MODEL.RETINANET.NMS_THRESH_TEST", "MODEL.RETINANET.TOPK_CANDIDATES_TEST"),
    # what it began with; and the names of its data, whose content is compared
    *("MODEL.WEIGHTS", "DATASETS.TRAIN"),
    # how fast it goes
    *("DATALOADER.NUM_WORKERS", "CUDNN_BENCHMARK", "FLOAT32_PRECISION", "MODEL.DEVICE", "MODEL.FOCAL_DET.SPEED."),
)
_NOT_FREE = "TEST.PRECISE_BN."  # which changes what the model's normalisation keeps
_BY_ROUNDING = ("CUDNN_BENCHMARK", "FLOAT32_PRECISION", "MODEL.DEVICE", "MODEL.FOCAL_DET.SPEED.")
_LENGTH, _SCHEDULER = "SOLVER.MAX_ITER", "SOLVER.LR_SCHEDULER_NAME"
_GROUPING = "DATALOADER.ASPECT_RATIO_GROUPING"


@dataclass(frozen=True)
class UsedSet:
    """A data set as a run uses it.

    pictures: None if they are not known before the start.
    fingerprint: of its content, see `focal_det.data.fingerprint`; None if its name is all that is known.
    """

    name: str
    pictures: int | None
    fingerprint: str | None

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> UsedSet:
        """From what `asdict` gave; raises KeyError, TypeError or ValueError if that is something else."""
        name, pictures, fingerprint = (plain[key] for key in ("name", "pictures", "fingerprint"))
        return cls(str(name), None if pictures is None else int(pictures), fingerprint and str(fingerprint))

    def is_same_as(self, other: UsedSet) -> bool:
        """By content where both are known by it, else by name."""
        if self.fingerprint and other.fingerprint:
            return self.fingerprint == other.fingerprint
        return self.name == other.name


@dataclass(frozen=True)
class RunRecord:
    """What decides what a run trains.

    config: the resolved configuration, plain values by dotted key; SEED is never negative.
    tested_on: the first set that it is evaluated on, whose AP says which model is the best.
    class_names: in the order of the labels.
    world_size: processes over all machines.
    focal_det, torch: their versions, the first with its commit.
    """

    config: Mapping[str, Any]
    training_sets: tuple[UsedSet, ...]
    tested_on: UsedSet
    class_names: tuple[str, ...]
    world_size: int
    focal_det: str
    torch: str

    @classmethod
    def of(
        cls,
        cfg: CfgNode,
        *,
        training_sets: Sequence[UsedSet],
        tested_on: UsedSet,
        class_names: Sequence[str],
        world_size: int,
    ) -> RunRecord:
        """Of a run that is about to start with this focal_det and PyTorch."""
        return cls(
            config=plain_values(without_unread_keys(cfg)),
            training_sets=tuple(training_sets),
            tested_on=tested_on,
            class_names=tuple(class_names),
            world_size=world_size,
            focal_det=source_version(),
            torch=str(torch.__version__),
        )

    def plain(self) -> dict[str, Any]:
        """As a checkpoint holds it: dictionaries, lists, texts and numbers."""
        return {
            **asdict(self),
            "config": dict(self.config),
            "training_sets": [asdict(each) for each in self.training_sets],
            "tested_on": asdict(self.tested_on),
            "class_names": list(self.class_names),
        }

    @classmethod
    def read(cls, plain: Any) -> RunRecord | None:
        """What `plain` gave; None if that is something else, such as of a checkpoint before records were kept."""
        try:
            json.dumps(plain)  # of a stranger's file it may be tensors, whose comparisons are no truths
            config = {str(key): value for key, value in plain["config"].items()}
            return cls(
                config=config | {_LENGTH: int(config[_LENGTH])},
                training_sets=tuple(map(UsedSet.read, plain["training_sets"])),
                tested_on=UsedSet.read(plain["tested_on"]),
                class_names=tuple(map(str, plain["class_names"])),
                world_size=int(plain["world_size"]),
                focal_det=str(plain["focal_det"]),
                torch=str(plain["torch"]),
            )
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
            return None


class Comparison(NamedTuple):
    """How a run differs from the one that it goes on with, a line for each difference, with both values.

    refused: what makes another training of it.
    notes: what does not.
    """

    refused: list[str]
    notes: list[str]


def compare(before: RunRecord, now: RunRecord) -> Comparison:
    """Sort the differences of two runs by the rules above."""
    found = Comparison([], [])
    for key in sorted({*before.config, *now.config}):
        _compare_key(found, key, before, now)
    _compare_sets(found, before.training_sets, now.training_sets)
    if before.class_names != now.class_names:
        found.refused.append(f"classes: {_told(list(before.class_names))} before, {_told(list(now.class_names))} now")
    if before.world_size != now.world_size:
        words = f"processes: {before.world_size} before, {now.world_size} now"
        if now.config.get(_GROUPING):
            found.refused.append(
                f"{words}; each groups its own pictures by their shape ({_GROUPING}), so that others meet in a batch"
            )
        else:
            found.notes.append(f"{words}, the same up to rounding")
    for name, then, today in (("focal_det", before.focal_det, now.focal_det), ("torch", before.torch, now.torch)):
        if then != today:
            found.notes.append(f"{name}: {then} before, {today} now")
    return found


def _compare_key(found: Comparison, key: str, before: RunRecord, now: RunRecord) -> None:
    if key not in before.config or key not in now.config:
        there, when = (now, "now") if key in now.config else (before, "before")
        found.notes.append(f"{key}: {_told(there.config[key])} {when}, a key that the other does not have")
        return
    then, today = before.config[key], now.config[key]
    if then == today:
        return
    words = f"{key}: {_told(then)} before, {_told(today)} now"
    if key == _LENGTH:
        if now.config[_SCHEDULER] == "WarmupMultiStepLR":
            found.notes.append(f"{words}, so the run {'goes on for longer' if today > then else 'ends sooner'}")
        else:
            found.refused.append(f"{words}; {now.config[_SCHEDULER]} makes the lr of each iteration by it")
    elif _is_among(key, _FREE) and not key.startswith(_NOT_FREE):
        rounding = ", the same up to rounding" if _is_among(key, _BY_ROUNDING) else ""
        found.notes.append(words + rounding)
    else:
        found.refused.append(words)


def _is_among(key: str, names: Sequence[str]) -> bool:
    return any(key.startswith(name) if name.endswith((".", "_")) else key == name for name in names)


def _compare_sets(found: Comparison, before: Sequence[UsedSet], now: Sequence[UsedSet]) -> None:
    if len(before) != len(now):
        names = [[each.name for each in sets] for sets in (before, now)]
        found.refused.append(f"data sets to train on: {_told(names[0])} before, {_told(names[1])} now")
        return
    for then, today in zip(before, now, strict=True):
        if not then.is_same_as(today):
            found.refused.append(
                f"data set to train on: {_content(then)} before, {_content(today)} now; names, order or sizes of "
                "pictures differ, or their objects"
            )


def _content(described: UsedSet) -> str:
    pictures = "" if described.pictures is None else f" of {described.pictures} pictures"
    return f"{described.name}{pictures}" + (f" ({described.fingerprint[:8]})" if described.fingerprint else "")


def _told(value: Any) -> str:
    return cut(repr(value))
