"""One run, as every process of it sees it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from .. import plugin  # noqa: F401 - a spawned process starts with empty registries
from ..data.catalog import JsonDataset, register_datasets
from .advice import DISK_ERRORS
from .checkpoints import RunCheckpointer
from .config_changes import Change
from .devices import share_cores
from .hooks import TrainingStopped
from .last_page import write_last_page
from .last_words import loss_warning, scores_line
from .run_record import RunRecord
from .run_setup import set_up_run
from .trainer import Trainer


@dataclass(frozen=True)
class Job:
    """What to do: a frozen configuration whose data sets have been prepared.

    checkpoint: that a training goes on from; None starts it anew.
    record: of a training, what each of its checkpoints says of it.
    notes: warnings about it, said before the start.
    changes: of the configuration from its defaults.
    """

    cfg: CfgNode
    json_datasets: tuple[JsonDataset, ...]
    eval_only: bool
    processes_per_machine: int
    checkpoint: Path | None = None
    record: RunRecord | None = None
    notes: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()


def run_job(job: Job, stopped: Any) -> None:
    """Train or evaluate.

    Args:
        stopped: an event shared by the processes; set when a signal ended the training after saving.
    """
    cfg = _with_one_seed(job.cfg)
    share_cores(cfg, job.processes_per_machine)
    register_datasets((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST), job.json_datasets)
    set_up_run(cfg, training=not job.eval_only, changes=job.changes)
    if job.notes and comm.is_main_process():
        _log().warning("Said before the start:\n" + "\n".join(job.notes))
    if job.eval_only:
        model = Trainer.build_model(cfg)
        RunCheckpointer(model, save_dir=cfg.OUTPUT_DIR).load(cfg.MODEL.WEIGHTS)
        Trainer.test(cfg, model)
        Trainer.draw(cfg, model)
        return
    trainer = Trainer(cfg, record=job.record, checkpoint=job.checkpoint)
    trainer.resume_or_load(resume=job.checkpoint is not None)
    if trainer.start_iter >= trainer.max_iter:
        _log().info(
            f"{cfg.OUTPUT_DIR} is finished: it has the {trainer.start_iter} iterations of SOLVER.MAX_ITER "
            f"{trainer.max_iter}. Evaluating it; raise SOLVER.MAX_ITER to train on."
        )
    try:
        trainer.train()
    except TrainingStopped:
        stopped.set()
        return
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        what = Path(error.filename or Path(cfg.OUTPUT_DIR) / "log, metrics or pictures")
        raise trainer.checkpointer.not_written(what, error) from error
    except FloatingPointError:
        _log().error(
            "The training diverged. What helps: a lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS, "
            "SOLVER.CLIP_GRADIENTS.ENABLED True; and a look at the boxes, with --preflight-only"
        )
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


def _with_one_seed(cfg: CfgNode) -> CfgNode:
    """With the main process's SEED: one that was drawn, each machine drew for itself."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = comm.all_gather(cfg.SEED)[0]
    cfg.freeze()
    return cfg


def _log() -> logging.Logger:
    return logging.getLogger(__name__)
