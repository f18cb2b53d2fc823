"""The trainer: Detectron2's, which resumes exactly, stops on a signal, checks its losses and always evaluates."""

from __future__ import annotations

import copy
import logging
import sys
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PeriodicWriter
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from ..checkpoint.checkpointer import RunCheckpointer, retention_message
from ..checkpoint.class_rows import ClassRows
from ..checkpoint.run_record import RunRecord
from ..config.sampling import images_of_epoch
from ..data.shared_records import build_test_loader
from ..data.train_loader import TrainLoader, build_train_loader
from ..distributed.cluster import unwrapped
from ..distributed.graceful_stop import GracefulStop, stoppable
from ..distributed.heartbeat import busy, compiling
from ..divergence.check import NonFiniteCheck
from ..evaluators.augmented_detector import AugmentedDetector
from ..evaluators.set_evaluators import explain_nan_scores, make_evaluator
from ..modeling.retinanet import FocalRetinaNet
from ..output_layout import EMA, FINAL_CHECKPOINT, INFERENCE, INFERENCE_EMA, INFERENCE_TTA, METRICS, TTA
from ..tracking import services, writers  # noqa: F401 - the first registers the trackers
from ..tracking.metrics_file import MetricHistory, MetricsFile, TensorBoardFile
from ..tracking.trackers import Trackers
from .best_checkpoint import BestCheckpointer, ap_name, best_of
from .draw_detections import DrawDetections, draw_detections
from .early_stopping import EarlyStopping, StoppedEarly
from .hooks import LogAssignment, StopOnSignal
from .initial_loss import InitialLossCheck
from .model_detector import evaluated_in_tiles, reading_cfg
from .train_step import (
    WRITE_PERIOD,
    Float16Trainer,
    fused,
    in_parallel,
    lay_out_as_parameters,
    make_step,
    start_momentum,
    when_due,
    with_last_lr,
)
from .validation_loss import ValidationLoss
from .weight_average import AverageWeights, WeightAverage

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Train, evaluate and draw as a frozen configuration says.

    Args:
        cfg: frozen; its data sets are registered.
        checkpoint: what `resume_or_load` resumes; None for what last_checkpoint names.
        stopping: how a signal stops the training; None if signals are not handled.

    Raises:
        TrainingStopped: from `train`, when a signal stopped it and all is saved.
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        record: RunRecord | None = None,
        checkpoint: Path | None = None,
        stopping: GracefulStop | None = None,
    ) -> None:
        # DefaultTrainer's own constructor would put the model on the GPU of the rank's number, which a scheduler may
        # not show to it: the same parts in the same order, with a wrapper that fits the device.
        super(DefaultTrainer, self).__init__()
        self.cfg, self.start_iter, self.max_iter = cfg, 0, cfg.SOLVER.MAX_ITER
        model, own = self.build_model(cfg), cfg.MODEL.FOCAL_DET
        self.average = WeightAverage(model, own.EMA.DECAY) if own.EMA.DECAY else None
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = in_parallel(model)
        is_due = when_due(cfg)
        self._trainer = make_step(cfg, model, data_loader, optimizer, is_due)
        scaled = isinstance(self._trainer, Float16Trainer)  # such gradients may overflow, and are then left out
        check = NonFiniteCheck(cfg, is_due, gradients=not scaled, agreement=stopping.agreement if stopping else None)
        self._trainer.register_hooks([check])
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)

        self.metric_history = MetricHistory()
        self.checkpointer = RunCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            kept=own.CHECKPOINTS_KEPT,
            record=record,
            resumed=checkpoint,
            class_rows=None if checkpoint else ClassRows.of(cfg, record.class_names if record else None),
            trainer=weakref.proxy(self),
            metrics=self.metric_history,
            **({EMA: self.average} if self.average else {}),
        )
        self.metrics_file = MetricsFile(Path(cfg.OUTPUT_DIR) / METRICS)
        self.tensorboard = TensorBoardFile(Path(cfg.OUTPUT_DIR))
        self.trackers = Trackers(cfg, tuple(cfg.MODEL.FOCAL_DET.TRACKERS) if comm.is_main_process() else ())
        self.ap_name = ap_name(cfg, record)
        self.best_checkpointers = [BestCheckpointer(self.checkpointer, self.ap_name)]
        if self.average:
            self.best_checkpointers.append(BestCheckpointer(self.checkpointer, f"{EMA}/{self.ap_name}", self.average))
        metric = own.PATIENCE_METRIC or self.ap_name if own.PATIENCE else ""
        self.early_stopping = EarlyStopping(cfg, self.checkpointer, metric) if metric else None
        self.stopping = stopping
        self.register_hooks(self.build_hooks())
        logger.info(writers.speed_options_line(cfg, unwrapped(model)))
        if message := retention_message(self.checkpointer.kept, self.max_iter, cfg.SOLVER.CHECKPOINT_PERIOD):
            logger.info(message)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        """Build the model on its device; log its size instead of printing every layer."""
        model: torch.nn.Module = build_model(cfg)
        if isinstance(model, FocalRetinaNet):
            model.runner.prepare_within(compiling)
        logger.info(f"{cfg.MODEL.META_ARCHITECTURE}: {writers.parameters_line(model)}")
        return model

    def resume_or_load(self, resume: bool = True) -> None:
        """Do as Detectron2 does, but take a resumed run's lr and the like from the configuration.

        If the head stays as it was initialised, its first loss will be checked.
        """
        model = unwrapped(self.model)
        head = model.head if isinstance(model, FocalRetinaNet) else torch.nn.Module()
        initial = copy.deepcopy(head.state_dict())
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        base_lrs = self.scheduler.base_lrs
        super().resume_or_load(resume)
        if self.start_iter > 0:
            self.scheduler.base_lrs = base_lrs
            lrs = self.scheduler.get_lr()
            for group, configured, lr in zip(self.optimizer.param_groups, settings, lrs, strict=True):
                group.update({**configured, "lr": lr})
            lay_out_as_parameters(self.optimizer)
            start_momentum(self.optimizer)
            if isinstance(self.data_loader, TrainLoader):
                self.data_loader.start = self.start_iter
        is_fresh = all(torch.equal(initial[name], value) for name, value in head.state_dict().items())
        if isinstance(model, FocalRetinaNet) and is_fresh:
            prior, parts = self.cfg.MODEL.RETINANET.PRIOR_PROB, self.cfg.MODEL.FOCAL_DET.ACCUMULATION
            self.register_hooks([InitialLossCheck(model.criterion, prior, parts)])

    def before_train(self) -> None:
        """Do as Detectron2 does, and make up for what may not have followed a resumed run's last saved step."""
        super().before_train()
        if self.start_iter == 0:
            self.tensorboard.continue_after(-1)  # a start before this one may have ended before its first checkpoint
            self.trackers.start(resumes=False)
            return
        last = self.start_iter - 1
        self.iter = self.storage.iter = last  # which it stays if there is nothing left to train
        self.metric_history.recall(self.storage)
        if self.start_iter >= self.max_iter and Path(self.checkpointer.get_checkpoint_file()).name != FINAL_CHECKPOINT:
            self.checkpointer.save(Path(FINAL_CHECKPOINT).stem, iteration=last)  # killed between its last two
        # Do what follows the checkpoint's step if the metrics do not have it, or if its evaluation ends the run.
        is_done, is_over = False, self.early_stopping is not None and self.early_stopping.is_over()
        if comm.is_main_process():
            is_done = self.metrics_file.has_beyond(last, self.ap_name) and not is_over
            self.metrics_file.continue_after(last if is_done else last - 1)
            self.tensorboard.continue_after(self.metrics_file.written)
        self.trackers.start(resumes=True)
        if not comm.all_gather(is_done)[0]:  # evaluating is for all ranks or none
            for hook in self._after_saving:
                hook.after_step()

    def after_train(self) -> None:
        """Do as Detectron2 does; after a fault only write what was measured, and evaluate nothing."""
        for line in writers.speed_summary(unwrapped(self.model)):
            logger.info(line)
        if self.early_stopping and self.early_stopping.has_stopped:  # what has just been evaluated is not once more
            self._hooks: list[HookBase] = [hook for hook in self._hooks if hook not in self._evaluating]
        if not isinstance(sys.exc_info()[1], Exception):
            super().after_train()
            return
        for writer in (hook for hook in self._hooks if isinstance(hook, PeriodicWriter)):
            writer.after_train()

    def state_dict(self) -> dict[str, Any]:
        """Return Detectron2's state; after the training with the last iteration done, where it would count one more."""
        return {**super().state_dict(), "iteration": min(self.iter, self.max_iter - 1)}

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """Build the loader of the training sets; see `focal_det.data.train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """Build Detectron2's loader of a test set, which a signal ends; see `stoppable`."""
        with busy():
            return stoppable(build_test_loader(reading_cfg(cfg), dataset_name))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Build Detectron2's optimizer; with SPEED.FUSED_SGD one kernel updates all parameters."""
        optimizer: torch.optim.Optimizer = super().build_optimizer(cfg, model)
        return fused(optimizer) if cfg.MODEL.FOCAL_DET.SPEED.FUSED_SGD else optimizer

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """Build Detectron2's scheduler, which also has an lr after the last step."""
        return with_last_lr(cfg, super().build_lr_scheduler(cfg, optimizer))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, inference: str = INFERENCE) -> DatasetEvaluator:
        """Build the evaluator that the set's evaluator_type asks for; see `make_evaluator`."""
        with busy():
            return make_evaluator(cfg, dataset_name, inference)

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Evaluate as Detectron2 does, and explain in the log every AP that is nan."""
        results: dict[str, Any] = super().test(cfg, evaluated_in_tiles(cfg, model), evaluators)
        explain_nan_scores(cfg.DATASETS.TEST, results)
        return results

    def test_average(self, average: WeightAverage) -> dict[str, Any]:
        """Evaluate the EMA of the weights; the results have names that begin with "ema/"."""
        logger.info("Evaluating the EMA of the weights")
        evaluators = [self.build_evaluator(self.cfg, name, INFERENCE_EMA) for name in self.cfg.DATASETS.TEST]
        return {EMA: self.test(self.cfg, average.model, evaluators)}

    @classmethod
    def test_with_augmentation(cls, cfg: CfgNode, model: torch.nn.Module) -> dict[str, Any]:
        """Evaluate with TEST.AUG; the results are named as Detectron2 does, "bbox_TTA", and {} without it."""
        if not cfg.TEST.AUG.ENABLED:
            return {}
        logger.info("Evaluating with test-time augmentation")
        evaluators = [cls.build_evaluator(cfg, name, INFERENCE_TTA) for name in cfg.DATASETS.TEST]
        results = super().test(cfg, AugmentedDetector(cfg, model), evaluators)
        return {f"{name}{TTA}": value for name, value in results.items()}

    def train(self) -> None:
        """Train as Detectron2 does; TEST.EXPECTED_RESULTS is left to `run_job`, which comes after all is written."""
        with suppress(StoppedEarly):
            super(DefaultTrainer, self).train(self.start_iter, self.max_iter)

    @classmethod
    def draw(cls, cfg: CfgNode, model: torch.nn.Module) -> None:
        """Draw detections on the main process; see `draw_detections`."""
        if comm.is_main_process():
            draw_detections(cfg, unwrapped(model))

    def build_hooks(self) -> list[HookBase]:
        """Order Detectron2's hooks and ours: what changes the state or measures the step, what saves, what follows.

        What follows does not change what is saved, and is made up for on a resume if the step did not come to it.
        """
        model = unwrapped(self.model)
        self.writers: list[EventWriter] = []  # of the main process, where the next line fills it
        of_detectron2 = [hook for hook in super().build_hooks() if hook is not None]
        evaluating = [hook for hook in of_detectron2 if isinstance(hook, EvalHook)]
        saving = [hook for hook in of_detectron2 if isinstance(hook, PeriodicCheckpointer)]
        placed_below = (EvalHook, PeriodicCheckpointer, PeriodicWriter)
        stepping = [hook for hook in of_detectron2 if not isinstance(hook, placed_below)]
        if isinstance(model, FocalRetinaNet) and comm.is_main_process():
            stepping.append(LogAssignment(model.criterion))
        period, average = self.cfg.TEST.EVAL_PERIOD, self.average
        if average:
            stepping.append(AverageWeights(average, model, self.checkpointer, when_due(self.cfg)))
            evaluating.append(EvalHook(period, lambda: self.test_average(average)))
        if self.cfg.MODEL.FOCAL_DET.VAL_LOSS:
            evaluating.append(ValidationLoss(self.cfg, period, average))
        self._evaluating = tuple(evaluating)
        if self.cfg.TEST.AUG.ENABLED:
            evaluating.append(EvalHook(0, lambda: self.test_with_augmentation(self.cfg, self.model)))
        # Not Detectron2's writer, which loses all but the last of the evaluations between two writes.
        writing = [writers.WriteMetrics(self.writers, WRITE_PERIOD, period)] if self.writers else []
        last = [DrawDetections(self.cfg.VIS_PERIOD), *writing, *filter(None, [self.early_stopping])]
        self._after_saving: list[HookBase] = [*evaluating, *self.best_checkpointers, *last]
        stop = [StopOnSignal(self.checkpointer, self.stopping)] if self.stopping else []
        return [*stepping, *saving, *stop, *self._after_saving]

    def build_writers(self) -> list[EventWriter]:
        """Build the writers of the log line, TensorBoard's file, metrics.json and the trackers, which read that."""
        images, folder = writers.images_of(self.data_loader), Path(self.cfg.OUTPUT_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        best_checkpointers, device = self.best_checkpointers, next(self.model.parameters()).device
        epoch = images_of_epoch(self.cfg, images) / self.cfg.SOLVER.IMS_PER_BATCH if images else None
        console = writers.ConsoleWriter(self.max_iter, epoch, lambda: best_of(best_checkpointers), device)
        # metrics.json after TensorBoard: what it has, a resumed run takes for written by all
        self.writers = [console, self.tensorboard, self.metrics_file, self.trackers]
        return self.writers
