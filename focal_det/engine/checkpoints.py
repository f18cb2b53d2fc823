"""Which checkpoints there are: the newest periodic ones, the best, the last; and what of one fits the model."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..files import write_text_whole
from .safe_weights import SafeCheckpointer
from .weights_summary import weights_summary

BEST = "model_best"
_PERIODIC = re.compile(r"model_\d{7}\.pth")  # Detectron2's name for them


class RunCheckpointer(SafeCheckpointer):
    """Detectron2's, which keeps the newest periodic checkpoints, and sums up in one message what fitted.

    What it has written is in every checkpoint, so that a run that goes on knows which files are its own.

    Args:
        model, save_dir, checkpointables: Detectron2's.
        kept: periodic checkpoints that stay, >= 1; 0 keeps all. Of the files in `save_dir` only those that this run or
            one that it resumes wrote are removed, never the best, the final one or what last_checkpoint names.
    """

    def __init__(self, model: torch.nn.Module, save_dir: str = "", *, kept: int = 0, **checkpointables: Any) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.kept = kept
        self.written = WrittenFiles()
        self.add_checkpointable("written_checkpoints", self.written)

    def save(self, name: str, **state: Any) -> None:
        """Write a checkpoint, the one that --resume goes on from; then remove periodic ones that are too many."""
        file_name = f"{name}.pth"
        if _PERIODIC.fullmatch(file_name):
            self._put_aside_if_not_ours(file_name)
            self.written.add(file_name)
        self._save_whole(file_name, state)
        if self.save_dir and self.save_to_disk:
            self.tag_last_checkpoint(file_name)
            if self.kept:
                self._remove_oldest()

    def save_best(self, **state: Any) -> Path:
        """Write model_best.pth; --resume does not go on from it."""
        self._save_whole(f"{BEST}.pth", state)
        return Path(self.save_dir) / f"{BEST}.pth"

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Say in last_checkpoint what --resume goes on from; not of a file that is still to get its name."""
        if not last_filename_basename.startswith("."):
            write_text_whole(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def _save_whole(self, file_name: str, state: dict[str, Any]) -> None:
        """Beside its name first, so that a kill or a full disk leaves what was there before."""
        partial = Path(self.save_dir) / f".{os.getpid()}.part.pth"
        level = self.logger.level
        try:
            self.logger.setLevel(logging.WARNING)  # it would name the partial file
            super().save(partial.stem, **state)
            if self.save_dir and self.save_to_disk:
                partial.replace(partial.with_name(file_name))
                _log().info(f"Saved {partial.with_name(file_name)}")
        finally:
            self.logger.setLevel(level)
            if self.save_dir and self.save_to_disk:
                partial.unlink(missing_ok=True)

    def _put_aside_if_not_ours(self, file_name: str) -> None:
        path = Path(self.save_dir) / file_name
        if not (self.save_dir and self.save_to_disk and path.is_file()) or file_name in self.written.names:
            return
        number = next(n for n in range(1, 10**6) if not path.with_name(f"{file_name}.before{n}").exists())
        aside = path.with_name(f"{file_name}.before{number}")
        path.replace(aside)
        _log().warning(f"{path} was there before this run wrote one of that name: it is now {aside}")

    def _remove_oldest(self) -> None:
        folder = Path(self.save_dir)
        mine = sorted(name for name in self.written.names if (folder / name).is_file())
        for name in mine[: -self.kept]:
            if os.path.basename(self.get_checkpoint_file()) != name:
                (folder / name).unlink()
                self.written.names.discard(name)

    def _load_model(self, checkpoint: Any) -> Any:
        names = logging.getLogger("detectron2.checkpoint.c2_model_loading")  # a table, and lines for each that differs
        level = names.level
        given = {name: tuple(value.shape) for name, value in checkpoint["model"].items()}
        try:
            names.setLevel(logging.ERROR)
            report = super()._load_model(checkpoint)
        finally:
            names.setLevel(level)
        ours = {name: tuple(value.shape) for name, value in self.model.state_dict().items()}
        self._summary = weights_summary(given, ours, report, num_classes=getattr(self.model, "num_classes", None))
        return report

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """One message instead of one for each weight."""
        words, is_fine = self._summary
        logging.getLogger(__name__).log(logging.INFO if is_fine else logging.WARNING, words)


class WrittenFiles:
    """Names of the periodic checkpoints that a run has written, as a part of them."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def add(self, name: str) -> None:
        """Before it is written, so that it is in it."""
        self.names.add(name)

    def state_dict(self) -> dict[str, Any]:
        return {"names": sorted(self.names)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Only names of periodic checkpoints: another file that a checkpoint may name is none to remove."""
        self.names = {name for name in map(str, state["names"]) if _PERIODIC.fullmatch(name)}


class KeepBest(HookBase):
    """Write model_best.pth whenever an evaluation's AP is higher than any before; on every process.

    What is best is what model_best.pth says of itself, so that no resume can forget it, whatever checkpoint it goes on
    from. To stand after the evaluation.

    Args:
        checkpointer: of the run.
        metric: the AP's name in the metrics, such as "bbox/AP".
    """

    def __init__(self, checkpointer: RunCheckpointer, metric: str) -> None:
        self.checkpointer = checkpointer
        self.metric = metric
        self.best: tuple[float, int] | None = None

    def before_train(self) -> None:
        self.recall()

    def after_step(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self.metric, (math.nan, -1))
        if iteration == self.trainer.iter:
            self.consider(value, iteration)

    def after_train(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self.metric, (math.nan, -1))
        if iteration == self.trainer.iter:
            self.consider(value, min(iteration, self.trainer.max_iter - 1))

    def recall(self) -> None:
        """Take the best so far from model_best.pth, if there is one; it may be of before this start."""
        path = Path(self.checkpointer.save_dir) / f"{BEST}.pth"
        if not comm.is_main_process() or not path.is_file():
            return
        try:
            entry = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["best"]
            self.best = float(entry["AP"]), int(entry["iteration"]) + 1
        except Exception as error:  # whatever a reader of somebody's file may raise
            aside = path.with_suffix(".pth.unread")
            path.replace(aside)
            _log().warning(f"{path} does not say what its AP was ({type(error).__name__}): it is now {aside}")

    def consider(self, ap: float, iteration: int) -> None:
        """Keep the model if it is the best.

        Args:
            ap: in points; NaN is never the best.
            iteration: the last one done, from 0.
        """
        if math.isnan(ap) or (self.best is not None and ap <= self.best[0]):
            return
        before = f", was {self.best[0]:.2f} after {self.best[1]}" if self.best else ""
        self.best = ap, iteration + 1
        path = self.checkpointer.save_best(iteration=iteration, best={"AP": ap, "iteration": iteration})
        _log().info(f"Best AP so far {ap:.2f} after {iteration + 1} iterations{before}: {path}")


def retention_words(kept: int, max_iter: int, period: int) -> str | None:
    """What is to be said at the start of a run that will remove checkpoints; None if it will not."""
    if kept == 0 or max_iter // period <= kept:
        return None
    return (
        f"Of the checkpoints every {period} iterations the newest {kept} stay (MODEL.FOCAL_DET.CHECKPOINTS_KEPT; 0 "
        f"keeps all), and {BEST}.pth and model_final.pth"
    )


def _log() -> logging.Logger:
    return logging.getLogger(__name__)
