"""The record of a run that each of its checkpoints holds, and the rules for what may differ when it is resumed.

Three rules, for a run that took a week:
1. Free is what changes nothing of what is trained, such as OUTPUT_DIR, how it is evaluated, what is drawn, how often it
   is saved; and what changes it by rounding alone, such as the device, or the number of processes where they do not
   group images by shape. Such a difference is reported.
2. SOLVER.MAX_ITER is free, to train longer or to end sooner, where the lr of an iteration does not depend on it.
3. Anything else makes it another training: learning rate, schedule, loss, matching, augmentation, batch, data, SEED.
   Each difference is refused and reported with both values, unless --allow-changes makes the new values hold from the
   resumed iteration on.
A key that only one of two versions of focal_det or Detectron2 has is reported: its default is what was done before.
So is a plug-in whose file has changed: which changes matter, nobody can tell from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode

from ..config.layers import plain_values
from ..config.plugins import source_hashes
from ..config.unused_keys import without_unread_keys
from ..environment import source_version
from ..errors import cut

# Free by rule 1. A name that ends with a dot or an underscore stands for all keys that begin with it.
_FREE = (
    # where it is written, and how it is reported
    *("OUTPUT_DIR", "VIS_PERIOD", "MODEL.FOCAL_DET.DRAW_", "MODEL.FOCAL_DET.VAL_LOSS"),
    *("SOLVER.CHECKPOINT_PERIOD", "MODEL.FOCAL_DET.CHECKPOINTS_KEPT", "MODEL.FOCAL_DET.TRACKERS"),
    # what is read when it evaluates
    *("DATASETS.TEST", "TEST.", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "MODEL.RETINANET.SCORE_THRESH_TEST"),
    *("MODEL.RETINANET.NMS_THRESH_TEST", "MODEL.RETINANET.TOPK_CANDIDATES_TEST"),
    # what it began with; and the names of its data, whose content is compared
    *("MODEL.WEIGHTS", "MODEL.FOCAL_DET.WEIGHTS_CLASSES", "DATASETS.TRAIN"),
    # how fast it is
    *("DATALOADER.NUM_WORKERS", "CUDNN_BENCHMARK", "FLOAT32_PRECISION", "MODEL.DEVICE", "MODEL.FOCAL_DET.SPEED."),
)
_NOT_FREE = "TEST.PRECISE_BN."  # which changes the statistics of the model's normalisation
_BY_ROUNDING = ("CUDNN_BENCHMARK", "FLOAT32_PRECISION", "MODEL.DEVICE", "MODEL.FOCAL_DET.SPEED.")
_LENGTH, _SCHEDULER = "SOLVER.MAX_ITER", "SOLVER.LR_SCHEDULER_NAME"
_GROUPING = "DATALOADER.ASPECT_RATIO_GROUPING"


@dataclass(frozen=True)
class UsedSet:
    """A data set, as a run uses it."""

    name: str
    images: int | None  # None if they are not known before the start
    fingerprint: str | None  # of its content, see `focal_det.data.statistics`; None if its name is all that is known

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> UsedSet:
        """Read what `plain` returned; raises KeyError, TypeError or ValueError if it is something else."""
        name, images, fingerprint = (plain[key] for key in ("name", "pictures", "fingerprint"))
        return cls(str(name), None if images is None else int(images), fingerprint and str(fingerprint))

    def plain(self) -> dict[str, Any]:
        """Return it as checkpoints hold it; "pictures" is the key that they have had from the start."""
        return {"name": self.name, "pictures": self.images, "fingerprint": self.fingerprint}

    def is_same_as(self, other: UsedSet) -> bool:
        """Compare by content where that is known of both, else by name."""
        if self.fingerprint and other.fingerprint:
            return self.fingerprint == other.fingerprint
        return self.name == other.name


@dataclass(frozen=True)
class RunRecord:
    """What determines the training of a run."""

    config: Mapping[str, Any]  # the resolved configuration, plain values by dotted key; SEED is never negative
    training_sets: tuple[UsedSet, ...]
    tested_on: UsedSet  # the first set that its detections can be scored on, whose AP says which model is the best
    class_names: tuple[str, ...]  # in the order of the labels
    world_size: int  # processes over all machines
    focal_det: str  # its version with its commit
    torch: str  # its version
    plugins: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of their files, by name

    @classmethod
    def of(
        cls, cfg: CfgNode, *, training_sets: list[UsedSet], tested_on: UsedSet, class_names: list[str], world_size: int
    ) -> RunRecord:
        """Make the record of a run that is about to start with this focal_det and PyTorch."""
        config, versions = plain_values(without_unread_keys(cfg)), (source_version(), str(torch.__version__))
        return cls(config, tuple(training_sets), tested_on, tuple(class_names), world_size, *versions, source_hashes())

    def plain(self) -> dict[str, Any]:
        """Return it as a checkpoint holds it: dictionaries, lists, texts and numbers."""
        return {
            **asdict(self),
            "config": dict(self.config),
            "training_sets": [each.plain() for each in self.training_sets],
            "tested_on": self.tested_on.plain(),
            "class_names": list(self.class_names),
        }

    @classmethod
    def read(cls, plain: Any) -> RunRecord | None:
        """Read what `plain` returned; None if it is something else, as in checkpoints older than these records."""
        try:
            json.dumps(plain)  # in a stranger's file it may be tensors, which cannot be compared by ==
            config = {str(key): value for key, value in plain["config"].items()}
            return cls(
                config=config | {_LENGTH: int(config[_LENGTH])},
                training_sets=tuple(map(UsedSet.read, plain["training_sets"])),
                tested_on=UsedSet.read(plain["tested_on"]),
                class_names=tuple(map(str, plain["class_names"])),
                world_size=int(plain["world_size"]),
                focal_det=str(plain["focal_det"]),
                torch=str(plain["torch"]),
                plugins={str(name): str(digest) for name, digest in plain.get("plugins", {}).items()},
            )
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
            return None


class Comparison(NamedTuple):
    """How a run differs from the one that it resumes, a line for each difference, with both values."""

    refused: list[str]  # what makes it another training
    notes: list[str]  # what does not


def compare(before: RunRecord, now: RunRecord) -> Comparison:
    """Sort the differences of two runs by the rules above."""
    found = Comparison([], [])
    for key in sorted({*before.config, *now.config}):
        _compare_key(found, key, before, now)
    _compare_sets(found, before.training_sets, now.training_sets)
    if before.class_names != now.class_names:
        found.refused.append(f"classes: {_shown(list(before.class_names))} before, {_shown(list(now.class_names))} now")
    if before.world_size != now.world_size:
        line = f"processes: {before.world_size} before, {now.world_size} now"
        if now.config.get(_GROUPING):
            why = f"each groups its own images by their shape ({_GROUPING}), so batches would hold other images"
            found.refused.append(f"{line}; {why}")
        else:
            found.notes.append(f"{line}, the same up to rounding")
    for name in ("focal_det", "torch"):
        if (then := getattr(before, name)) != (today := getattr(now, name)):
            found.notes.append(f"{name}: {then} before, {today} now")
    for name in sorted(before.plugins.keys() & now.plugins.keys()):
        if (then := before.plugins[name]) != (today := now.plugins[name]):
            found.notes.append(f"plug-in {name}: its file has changed ({then[:8]} before, {today[:8]} now)")
    return found


def _compare_key(found: Comparison, key: str, before: RunRecord, now: RunRecord) -> None:
    if key not in before.config or key not in now.config:
        one, when = (now, "now") if key in now.config else (before, "before")
        found.notes.append(f"{key}: {_shown(one.config[key])} {when}, a key that the other does not have")
        return
    then, today = before.config[key], now.config[key]
    if then == today:
        return
    line = f"{key}: {_shown(then)} before, {_shown(today)} now"
    if key == _LENGTH:
        if now.config[_SCHEDULER] == "WarmupMultiStepLR":
            found.notes.append(f"{line}, so the run {'lasts longer' if today > then else 'ends sooner'}")
        else:
            found.refused.append(f"{line}; {now.config[_SCHEDULER]} derives the lr of each iteration from it")
    elif _is_among(key, _FREE) and not key.startswith(_NOT_FREE):
        rounding = ", the same up to rounding" if _is_among(key, _BY_ROUNDING) else ""
        found.notes.append(line + rounding)
    else:
        found.refused.append(line)


def _is_among(key: str, names: Sequence[str]) -> bool:
    return any(key.startswith(name) if name.endswith((".", "_")) else key == name for name in names)


def _compare_sets(found: Comparison, before: Sequence[UsedSet], now: Sequence[UsedSet]) -> None:
    if len(before) != len(now):
        names = [[each.name for each in sets] for sets in (before, now)]
        found.refused.append(f"data sets to train on: {_shown(names[0])} before, {_shown(names[1])} now")
        return
    why = "the names, order or sizes of its images differ, or their objects"
    for then, today in zip(before, now, strict=True):
        if not then.is_same_as(today):
            found.refused.append(f"data set to train on: {_content(then)} before, {_content(today)} now; {why}")


def _content(described: UsedSet) -> str:
    images = "" if described.images is None else f" of {described.images} images"
    return f"{described.name}{images}" + (f" ({described.fingerprint[:8]})" if described.fingerprint else "")


def _shown(value: Any) -> str:
    return cut(repr(value))
