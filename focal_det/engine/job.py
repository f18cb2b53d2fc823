"""One run, as every process of it sees it."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from .. import plugin  # noqa: F401 - a spawned process starts with empty registries
from ..data.catalog import JsonDataset, register_datasets
from ..errors import EXIT_FAULT, TrainingError
from .advice import DISK_ERRORS
from .checkpoints import RunCheckpointer
from .config_changes import Change
from .devices import share_cores
from .faults import what_helps
from .last_page import write_last_page
from .last_words import loss_warning, scores_line
from .listening import Listening
from .run_record import RunRecord
from .run_setup import log_file, set_up_run
from .stopping import Stopping, TrainingStopped, stopped_words
from .trainer import Trainer
from .watch import Watch
from .workers import end_workers, start_workers_by_fork, workers_ignored


@dataclass(frozen=True)
class Job:
    """What to do: a frozen configuration whose data sets have been prepared.

    checkpoint: that a training goes on from; None starts it anew.
    record: of a training, what each of its checkpoints says of it.
    notes: warnings about it, said before the start.
    changes: of the configuration from its defaults.
    hang_timeout: seconds in which no rank gets further, after which all end; 0 is never.
    """

    cfg: CfgNode
    json_datasets: tuple[JsonDataset, ...]
    eval_only: bool
    processes_per_machine: int
    checkpoint: Path | None = None
    record: RunRecord | None = None
    notes: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    hang_timeout: float = 0


def run_job(job: Job, stopped: Any) -> None:
    """Train or evaluate.

    Args:
        stopped: an event shared by the processes; set when a signal ended the training after saving.

    Raises:
        TrainingError: whatever went wrong, with what helps, in one line; its trace is in the log. Of several ranks each
            prints that line instead, and ends with exit code 1.
    """
    stopping = None if job.eval_only else Stopping()
    # Who evaluates alone is ended by the command's own handlers; a rank may wait where these are not called.
    evaluating = nullcontext() if comm.get_world_size() == 1 else Listening()
    with Watch(job.hang_timeout) as watch, stopping or evaluating as watch.listening:
        try:
            _set_up(job)
            if stopping is None:
                model = Trainer.build_model(job.cfg)
                RunCheckpointer(model, save_dir=job.cfg.OUTPUT_DIR).load(job.cfg.MODEL.WEIGHTS)
                watch.progress.follow_model(model)
                Trainer.test(job.cfg, model)
                Trainer.draw(job.cfg, model)
            else:
                _train(job, stopping, watch)
        except TrainingStopped:
            stopped.set()
        except Exception as error:
            with workers_ignored():  # else one that was killed would end this here, before the others know
                _log().debug("Its trace:", exc_info=True)
                where = "" if isinstance(error, TrainingError) else f"(trace: {log_file(job.cfg)})"
                words = " ".join(filter(None, (watch.tell(error), what_helps(error), where)))
                end_workers()  # else Python does at its end, where PyTorch would raise it
            if watch.ranks == 1:
                raise TrainingError(words) from error
            print(f"error: {words}", file=sys.stderr, flush=True)
            os._exit(EXIT_FAULT)  # at once: the ends of process groups wait for ranks that are gone


def _set_up(job: Job) -> None:
    cfg = job.cfg
    share_cores(cfg, job.processes_per_machine)
    start_workers_by_fork()
    register_datasets((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST), job.json_datasets)
    set_up_run(cfg, training=not job.eval_only, changes=job.changes)
    if job.notes and comm.is_main_process():
        _log().warning("Said before the start:\n" + "\n".join(job.notes))


def _train(job: Job, stopping: Stopping, watch: Watch) -> None:
    cfg = job.cfg
    if (number := stopping.agreement.now(stopping.asked)) != 0:  # it came while the ranks started
        _log().warning(stopped_words(number, 0, 0, cfg.SOLVER.MAX_ITER))
        raise TrainingStopped
    trainer = Trainer(cfg, record=job.record, checkpoint=job.checkpoint)
    trainer.resume_or_load(resume=job.checkpoint is not None)
    watch.follow(trainer)
    if trainer.start_iter >= trainer.max_iter:
        _log().info(
            f"{cfg.OUTPUT_DIR} is finished: it has the {trainer.start_iter} iterations of SOLVER.MAX_ITER "
            f"{trainer.max_iter}. Evaluating it; raise SOLVER.MAX_ITER to train on."
        )
    try:
        trainer.train()
    except TrainingStopped:
        _log().warning(stopped_words(stopping.agreed, stopping.done, trainer.start_iter, trainer.max_iter))
        raise
    except OSError as error:
        if error.errno in DISK_ERRORS:
            what = Path(error.filename or Path(cfg.OUTPUT_DIR) / "log, metrics or pictures")
            raise trainer.checkpointer.not_written(what, error) from error
        raise
    write_last_page(cfg.OUTPUT_DIR)
    if comm.is_main_process():
        words = loss_warning([value for value, _ in trainer.storage.histories()["total_loss"].values()])
        if words:
            _log().warning(words)
        scores = scores_line(cfg, {name: value for name, (value, _) in trainer.storage.latest().items()})
        _log().info(
            f"Done: {trainer.max_iter} iterations, {scores}. Checkpoints, metrics.json and log.txt: {cfg.OUTPUT_DIR}"
        )


def _log() -> logging.Logger:
    return logging.getLogger(__name__)
