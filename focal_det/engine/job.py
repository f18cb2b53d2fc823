"""One run, as every process of it sees it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, JSONWriter

from .. import plugin  # noqa: F401 - a spawned process starts with empty registries
from ..data.catalog import JsonDataset, register_datasets
from .devices import share_cores
from .hooks import TrainingStopped
from .last_page import write_last_page
from .run_setup import set_up_run
from .trainer import Trainer


@dataclass(frozen=True)
class Job:
    """What to do: a frozen configuration whose data sets have been prepared."""

    cfg: CfgNode
    json_datasets: tuple[JsonDataset, ...]
    eval_only: bool
    resume: bool
    processes_per_machine: int


def run_job(job: Job, stopped: Any) -> None:
    """Train or evaluate.

    Args:
        stopped: an event shared by the processes; set when a signal ended the training after saving.
    """
    cfg = job.cfg
    share_cores(cfg, job.processes_per_machine)
    register_datasets((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST), job.json_datasets)
    set_up_run(cfg, training=not job.eval_only)
    if job.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).load(cfg.MODEL.WEIGHTS)
        _evaluate(cfg, model)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=job.resume)
    if trainer.start_iter >= trainer.max_iter:
        _log().info(
            f"{cfg.OUTPUT_DIR} is finished: it has the {trainer.start_iter} iterations of SOLVER.MAX_ITER "
            f"{trainer.max_iter}. Evaluating it; raise SOLVER.MAX_ITER to train on."
        )
        _evaluate(cfg, trainer.model, after_iteration=trainer.max_iter - 1)
        write_last_page(cfg.OUTPUT_DIR)
        return
    try:
        trainer.train()
    except TrainingStopped:
        stopped.set()
        return
    write_last_page(cfg.OUTPUT_DIR)
    if comm.is_main_process():
        _log().info(f"Done: {trainer.max_iter} iterations. Checkpoints, metrics.json and log.txt: {cfg.OUTPUT_DIR}")


def _evaluate(cfg: CfgNode, model: Any, after_iteration: int | None = None) -> None:
    """Evaluate and draw; after a training's last iteration the figures go into its metrics.json, as at its end."""
    results = Trainer.test(cfg, model)
    if after_iteration is not None and comm.is_main_process():
        with EventStorage(after_iteration) as storage:
            storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
            JSONWriter(str(Path(cfg.OUTPUT_DIR) / "metrics.json")).write()
    Trainer.draw(cfg, model)


def _log() -> logging.Logger:
    return logging.getLogger(__name__)
