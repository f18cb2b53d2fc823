"""Whether a configuration makes a model and its parts, and how well the weights of a file fit that model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer

from ..data.augmentation import training_mapper
from ..data.train_loader import check_own_augmentation
from ..errors import Findings, first_line, visible
from ..modeling.assigners import check_assigner
from ..modeling.levels import check_upright
from ..modeling.retinanet import FocalRetinaNet
from .class_rows import ClassRows
from .safe_load import NonFiniteWeightsError, SafeCheckpointer

Shape = tuple[int, ...]
_AVERAGE = "criterion.normalizer.ema"  # state of the training, which detecting never reads
_NAMED = 4  # misfits that a message names


def build_cpu_model(cfg: CfgNode) -> torch.nn.Module:
    """Build the model on the CPU, whatever MODEL.DEVICE, and leave the random numbers as they are."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    with torch.random.fork_rng(devices=[]):
        return build_model(cfg)


def build_parts(cfg: CfgNode, *, training: bool = True) -> tuple[torch.nn.Module | None, Findings]:
    """Build the parts of a run, for combinations of keys that no single key shows to be wrong.

    Without `training`, augmentation of the user's need not be there. Returns the model of `build_cpu_model`, or None if
    it cannot be built; and the part that failed.
    """
    model, part = None, "a model"
    try:
        model = build_cpu_model(cfg)
        check_upright(getattr(model, "anchor_generator", None))  # a two-stage detector has its own in its RPN
        if training and cfg.MODEL.META_ARCHITECTURE == "FocalRetinaNet":
            part = f"an assignment by {cfg.MODEL.FOCAL_DET.ASSIGNER.NAME}"
            assert isinstance(model, FocalRetinaNet)
            levels = model.anchor_generator([torch.zeros(1, 1, 2, 2) for _ in model.in_features])
            check_assigner(model.criterion.assigner, [level.tensor for level in levels], model.num_classes)
        part = "a schedule"
        build_lr_scheduler(cfg, build_optimizer(cfg, model))
        if nameless := _without_keypoint_names(cfg):
            return model, Findings(nameless)
        part = "a loader"
        DatasetMapper(cfg, is_train=False)
        if training:
            training_mapper(cfg)
            part = "an augmentation"
            check_own_augmentation(cfg)
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        return model, Findings([f"the configuration does not make {part}: {_described(error)}"])
    return model, Findings()


def _without_keypoint_names(cfg: CfgNode) -> list[str]:
    """Return what Detectron2's mapper would miss in the metadata of a set with keypoints, to mirror them."""
    if not cfg.MODEL.KEYPOINT_ON:
        return []
    found = []
    for name in cfg.DATASETS.TRAIN:
        missing = [
            key for key in ("keypoint_names", "keypoint_flip_map") if not hasattr(MetadataCatalog.get(name), key)
        ]
        if missing:
            fix = ", ".join(f"{key}=[...]" for key in missing)
            found.append(
                f'MODEL.KEYPOINT_ON True needs {" and ".join(missing)} in the metadata of data set "{name}": add '
                f'MetadataCatalog.get("{name}").set({fix}) where it is registered, or set MODEL.KEYPOINT_ON False'
            )
    return found


def check_weights(
    model: torch.nn.Module,
    path: str,
    *,
    needs_all: bool,
    contents: Mapping[str, Any] | None = None,
    class_rows: ClassRows | None = None,
) -> Findings:
    """Load a checkpoint into a model, which keeps the weights, to see whether it can be read and fits.

    Args:
        path: a local file, or an address that Detectron2 resolves; `contents` are what has been read of it already.
        class_rows: of a `SafeCheckpointer`; what it keeps is a note.
        needs_all: it must have every weight, in the model's shape; only the normaliser's average may be missing.
    """
    checkpointer = _SilentCheckpointer(model, class_rows=class_rows)
    try:
        if contents is None:
            checkpointer.load(path, checkpointables=[])
        else:
            checkpointer._load_model({**contents, "model": dict(contents["model"])})  # which takes entries out of both
        report = checkpointer.report
    except NonFiniteWeightsError as error:
        return Findings([f"{path}: {error}"])
    except Exception as error:  # whatever a reader of somebody's file may raise
        return Findings([f"{path} cannot be read as a checkpoint ({_described(error)})"])
    misshapen = {name for name, _, _ in report.incorrect_shapes}
    missing = [name for name in report.missing_keys if name not in {_AVERAGE, *misshapen}]
    wrong = [f"{name} {theirs} for {ours}" for name, theirs, ours in report.incorrect_shapes]
    if not (needs_all and (missing or wrong)):
        return Findings(notes=[checkpointer.kept_rows] if checkpointer.kept_rows else [])
    both = ("are missing", missing), ("have another shape", wrong)
    parts = "; ".join(f"{len(names)} weights {what}, such as {names[0]}" for what, names in both if names)
    fix = "Use the configuration that it was trained with"
    return Findings([f"{path} does not fit the configuration's model: {parts}. {fix}"])


class _SilentCheckpointer(SafeCheckpointer):
    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Log nothing: the report says it."""


def _described(error: Exception) -> str:
    """Return "KeyError: 'p9'", or the class alone of an error without a message."""
    kind, message = type(error).__name__, first_line(error)
    return kind if message == kind else f"{kind}: {message}"


def weights_summary(
    given: Mapping[str, Shape], ours: Mapping[str, Shape], report: Any, *, num_classes: int | None
) -> tuple[str, bool]:
    """Return a message that sums up the loading of weights, and whether all that the file holds for the model fitted.

    Args:
        given, ours: shapes by name of what the file holds, and of the model's weights and buffers.
        report: fvcore's: `missing_keys`, `unexpected_keys`, `incorrect_shapes` of (name, theirs, ours).
        num_classes: K of the model; None if it does not say.
    """
    wrong = {name: theirs for name, theirs, _ in report.incorrect_shapes}
    missing = [name for name in report.missing_keys if name in ours and name not in wrong and name != _AVERAGE]
    for name in missing:  # where names are matched by their ends, a misfit is only said to be missing
        ends = [other for other in given if _ends_with(name, other)]
        if ends and (theirs := given[max(ends, key=len)]) != ours[name]:
            wrong[name] = theirs
    missing = [name for name in missing if name not in wrong]
    total = len(set(ours) - {_AVERAGE})
    matched = total - len(missing) - len(wrong)
    if matched == 0:
        return (
            f"Weights: none of the file's {len(given)} fits one of the model's {total}; the model stays as it was "
            "initialised. Is MODEL.WEIGHTS of this architecture?"
        ), False
    parts = [f"Weights: {matched} of the model's {total} loaded"]
    if wrong:
        parts.append(f"initialised anew, since the file has another shape: {_misfits(wrong, ours, num_classes)}")
    if missing:
        parts.append(f"initialised anew, since the file does not have them: {_grouped(missing)}")
    unused = [name for name in report.unexpected_keys if not any(_ends_with(misfit, name) for misfit in wrong)]
    if unused:
        parts.append(f"in the file and not used: {_grouped(unused)}")
    return visible("; ".join(parts)), not wrong


def _misfits(wrong: Mapping[str, Shape], ours: Mapping[str, Shape], num_classes: int | None) -> str:
    found = []
    for name, theirs in wrong.items():
        anchors = ours[name][0] // num_classes if num_classes and ours[name] else 0
        is_score = ".cls_score." in f".{name}" and anchors > 0 and theirs[1:] == ours[name][1:]
        if is_score and theirs[0] % anchors == 0:
            found.append(f"{name} (for {theirs[0] // anchors} classes, the model has {num_classes})")
        else:
            found.append(f"{name} ({theirs} for {ours[name]})")
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more


def _grouped(names: Collection[str]) -> str:
    """Return "12, such as head.x (8 of head, 4 of backbone)"."""
    counts = Counter(name.split(".")[0] for name in names)
    groups = ", ".join(f"{count} of {group}" for group, count in counts.most_common(3))
    return f"{len(names)}, such as {min(names)} ({groups}{', ...' if len(counts) > 3 else ''})"


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith("." + end)
