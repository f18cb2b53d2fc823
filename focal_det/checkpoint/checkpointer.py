"""Write a run's checkpoints, keep the newest of them, and load one."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import TrainingError, visible
from ..files import put_aside, write_text_whole, written_whole
from ..output_layout import BEST_CHECKPOINT, EMA, FINAL_CHECKPOINT, LAST_CHECKPOINT, PERIODIC_CHECKPOINT
from .class_rows import ClassRows
from .compatibility import weights_summary
from .disk_space import checkpoint_bytes, not_written_message
from .integrity import DamagedError, contents, damage, save_plain
from .run_record import RunRecord
from .safe_load import SafeCheckpointer

logger = logging.getLogger(__name__)


class RunCheckpointer(SafeCheckpointer):
    """Detectron2's, which keeps the newest periodic checkpoints, and sums up in one message what fitted.

    A checkpoint takes its name when it is complete, on the disk and read back. Only then is last_checkpoint changed,
    and an older one removed: a kill, a crash or a full disk at any moment leaves what there was before. Every
    checkpoint holds the run's record and the names of those written so far.

    Args:
        model, save_dir, checkpointables: Detectron2's.
        class_rows: of a `SafeCheckpointer`.
        kept: periodic checkpoints that stay, >= 1; 0 keeps all. Only files that this run or one that it resumes wrote
            are removed, never the best, the final one or the one that last_checkpoint names.
        record: of the run; None leaves it out.
        resumed: the checkpoint to resume from; None for the one that last_checkpoint names.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        kept: int = 0,
        record: RunRecord | None = None,
        resumed: Path | None = None,
        class_rows: ClassRows | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, class_rows=class_rows, **checkpointables)
        self.kept, self.record, self.resumed = kept, record, resumed
        self.written = WrittenFiles()
        self.add_checkpointable("written_checkpoints", self.written)

    def save(self, name: str, **state: Any) -> None:
        """Write a checkpoint, the one that --resume will use; then remove periodic ones that are too many.

        On the main process alone; the others do nothing, and none waits for another. Raises TrainingError where it
        cannot be written, which says how to continue.
        """
        if not (self.save_dir and self.save_to_disk):
            return
        path = Path(self.save_dir) / f"{name}.pth"
        with self._disk_errors_explained(path):
            if PERIODIC_CHECKPOINT.fullmatch(path.name):
                if path.is_file() and path.name not in self.written.names and not self._is_of_this_run(path):
                    logger.warning(f"{path} was there before this run wrote one of that name: now {put_aside(path)}")
                self.written.names.add(path.name)  # before it is written, so that it is in it
            self._write(path, {**self._training(), **state})
        with self._disk_errors_explained(path.with_name(LAST_CHECKPOINT)):
            self.tag_last_checkpoint(path.name)
        if self.kept:
            self._remove_oldest()

    def save_best(self, **state: Any) -> Path:
        """Write model_best.pth, which --resume uses only where no other is intact. Raises as `save` does."""
        return self._write_beside(BEST_CHECKPOINT, {**self._training(), **state})

    def save_weights(self, name: str, weights: Mapping[str, torch.Tensor], **state: Any) -> Path:
        """Write a file of other weights of this model, alone: to be used, not to be resumed. Raises as `save` does."""
        return self._write_beside(name, {"model": weights, **state})

    def has_checkpoint(self) -> bool:
        """Return whether there is one to resume from."""
        return self.resumed is not None or super().has_checkpoint()

    def get_checkpoint_file(self) -> str:
        """Return the one to resume from."""
        return str(self.resumed or super().get_checkpoint_file())

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name in last_checkpoint what --resume will use."""
        write_text_whole(Path(self.save_dir) / LAST_CHECKPOINT, last_filename_basename, durable=True)

    def _training(self) -> dict[str, Any]:
        """Return what Detectron2 saves."""
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        return {"model": self.model.state_dict(), **parts}

    def _write_beside(self, name: str, content: Mapping[str, Any]) -> Path:
        """Write a file that last_checkpoint never names, on the main process alone; return its path."""
        path = Path(self.save_dir) / name
        if self.save_dir and self.save_to_disk:
            with self._disk_errors_explained(path):
                self._write(path, content)
        return path

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write the content and the run's record."""
        run = {"run": self.record.plain()} if self.record else {}
        with written_whole(path, durable=True) as partial:
            save_plain({**content, **run}, partial)
            reason = damage(partial)
            if reason:
                raise OSError(errno.EIO, f"read back, {reason}")
        logger.info(f"Saved {path}")

    def _is_of_this_run(self, path: Path) -> bool:
        """Return whether this run wrote it, and was killed before it could note that: it will be the same again."""
        try:
            return self.record is not None and contents(path).get("run") == self.record.plain()
        except DamagedError:
            return False

    @contextmanager
    def _disk_errors_explained(self, path: Path) -> Iterator[None]:
        """Turn an error of the disk into a TrainingError that says what to do about it."""
        try:
            yield
        except OSError as error:
            raise self.not_written(path, error) from error

    def not_written(self, path: Path, error: OSError) -> TrainingError:
        """Return the error to raise about a file of the run that the disk did not take; it says how to continue."""
        newest = os.path.basename(super().get_checkpoint_file())
        return TrainingError(
            not_written_message(
                path, error, checkpoint_bytes(self.model, has_average=EMA in self.checkpointables), newest
            )
        )

    def _remove_oldest(self) -> None:
        folder = Path(self.save_dir)
        written = sorted(name for name in self.written.names if (folder / name).is_file())
        for name in written[: -self.kept]:
            if os.path.basename(super().get_checkpoint_file()) == name:
                continue
            try:
                (folder / name).unlink()
                self.written.names.discard(name)
            except OSError as error:
                logger.warning(f"{folder / name} cannot be removed ({error.strerror}); it stays")

    def _load_model(self, checkpoint: Any) -> Any:
        loading = logging.getLogger("detectron2.checkpoint.c2_model_loading")  # logs a table, and a line a misfit
        level = loading.level
        given = {name: tuple(value.shape) for name, value in checkpoint["model"].items()}
        try:
            loading.setLevel(logging.ERROR)
            report = super()._load_model(checkpoint)
        finally:
            loading.setLevel(level)
        ours = {name: tuple(value.shape) for name, value in self.model.state_dict().items()}
        self._summary = weights_summary(given, ours, report, num_classes=getattr(self.model, "num_classes", None))
        return report

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Log one message instead of one for each weight."""
        message, is_fine = self._summary
        logger.log(logging.INFO if is_fine else logging.WARNING, message)
        if self.kept_rows:
            logger.info(visible(self.kept_rows))


class WrittenFiles:
    """The names of the periodic checkpoints that a run has written, which each of them holds."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        return {"names": sorted(self.names)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take only names of periodic checkpoints, so that a stranger's file cannot have others removed."""
        self.names = {name for name in map(str, state["names"]) if PERIODIC_CHECKPOINT.fullmatch(name)}


def retention_message(kept: int, max_iter: int, period: int) -> str | None:
    """Return what to say at the start of a run that will remove checkpoints; None if it will not."""
    if kept == 0 or max_iter // period <= kept:
        return None
    stay = f"the newest {kept} stay (MODEL.FOCAL_DET.CHECKPOINTS_KEPT; 0 keeps all)"
    return f"Of the checkpoints every {period} iterations {stay}, and {BEST_CHECKPOINT} and {FINAL_CHECKPOINT}"
