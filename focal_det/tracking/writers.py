"""Write the line of the log that says how the training goes, and the one that says what makes it fast."""

from __future__ import annotations

import datetime
import logging
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

from ..distributed.graceful_stop import TrainingStopped
from ..modeling.convolutions import FoldedConv2d
from ..modeling.levels import extra_pixels, usual_batches
from ..modeling.retinanet import FocalRetinaNet
from .metrics_file import WINDOW

logger = logging.getLogger(__name__)
_FOR_ETA = 200  # iterations whose mean time the rest is expected to take


@dataclass(eq=False)
class ConsoleWriter(EventWriter):
    """Log how far the training is, how fast, and its losses; "epoch" and "eta_seconds" go into the metrics as well.

    Its place is before the other writers, which write those two.

    iterations_per_epoch: None if the data do not tell.
    best: returns the best AP so far in points and the iterations after which it was reached; None before the first.
    device: whose peak memory is shown; for a CPU the process's peak resident memory.
    """

    max_iter: int
    iterations_per_epoch: float | None
    best: Callable[[], tuple[float, int] | None]
    device: torch.device
    _written: int = field(default=-1, init=False)

    def write(self) -> None:
        """Log once per iteration; nothing after the last, when only an evaluation is new."""
        storage = get_event_storage()
        if storage.iter == self._written or storage.iter >= self.max_iter:
            return
        self._written = storage.iter
        logger.info("  ".join(self._parts(storage)))

    def _parts(self, storage: EventStorage) -> list[str]:
        done = storage.iter + 1
        epoch = ""
        if self.iterations_per_epoch:
            storage.put_scalar("epoch", done / self.iterations_per_epoch, smoothing_hint=False)
            epoch = f" (epoch {done / self.iterations_per_epoch:.2f})"
        best, histories = self.best(), storage.histories()
        losses = [name for name in ("total_loss", *(n for n in histories if n.startswith("loss"))) if name in histories]
        medians = [(name, histories[name].median(storage.count_samples(name, WINDOW))) for name in losses]
        return [
            f"iteration {done}/{self.max_iter}{epoch}",
            *self._times(storage, done),
            f"memory {peak_bytes(self.device) / 1e9:.1f} GB",
            *(f"lr {value:.4g}" for value, _ in [storage.latest().get("lr", (None, 0))] if value is not None),
            *(f"{name} {value:.4g}" for name, value in medians),
            f"best AP {best[0]:.1f} (after {best[1]})" if best else "best AP -",
        ]

    def _times(self, storage: EventStorage, done: int) -> list[str]:
        """Return ETA and speed from means, not medians: on a GPU one step in twenty waits for all the others."""
        histories = storage.histories()
        if "time" not in histories:  # the first steps are not timed
            return ["eta -"]
        seconds = histories["time"].avg(min(_FOR_ETA, len(histories["time"].values())))
        rest = seconds * (self.max_iter - done)
        storage.put_scalar("eta_seconds", rest, smoothing_hint=False)
        recent = histories["time"].avg(storage.count_samples("time", WINDOW))
        parts = [f"eta {datetime.timedelta(seconds=int(rest))}", f"{1 / recent:.3g} it/s"]
        if "data_time" in histories:
            parts.append(f"data {histories['data_time'].avg(storage.count_samples('data_time', WINDOW)):.3f} s")
        return parts


class WriteMetrics(PeriodicWriter):
    """Write as Detectron2's hook does, and after every evaluation too; only the log line keeps to its period."""

    def __init__(self, writers: list[EventWriter], period: int, eval_period: int) -> None:
        super().__init__(writers, period)
        self._log_lines = [writer for writer in writers if isinstance(writer, ConsoleWriter)]
        self._others = [writer for writer in writers if not isinstance(writer, ConsoleWriter)]
        self._eval_period = eval_period

    def after_train(self) -> None:
        """Write what is left; after a fault the log line alone, and nothing after a stop on a signal.

        A resume repeats the last steps and writes their metrics then; without a checkpoint there is no resume, and they
        are written now.
        """
        error = sys.exc_info()[1]
        for writer in self._log_lines:
            writer.max_iter = self.trainer.max_iter  # lower where the training was stopped early
        if isinstance(error, TrainingStopped):
            return
        if not isinstance(error, Exception) or not self.trainer.checkpointer.has_checkpoint():
            super().after_train()
        else:
            for writer in self._log_lines:
                writer.write()

    def after_step(self) -> None:
        super().after_step()
        if self._eval_period > 0 and (self.trainer.iter + 1) % self._eval_period == 0:
            for writer in self._others:
                writer.write()  # which skip what they have written already


def parameters_line(model: torch.nn.Module) -> str:
    """Say how many parameters a model has, and how many of them are trained."""
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{parameters / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of them trained"


def speed_options_line(cfg: CfgNode, model: torch.nn.Module) -> str:
    """Name what is in use of MODEL.FOCAL_DET.SPEED and SOLVER.AMP, as far as this model and machine have it."""
    speed = cfg.MODEL.FOCAL_DET.SPEED
    active, is_ours = [], isinstance(model, FocalRetinaNet)
    if is_ours:  # another architecture reads none of these
        active += ["CHANNELS_LAST"] if model.memory_format is torch.channels_last else []
        active += ["FOLD_NORMS"] if any(isinstance(module, FoldedConv2d) for module in model.modules()) else []
        active += [name for name in ("TRITON", "BFLOAT16_INFERENCE", "COMPILE", "CUDA_GRAPHS", "PAD_TO") if speed[name]]
    active += ["FUSED_SGD"] if speed.FUSED_SGD else []
    active += [f"AMP {cfg.SOLVER.AMP.DTYPE}"] if cfg.SOLVER.AMP.ENABLED else []
    line = f"Speed options in use: {', '.join(active) or 'none'}"
    if is_ours and speed.CHANNELS_LAST and "CHANNELS_LAST" not in active:
        line += "; not CHANNELS_LAST, with which GroupNorm is slow on a processor"
    if is_ours and speed.FOLD_NORMS and "FOLD_NORMS" not in active:
        line += "; not FOLD_NORMS, since no norm is frozen"
    if isinstance(model, FocalRetinaNet) and "PAD_TO" in active:
        line += f". {_padding_of(cfg, model)}"
    if "COMPILE" in active:
        line += ". Compiling takes minutes in the first step; the log says when it starts and ends"
    return line


def _padding_of(cfg: CfgNode, model: FocalRetinaNet) -> str:
    """Say which shapes batches are padded to, and at what cost."""
    shapes, (batches, *_) = model.padding.shapes, usual_batches(cfg, model.backbone.size_divisibility)
    names = ", ".join(f"{height}x{width}" for height, width in shapes if height <= width)
    extra = f", {extra_pixels(batches, shapes):.1%} more pixels for two photographs" if batches else ""
    return f"Batches are padded to {names} or the same upright{extra}"


def speed_summary(model: torch.nn.Module) -> list[str]:
    """Say in a line each how often CUDA_GRAPHS and PAD_TO were of use, where they are on."""
    if not isinstance(model, FocalRetinaNet):
        return []
    lines = model.runner.summary()
    if model.padding.too_large:
        lines.append(f"PAD_TO: {model.padding.too_large:,} batches were larger than every shape, and not padded")
    return lines


def images_of(loader: Any) -> int | None:
    """Count the images that a training loader draws from; None if its data do not tell."""
    while hasattr(loader, "dataset"):
        loader = loader.dataset
    return len(loader) or None if hasattr(loader, "__len__") else None


def peak_bytes(device: torch.device) -> int:
    """Return the most memory so far: of PyTorch's tensors on a GPU, else what the process had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # in which the system counts
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
