"""Which checkpoints there are: the newest periodic ones and the last; and what of one fits the model."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import TrainingError
from ..files import put_aside, write_text_whole, written_whole
from .advice import checkpoint_bytes, not_written_words
from .checkpoint_file import DamagedError, contents, damage
from .run_record import RunRecord
from .safe_weights import SafeCheckpointer
from .weights_summary import weights_summary

BEST = "model_best"
FINAL = "model_final"  # Detectron2's name for what is saved after the last step
POINTER = "last_checkpoint"
_PERIODIC = re.compile(r"model_\d{7}\.pth")  # Detectron2's name for them


class RunCheckpointer(SafeCheckpointer):
    """Detectron2's, which keeps the newest periodic checkpoints, and sums up in one message what fitted.

    A checkpoint takes its name when it is whole, on the disk and read back, and only then is last_checkpoint moved on,
    and an older one removed: a kill, a crash or a full disk at any moment leaves what there was before. What it has
    written, and what the run is, is in every checkpoint.

    Args:
        model, save_dir, checkpointables: Detectron2's.
        kept: periodic checkpoints that stay, >= 1; 0 keeps all. Of the files in `save_dir` only those that this run or
            one that it resumes wrote are removed, never the best, the final one or what last_checkpoint names.
        record: of the run; None leaves it out.
        resumed: the checkpoint to go on from; None for what last_checkpoint names.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        kept: int = 0,
        record: RunRecord | None = None,
        resumed: Path | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.kept = kept
        self.record = record
        self.resumed = resumed
        self.written = WrittenFiles()
        self.add_checkpointable("written_checkpoints", self.written)

    def save(self, name: str, **state: Any) -> None:
        """Write a checkpoint, the one that --resume goes on from; then remove periodic ones that are too many.

        On the main process; on others it does nothing. No other process is asked for anything.

        Raises:
            TrainingError: it cannot be written; says how to go on.
        """
        if not (self.save_dir and self.save_to_disk):
            return
        path = Path(self.save_dir) / f"{name}.pth"
        with self._told_if_not_written(path):
            if _PERIODIC.fullmatch(path.name):
                if path.is_file() and path.name not in self.written.names and not self._is_of_this_run(path):
                    _log().warning(f"{path} was there before this run wrote one of that name: now {put_aside(path)}")
                self.written.names.add(path.name)  # before it is written, so that it is in it
            self._write(path, state)
        with self._told_if_not_written(path.with_name(POINTER)):
            self.tag_last_checkpoint(path.name)
        if self.kept:
            self._remove_oldest()

    def save_best(self, **state: Any) -> Path:
        """Write model_best.pth; --resume does not go on from it. Raises as `save` does."""
        path = Path(self.save_dir) / f"{BEST}.pth"
        if self.save_dir and self.save_to_disk:
            with self._told_if_not_written(path):
                self._write(path, state)
        return path

    def has_checkpoint(self) -> bool:
        """Whether there is one to go on from."""
        return self.resumed is not None or super().has_checkpoint()

    def get_checkpoint_file(self) -> str:
        """The one to go on from."""
        return str(self.resumed or super().get_checkpoint_file())

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Say in last_checkpoint what --resume goes on from."""
        write_text_whole(Path(self.save_dir) / POINTER, last_filename_basename, durable=True)

    def _write(self, path: Path, state: Mapping[str, Any]) -> None:
        """What Detectron2 writes, and the run's record."""
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        run = {"run": self.record.plain()} if self.record else {}
        with written_whole(path, durable=True) as partial:
            with partial.open("wb") as file:
                torch.save({"model": self.model.state_dict(), **parts, **state, **run}, file)
            reason = damage(partial)
            if reason:
                raise OSError(errno.EIO, f"read back, {reason}")
        _log().info(f"Saved {path}")

    def _is_of_this_run(self, path: Path) -> bool:
        """Whether the run wrote it, and was killed before it could note that: what comes now is the same again."""
        try:
            return self.record is not None and contents(path).get("run") == self.record.plain()
        except DamagedError:
            return False

    @contextmanager
    def _told_if_not_written(self, path: Path) -> Iterator[None]:
        """Turn what the disk refuses into what to do about it."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            # PyTorch's writer puts an error of its own before the disk's
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise self.not_written(path, cause) from error

    def not_written(self, path: Path, error: OSError) -> TrainingError:
        """What to raise of a file in the run's folder that the disk did not take; says how to go on."""
        newest = os.path.basename(super().get_checkpoint_file())
        return TrainingError(not_written_words(path, error, checkpoint_bytes(self.model), newest))

    def _remove_oldest(self) -> None:
        folder = Path(self.save_dir)
        mine = sorted(name for name in self.written.names if (folder / name).is_file())
        for name in mine[: -self.kept]:
            if os.path.basename(super().get_checkpoint_file()) == name:
                continue
            try:
                (folder / name).unlink()
                self.written.names.discard(name)
            except OSError as error:
                _log().warning(f"{folder / name} cannot be removed ({error.strerror}); it stays")

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

    def state_dict(self) -> dict[str, Any]:
        return {"names": sorted(self.names)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Only names of periodic checkpoints: another file that a checkpoint may name is none to remove."""
        self.names = {name for name in map(str, state["names"]) if _PERIODIC.fullmatch(name)}


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
