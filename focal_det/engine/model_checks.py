"""What only building the model, or loading its weights, can tell before a run starts."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer

from .safe_weights import SafeCheckpointer


def model_problems(cfg: CfgNode) -> list[str]:
    """What building the run's parts trips over, by building them: combinations that single keys do not show."""
    parts = "a model"
    try:
        model = build_cpu_model(cfg)
        parts = "a schedule"
        build_lr_scheduler(cfg, build_optimizer(cfg, model))
        parts = "a loader"
        for is_train in (True, False):
            DatasetMapper(cfg, is_train=is_train)
    except (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        return [f"the configuration does not make {parts}: {type(error).__name__}: {_first_line(error)}"]
    return []


def build_cpu_model(cfg: CfgNode) -> torch.nn.Module:
    """The model, for looking at: on the CPU whatever MODEL.DEVICE, and leaving the random numbers as they are."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    with torch.random.fork_rng(devices=[]):
        return build_model(cfg)


def weights_problems(cfg: CfgNode, path: str, *, whole: bool) -> list[str]:
    """What is wrong with a checkpoint of this configuration's model.

    Args:
        path: a local file, or an address that Detectron2 resolves.
        whole: also that every weight is in it; the normaliser's average may be missing, which detecting never reads.
    """
    checkpointer = _ReportingCheckpointer(build_cpu_model(cfg))
    try:
        checkpointer.load(path, checkpointables=[])
    except Exception as error:  # whatever a reader of somebody's file may raise
        return [f"{path} cannot be read as a checkpoint ({type(error).__name__}: {_first_line(error)})"]
    report = checkpointer.report
    mismatched = {name for name, _, _ in report.incorrect_shapes}
    lacking = [name for name in report.missing_keys if name not in {"criterion.normalizer.ema", *mismatched}]
    wrong = [f"{name} {theirs} for {ours}" for name, theirs, ours in report.incorrect_shapes]
    if whole and (lacking or wrong):
        return [
            f"{path} does not fit the configuration's model: "
            + "; ".join(
                f"{len(names)} weights {what}, such as {names[0]}"
                for what, names in (("are missing", lacking), ("have another shape", wrong))
                if names
            )
            + ". Use the configuration that it was trained with"
        ]
    return []


class _ReportingCheckpointer(SafeCheckpointer):
    """Keeps what did not match, where Detectron2's logs it."""

    def _load_model(self, checkpoint: Any) -> Any:
        self.report = super()._load_model(checkpoint)
        return self.report

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Nothing: the report says it."""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
