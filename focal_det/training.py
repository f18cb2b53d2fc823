"""Train from Python: `train` does what `focal-det train` does, and returns the `Run`, which any OUTPUT_DIR can become.

In a notebook, too: what goes wrong is raised, and the process is afterwards what it was before.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from .checkpoint.integrity import best_weights
from .config.layers import plain_values
from .config.load import read_config
from .config.plugins import default_config, load_plugins
from .distributed import signals
from .distributed.cluster import cluster_environment
from .distributed.graceful_stop import TrainingStopped
from .engine.predictor import Predictor
from .errors import EXIT_DONE, EXIT_STOPPED, InputError, TrainingError, silence_known_warnings
from .launch import run_as_launcher, run_as_rank
from .output_layout import CONFIG, FINAL_CHECKPOINT, LOG, METRICS, REPORT
from .preflight.options import KeyFlag, TrainOptions
from .report.metrics import metrics_by_iteration
from .tracking.log import end_log

_LOGGERS = ("fvcore", "detectron2", "focal_det", "torch.multiprocessing.spawn")
_PathLike = str | Path
_running = threading.Lock()


@dataclass(frozen=True, init=False)
class Run:
    """What a training left in its OUTPUT_DIR, as it is when this is made, also while the training still runs.

    Raises InputError where there is no training.

    Attributes:
        output_dir: the folder.
        history: the lines of metrics.json, an iteration each: values by name, and "iteration", counted from 0.
        metrics: the last value of each metric, such as "total_loss" and "bbox/AP"; APs are in points, 0 to 100.
        best: the better of model_best.pth and model_best_ema.pth; None if there is neither.
        AP: of that, in its evaluation; nan if there is none.
        final: the checkpoint of the end; None before it.
        report: the page about the run, report.html; None if there is none.
    """

    output_dir: Path
    history: tuple[Mapping[str, float], ...] = field(repr=False)
    metrics: Mapping[str, float] = field(repr=False)
    best: Path | None
    AP: float
    final: Path | None
    report: Path | None

    def __init__(self, output_dir: str | Path) -> None:
        folder = Path(output_dir)
        if not (folder / CONFIG).is_file():
            raise InputError(f"OUTPUT_DIR {folder}: holds no run, since {CONFIG} is not there; name that of a training")
        history, _ = metrics_by_iteration(folder / METRICS) if (folder / METRICS).is_file() else ([], 0)
        best, ap = best_weights(folder)
        values = {
            "output_dir": folder,
            "history": tuple(history),
            "metrics": {name: value for line in history for name, value in line.items() if name != "iteration"},
            "best": best,
            "AP": ap,
        }
        for name, file in {"final": FINAL_CHECKPOINT, "report": REPORT}.items():
            values[name] = folder / file if (folder / file).is_file() else None
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Return the iterations, counted from 0, at which a metric was measured, and its values.

        Raises InputError for a name that no metric has, with those that there are.
        """
        points = [(int(line["iteration"]), line[name]) for line in self.history if name in line]
        if not points:
            raise InputError(f"{self.output_dir} has no metric {name!r}; it has {', '.join(sorted(self.metrics))}")
        return [iteration for iteration, _ in points], [value for _, value in points]

    def predictor(
        self,
        *,
        score_thresh: float | None = None,
        batch_size: int = 1,
        device: str | None = None,
        tile: int | None = None,
        overlap: float | None = None,
    ) -> Predictor:
        """Load the best, else the last, model; the options and what is raised are those of `Predictor`."""
        options: Any = {"score_thresh": score_thresh, "batch_size": batch_size, "device": device}
        return Predictor.from_run(self.output_dir, **options, tile=tile, overlap=overlap)


def train(
    config: str | Path | Sequence[str | Path] | CfgNode,
    *,
    train: _PathLike | Sequence[_PathLike] = (),
    val: _PathLike | Sequence[_PathLike] = (),
    split_val: float | tuple[float, int] | None = None,
    classes: Sequence[str] = (),
    merge_classes: Sequence[str] = (),
    tile: int | None = None,
    overlap: float | None = None,
    batch: int | Literal["auto"] | None = None,
    weights: str | Path | None = None,
    output_dir: str | Path | None = None,
    overrides: Mapping[str, object] | Sequence[str] = (),
    resume: bool | Literal["auto"] = False,
    allow_changes: bool = False,
    scale_lr: bool = False,
    skip_bad_images: int = 0,
    plugin: _PathLike | Sequence[_PathLike] = (),
    num_gpus: int = 1,
) -> Run:
    """Train a detector and return its run.

    Everything is checked first, as on the command line, whose flags have the names of these arguments. Ctrl-C stops
    after a step and saves. With one process the training is in this one, and the only one at a time; nothing of the
    process is left changed but that plug-ins stay imported, a GPU's generators are seeded, and PyTorch's limit of
    recompilations may be higher. Outside of the main thread signals are not handled. With several, each imports the
    main script anew, so this stands below ``if __name__ == "__main__":``.

    Args:
        config: YAML file, or files, of which later ones win, "focal_det://NAME.yaml" for one of the package's; or a
            configuration, of which the values that differ from the defaults count.
        train, val: folders or files of your own data sets, in any format that is recognised.
        split_val: the share of the images to train on that is evaluated on instead, or share and seed.
        classes: to keep, of your own sets; all if there are none.
        merge_classes: texts "NEW=OLD,OLD".
        tile, overlap: side in pixels of the tiles of large images, and the share by which they overlap.
        batch: images in a step, of all processes, or "auto" for as many as fit into memory; lr and schedule are fitted
            to it. None for SOLVER.IMS_PER_BATCH.
        weights: checkpoint to start from; None for MODEL.WEIGHTS.
        output_dir: None for OUTPUT_DIR.
        overrides: keys with their values, or KEY, VALUE, KEY, VALUE, ...; they win over the files.
        resume: from the last checkpoint of the folder; "auto" starts afresh where there is none.
        allow_changes: resume with settings or data that differ.
        scale_lr: fit lr and schedule to SOLVER.IMS_PER_BATCH.
        skip_bad_images: how many bad images may be left out.
        plugin: modules and files to import first, which register parts of your own.
        num_gpus: processes, one per GPU.

    Raises:
        InputError: bad input, with all problems, or a training in another thread; nothing was written or started.
        TrainingStopped: a signal stopped the training, and all is saved; it is no Exception.
        TrainingError: a fault while running.
    """
    values: dict[str, tuple[str, Any]] = {
        "classes": ("DATASETS.CLASSES", list(classes) or None),
        "merge_classes": ("DATASETS.MERGE_CLASSES", list(merge_classes) or None),
        "split_val": (
            "DATASETS.SPLIT_VAL",
            [split_val, 0] if isinstance(split_val, int | float) else split_val and list(split_val),
        ),
        "tile": ("MODEL.FOCAL_DET.TILES.SIZE", tile),
        "overlap": ("MODEL.FOCAL_DET.TILES.OVERLAP", overlap),
        "weights": ("MODEL.WEIGHTS", weights and str(weights)),
        "output_dir": ("OUTPUT_DIR", output_dir and str(output_dir)),
    }
    with _alone(), _process_kept(), tempfile.TemporaryDirectory() as temporary:
        silence_known_warnings()
        load_plugins(plugins := _texts(plugin))
        options = TrainOptions(
            config_file=_config_files(config, Path(temporary)),
            overrides=_words(overrides),
            of_flags=tuple(KeyFlag(name, key, _word(v)) for name, (key, v) in values.items() if v is not None),
            batch=batch,
            plugin=plugins,
            train_data=_texts(train),
            val_data=_texts(val),
            resume="auto" if resume == "auto" else "required" if resume else None,
            allow_changes=allow_changes,
            scale_lr=scale_lr,
            skip_bad_images=skip_bad_images,
            num_gpus=num_gpus,
        )
        cluster = cluster_environment(os.environ)
        code = run_as_launcher(options) if cluster is None else run_as_rank(options, cluster)
        folder = read_config(options.config_file, options.settings).cfg.OUTPUT_DIR
    if code == EXIT_STOPPED:
        raise TrainingStopped(f"the training was stopped by a signal; all is saved, and resume=True continues {folder}")
    if code != EXIT_DONE:
        raise TrainingError(f"a process of the training failed, and has said why; see also {Path(folder, LOG)}")
    return Run(folder)


def _texts(given: _PathLike | Sequence[_PathLike]) -> tuple[str, ...]:
    return (str(given),) if isinstance(given, str | Path) else tuple(map(str, given))


def _words(overrides: Mapping[str, object] | Sequence[str]) -> tuple[str, ...]:
    """Return them as KEY VALUE ..., where a value is a literal of Python's, or a text."""
    if not isinstance(overrides, Mapping):
        return tuple(map(str, overrides))
    return tuple(word for key, value in overrides.items() for word in (key, _word(value)))


def _word(value: object) -> str:
    return value if isinstance(value, str) else repr(value)


def _config_files(config: str | Path | Sequence[str | Path] | CfgNode, folder: Path) -> tuple[str, ...]:
    """Return the files; a configuration becomes one, with the keys that differ from their defaults."""
    if not isinstance(config, CfgNode):
        return _texts(config)
    defaults = plain_values(default_config())
    tree: dict[str, Any] = {}
    for key, value in plain_values(config).items():
        if key not in defaults or value != defaults[key]:
            *groups, leaf = key.split(".")
            node = tree
            for group in groups:
                node = node.setdefault(group, {})
            node[leaf] = value
    file = folder / CONFIG
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return (str(file),)


@contextmanager
def _alone() -> Iterator[None]:
    """Refuse a second training beside one of another thread: Detectron2 would write the metrics of both as one's."""
    if not _running.acquire(blocking=False):
        raise InputError("a training is already running in this process; wait for it, or start another process")
    try:
        yield
    finally:
        _running.release()


@contextmanager
def _process_kept() -> Iterator[None]:
    """At the end put back what a training changes in its process."""
    numbers = (*signals.STOP_SIGNALS, signal.SIGCHLD)
    handlers = {number: signal.getsignal(number) for number in numbers}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    start_method = multiprocessing.get_start_method(allow_none=True)
    environment, catalogues = dict(os.environ), [(each, dict(each.data)) for each in (DatasetCatalog, MetadataCatalog)]
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    logging_before = [(log, log.level, log.propagate, [*log.handlers]) for log in loggers]
    random_states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    ended_thread = threading.excepthook
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    cudnn_before = cudnn.benchmark, cudnn.allow_tf32
    try:
        with warnings.catch_warnings():
            yield
    finally:
        threading.excepthook = ended_thread
        cudnn.benchmark, cudnn.allow_tf32 = cudnn_before
        torch.set_float32_matmul_precision(precision)
        random.setstate(random_states[0])
        np.random.set_state(random_states[1])
        torch.set_rng_state(random_states[2])
        end_log()
        for log, level, propagates, kept in logging_before:
            log.handlers[:], log.propagate = kept, propagates
            log.setLevel(level)
        for catalogue, entries in catalogues:
            catalogue.clear()
            catalogue.update(entries)
        os.environ.clear()
        os.environ.update(environment)
        multiprocessing.set_start_method(start_method, force=True)
        signals.install({number: handler for number, handler in handlers.items() if handler is not None})
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        sys.stdout.flush()
