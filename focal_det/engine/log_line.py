"""The one line of the log that says how the training goes, and the one that says what makes it fast."""

from __future__ import annotations

import datetime
import logging
import resource
import sys
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

from ..modeling.folded_conv import FoldedConv2d
from ..modeling.retinanet import FocalRetinaNet
from .stopping import TrainingStopped

_SMOOTHED = 20  # iterations whose median is shown, as in metrics.json
_FOR_ETA = 200  # iterations whose mean time the rest is expected to take


class LogLine(EventWriter):
    """Write how far the training is, how fast, and its losses; "epoch" and "eta_seconds" go into the metrics as well.

    To stand before the other writers, which write those two.

    Args:
        max_iter: iterations of the whole training.
        iterations_per_epoch: None if the data do not tell.
        best: the best AP so far in points and the iterations after which it was reached; None before the first.
        device: whose memory is shown; of a processor the process's resident memory, each at its highest.
    """

    def __init__(
        self,
        max_iter: int,
        *,
        iterations_per_epoch: float | None,
        best: Callable[[], tuple[float, int] | None],
        device: torch.device,
    ) -> None:
        self._max_iter = max_iter
        self._iterations_per_epoch = iterations_per_epoch
        self._best = best
        self._device = device
        self._written = -1

    def write(self) -> None:
        """Once per iteration; nothing after the last, when only an evaluation is new."""
        storage = get_event_storage()
        if storage.iter == self._written or storage.iter >= self._max_iter:
            return
        self._written = storage.iter
        logging.getLogger(__name__).info("  ".join(part for part in self._parts(storage) if part))

    def _parts(self, storage: EventStorage) -> list[str]:
        done = storage.iter + 1
        epoch = ""
        if self._iterations_per_epoch:
            storage.put_scalar("epoch", done / self._iterations_per_epoch, smoothing_hint=False)
            epoch = f" (epoch {done / self._iterations_per_epoch:.2f})"
        best = self._best()
        return [
            f"iteration {done}/{self._max_iter}{epoch}",
            *self._times(storage, done),
            f"memory {_gigabytes(self._device):.1f} GB",
            *(f"lr {value:.4g}" for value, _ in [storage.latest().get("lr", (None, 0))] if value is not None),
            *(f"{name} {_median(storage, name):.4g}" for name in _losses(storage)),
            f"best AP {best[0]:.1f} (after {best[1]})" if best else "best AP -",
        ]

    def _times(self, storage: EventStorage, done: int) -> list[str]:
        """Means, not medians: on a GPU one step in twenty waits for all the others."""
        histories = storage.histories()
        if "time" not in histories:  # the first steps are not timed
            return ["eta -"]
        seconds = histories["time"].avg(min(_FOR_ETA, len(histories["time"].values())))
        storage.put_scalar("eta_seconds", seconds * (self._max_iter - done), smoothing_hint=False)
        eta = datetime.timedelta(seconds=int(seconds * (self._max_iter - done)))
        recent = histories["time"].avg(storage.count_samples("time", _SMOOTHED))
        parts = [f"eta {eta}", f"{1 / recent:.3g} it/s"]
        if "data_time" in histories:
            parts.append(f"data {histories['data_time'].avg(storage.count_samples('data_time', _SMOOTHED)):.3f} s")
        return parts


class WriteMetrics(PeriodicWriter):
    """Detectron2's, which also writes after every evaluation, where only the log line waits for its turn.

    Args:
        writers: the log line and others.
        period: iterations between two log lines.
        eval_period: iterations between two evaluations; 0 for none before the end.
    """

    def __init__(self, writers: list[EventWriter], period: int, eval_period: int) -> None:
        super().__init__(writers, period)
        self._log_lines = [writer for writer in writers if isinstance(writer, LogLine)]
        self._others = [writer for writer in writers if not isinstance(writer, LogLine)]
        self._eval_period = eval_period

    def after_train(self) -> None:
        """Detectron2's; of a run that a fault has ended the log line alone, and of a stopped one nothing.

        What the last steps came to is written when they come again: not of a run without a checkpoint to go on from.
        """
        error = sys.exc_info()[1]
        if isinstance(error, TrainingStopped):
            return
        if error is None or not self.trainer.checkpointer.has_checkpoint():
            super().after_train()
        else:
            for writer in self._log_lines:
                writer.write()

    def after_step(self) -> None:
        super().after_step()
        if self._eval_period > 0 and (self.trainer.iter + 1) % self._eval_period == 0:
            for writer in self._others:
                writer.write()  # what is written already is not written again


def levers_line(cfg: CfgNode, model: torch.nn.Module) -> str:
    """What of MODEL.FOCAL_DET.SPEED and SOLVER.AMP is in use, as far as this model and machine have it."""
    speed = cfg.MODEL.FOCAL_DET.SPEED
    active = []
    if isinstance(model, FocalRetinaNet):  # another architecture reads none of these
        active += ["CHANNELS_LAST"] if model.memory_format is torch.channels_last else []
        active += ["FOLD_NORMS"] if any(isinstance(module, FoldedConv2d) for module in model.modules()) else []
        active += [name for name in ("TRITON", "BFLOAT16_INFERENCE", "COMPILE") if speed[name]]
    active += ["FUSED_SGD"] if speed.FUSED_SGD else []
    active += [f"AMP {cfg.SOLVER.AMP.DTYPE}"] if cfg.SOLVER.AMP.ENABLED else []
    line = f"Speed levers in use: {', '.join(active) or 'none'}"
    if isinstance(model, FocalRetinaNet):
        if speed.CHANNELS_LAST and "CHANNELS_LAST" not in active:
            line += "; not CHANNELS_LAST, with which GroupNorm is slow on a processor"
        if speed.FOLD_NORMS and "FOLD_NORMS" not in active:
            line += "; not FOLD_NORMS, as no norm is frozen"
    if "COMPILE" in active:
        line += (
            ". Compiling takes minutes at the first picture size and again at the second; nothing is logged meanwhile"
        )
    return line


def pictures_of(loader: Any) -> int | None:
    """How many pictures a training loader goes round; None if its data do not tell."""
    while hasattr(loader, "dataset"):
        loader = loader.dataset
    return len(loader) or None if hasattr(loader, "__len__") else None


def _losses(storage: EventStorage) -> list[str]:
    names = [name for name in storage.histories() if name.startswith("loss")]
    return (["total_loss"] if "total_loss" in storage.histories() else []) + names


def _median(storage: EventStorage, name: str) -> float:
    return float(storage.history(name).median(storage.count_samples(name, _SMOOTHED)))


def _gigabytes(device: torch.device) -> float:
    """The most memory that this process has held, in units of 10^9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # in which the system counts
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
