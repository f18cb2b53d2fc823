"""A training or an evaluation as each of its processes runs it, and what it says at its end."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng

from .. import plugin  # noqa: F401 - a spawned process starts with empty registries
from ..checkpoint.checkpointer import RunCheckpointer
from ..checkpoint.disk_space import DISK_ERRORS
from ..checkpoint.run_record import RunRecord
from ..config.diff import Change
from ..config.expected_results import unmet_expectations
from ..config.unused_keys import without_unread_keys
from ..data.catalog import JsonDataset, register_datasets
from ..distributed.failures import what_helps
from ..distributed.graceful_stop import GracefulStop, TrainingStopped
from ..distributed.heartbeat import busy
from ..distributed.signals import SignalListener, end_workers, start_workers_by_fork, workers_ignored
from ..distributed.watchdog import RankWatchdog
from ..environment import share_cores, source_version, whole_machine
from ..errors import TrainingError
from ..files import write_text_whole
from ..modeling.compiled import share_compilers
from ..output_layout import CONFIG, CONFIG_CHANGES, EMA, ENVIRONMENT, INFERENCE, LOG, TTA, score_prefix
from ..report import write_report
from ..tracking.log import start_log, watch_threads
from .trainer import Trainer

logger = logging.getLogger(__name__)
_WITH_TTA = " with test-time augmentation"
_COMPARED = 20  # iterations at the start and at the end whose median losses are compared
_DIVERGED = 2  # times the loss at the start: a loss above that at the end is not noise


@dataclass(frozen=True)
class Job:
    """What to do: a frozen configuration whose data sets have been prepared.

    checkpoint: that a training resumes from; None starts it anew.
    record: of a training, saved with each of its checkpoints.
    notes: warnings about it, said before the start.
    changes: of the configuration from its defaults.
    plugins: modules and absolute paths of files that each process imports first.
    hang_timeout: seconds without progress of any rank, after which all end; 0 is never.
    """

    cfg: CfgNode
    json_datasets: tuple[JsonDataset, ...]
    eval_only: bool
    processes_per_machine: int
    checkpoint: Path | None = None
    record: RunRecord | None = None
    notes: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    plugins: tuple[str, ...] = ()
    hang_timeout: float = 0


def run_job(job: Job, stopped: Any, watchdog: RankWatchdog) -> None:
    """Train or evaluate.

    Args:
        stopped: an event shared by the processes; set when a signal ended the training after saving.
        watchdog: of this rank, open.

    Raises:
        TrainingError: whatever went wrong, with what helps, in one line; its trace is in the log.
    """
    stopping = None if job.eval_only else GracefulStop()
    measured: dict[str, float] = {}
    # A single process that evaluates is ended by the command's own handlers; a rank may wait where they are not called.
    evaluating = nullcontext() if comm.get_world_size() == 1 else SignalListener()
    with stopping or evaluating as watchdog.listener:
        try:
            _set_up(job)
            measured = _evaluate(job, watchdog) if stopping is None else _train(job, stopping, watchdog)
        except TrainingStopped:
            assert stopping is not None
            logger.warning(stopping.stopped_message(job.cfg.SOLVER.MAX_ITER))
            stopped.set()
            return
        except Exception as error:
            with workers_ignored():  # else one that was killed would end this here, before the others know
                logger.debug("Its trace:", exc_info=True)
                where = "" if isinstance(error, TrainingError) else f"(trace: {_log_file(job.cfg)})"
                said, helps = watchdog.report_failure(error), what_helps(error)
                message = " ".join(filter(None, (f"{said.rstrip('.')}." if helps else said, helps, where)))
                end_workers()  # else Python does at its end, where PyTorch would raise it
            raise TrainingError(message) from error
    if comm.is_main_process() and (unmet := unmet_expectations(job.cfg, measured)):
        raise TrainingError(
            f"TEST.EXPECTED_RESULTS is not met; all is done and saved in {job.cfg.OUTPUT_DIR}:\n" + "\n".join(unmet)
        )


def _set_up(job: Job) -> None:
    """Do what Detectron2's `default_setup` does, with environment and configuration in files, not on the screen.

    OUTPUT_DIR gets `log.txt`, `config.yaml`, `config_changes.json` and `environment.txt`; an evaluation writes the
    latter three to `inference/`, so that the training's stay what they were.
    """
    cfg, folder = job.cfg, Path(job.cfg.OUTPUT_DIR)
    share_cores(cfg, job.processes_per_machine)
    if cfg.MODEL.FOCAL_DET.SPEED.COMPILE:
        share_compilers(job.processes_per_machine)
    start_workers_by_fork()
    trained_on = () if job.eval_only else cfg.DATASETS.TRAIN
    register_datasets((*trained_on, *cfg.DATASETS.TEST), job.json_datasets)
    folder.mkdir(parents=True, exist_ok=True)
    start_log(_log_file(cfg), comm.get_rank())
    watch_threads()
    if comm.is_main_process():
        record = folder / INFERENCE if job.eval_only else folder
        record.mkdir(exist_ok=True)
        write_text_whole(record / CONFIG, without_unread_keys(cfg).dump())
        rows = [change._asdict() for change in job.changes]
        write_text_whole(record / CONFIG_CHANGES, json.dumps(rows, indent=1) + "\n")
        num_gpus = comm.get_world_size() if cfg.MODEL.DEVICE.startswith("cuda") else 0
        environment = f"focal_det {source_version()}\nhardware  {whole_machine(num_gpus)}\n{collect_env_info()}\n"
        write_text_whole(record / ENVIRONMENT, environment)
        logger.info(f"Resolved configuration: {record / CONFIG}")
        logger.info(f"{len(rows)} keys differ from their defaults: {record / CONFIG_CHANGES}")
        if job.notes:
            logger.warning("Said before the start:\n" + "\n".join(job.notes))
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not job.eval_only
    if cfg.FLOAT32_PRECISION:
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
        torch.backends.cudnn.allow_tf32 = cfg.FLOAT32_PRECISION != "highest"


def _log_file(cfg: CfgNode) -> Path:
    """Return the log of this process, as Detectron2 names it."""
    rank = comm.get_rank()
    return Path(cfg.OUTPUT_DIR) / (f"{LOG}.rank{rank}" if rank else LOG)


def _evaluate(job: Job, watchdog: RankWatchdog) -> dict[str, float]:
    """Evaluate; return what was measured by name, on the main process."""
    cfg, model = job.cfg, Trainer.build_model(job.cfg)
    RunCheckpointer(model, save_dir=cfg.OUTPUT_DIR).load(cfg.MODEL.WEIGHTS)
    watchdog.progress.follow_model(model)
    measured = flatten_results_dict(Trainer.test(cfg, model))
    measured |= flatten_results_dict(Trainer.test_with_augmentation(cfg, model))
    Trainer.draw(cfg, model)
    if comm.is_main_process():
        logger.info(f"Done: {scores_line(cfg, measured)}. Detections: {Path(cfg.OUTPUT_DIR) / INFERENCE}")
    return measured


def _train(job: Job, stopping: GracefulStop, watchdog: RankWatchdog) -> dict[str, float]:
    """Train and evaluate; return the last value of all that was measured, on the main process."""
    cfg = job.cfg
    stopping.stop_if_requested()  # by a signal that came while the ranks started
    trainer = Trainer(cfg, record=job.record, checkpoint=job.checkpoint, stopping=stopping)
    trainer.resume_or_load(resume=job.checkpoint is not None)
    if watchdog.ranks > 1:
        watchdog.progress.follow(trainer)
        if trainer.average:
            watchdog.progress.follow_model(trainer.average.model)
    if trainer.start_iter >= trainer.max_iter:
        logger.info(
            f"{cfg.OUTPUT_DIR} is finished: it has the {trainer.start_iter} iterations of SOLVER.MAX_ITER "
            f"{trainer.max_iter}. Evaluating it; raise SOLVER.MAX_ITER to train on."
        )
    with trainer.trackers:
        try:
            trainer.train()
        except OSError as error:
            if error.errno in DISK_ERRORS:
                what = Path(error.filename or Path(cfg.OUTPUT_DIR) / "log, metrics or images")
                raise trainer.checkpointer.not_written(what, error) from error
            raise
        write_last_page(cfg.OUTPUT_DIR)
    measured = {name: value for name, (value, _) in trainer.storage.latest().items()}
    if comm.is_main_process():
        if warning := loss_warning([value for value, _ in trainer.storage.histories()["total_loss"].values()]):
            logger.warning(warning)
        scores = scores_line(cfg, measured)
        logger.info(
            f"Done: {trainer.max_iter} iterations, {scores}. Checkpoints, metrics.json and log.txt: {cfg.OUTPUT_DIR}"
        )
    return measured


def scores_line(cfg: Any, latest: Mapping[str, float]) -> str:
    """Return AP, AP50 and AP75 of each test set, also of the EMA and with test-time augmentation, as last measured."""
    sets = cfg.DATASETS.TEST
    parts = []
    for name in sets:
        for start, suffix, of_what in (("", "", ""), (f"{EMA}/", "", " of the EMA"), ("", TTA, _WITH_TTA)):
            prefix = start + score_prefix(name, sets, suffix)
            known = [score for score in ("AP", "AP50", "AP75") if prefix + score in latest]
            if found := [f"{score} {latest[prefix + score]:.1f}" for score in known]:
                parts.append(f"{', '.join(found)} on {name}{of_what}")
    return "; ".join(parts) or "not scored"


def loss_warning(losses: Sequence[float]) -> str | None:
    """Return a warning if the loss of each iteration ended far above its start, else None."""
    if len(losses) < 2 * _COMPARED:
        return None
    first, last = median(losses[:_COMPARED]), median(losses[-_COMPARED:])
    if last <= _DIVERGED * first:
        return None
    return (
        f"The loss ended at {last:.3g}, where it began at {first:.3g}: the training diverged. What helps: a lower "
        "SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS"
    )


def write_last_page(output_dir: str) -> None:
    """Write OUTPUT_DIR/report.html on the main process; see `write_report`.

    The training is done and saved by then, so whatever goes wrong is logged and not raised.
    """
    if not comm.is_main_process():
        return
    try:
        with busy():
            logger.info(f"Report, to be opened in a browser: {write_report(output_dir)}")
    except Exception as error:
        logger.warning(
            f"The report could not be made ({type(error).__name__}: {error}). All else is done and saved; "
            f"to try again: focal-det report {output_dir}"
        )
