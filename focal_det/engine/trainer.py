"""The trainer: Detectron2's, which goes on exactly, stops on a signal, checks its numbers and evaluates always."""

from __future__ import annotations

import copy
import logging
import sys
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, create_ddp_model
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PeriodicWriter
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from ..modeling.retinanet import FocalRetinaNet
from .checkpoints import FINAL, RunCheckpointer, retention_words
from .divergence import CheckNumbers
from .draw import draw_detections
from .first_loss import CheckFirstLoss
from .hooks import DrawDetections, LogAssignment
from .keep_best import KeepBest, ap_name
from .log_line import LogLine, WriteMetrics, levers_line, pictures_of
from .metric_history import MetricHistory, MetricsFile, TensorBoardFile
from .nan_words import nan_lines
from .run_record import RunRecord
from .steps import WRITE_PERIOD, lay_out_as_parameters, make_step, unwrapped, when_due
from .stopping import StopOnSignal, stoppable
from .submission import SubmissionEvaluator
from .train_loader import TrainLoader, build_train_loader
from .validation import ValidationLoss


class Trainer(DefaultTrainer):
    """Trains, evaluates and draws what a frozen configuration says.

    Args:
        cfg: frozen; its data sets are registered.
        record: of the run, for its checkpoints.
        checkpoint: what `resume_or_load` goes on from; None for what last_checkpoint names.

    Raises:
        TrainingStopped: from `train`, when a signal stopped it and all is saved.
    """

    def __init__(self, cfg: CfgNode, *, record: RunRecord | None = None, checkpoint: Path | None = None) -> None:
        # Not DefaultTrainer's own constructor, which wraps the model for a GPU of each rank's number;
        # the same parts in the same order, with a wrapper that fits the device.
        super(DefaultTrainer, self).__init__()
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        on_cpu = next(model.parameters()).device.type == "cpu"
        # Not the GPU of the rank's number, which Detectron2 takes: a scheduler may show it but one.
        device_ids = None if on_cpu else [torch.cuda.current_device()]
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
        self._is_due = when_due(cfg)  # once, and alike on all ranks: they come together where it is
        self._trainer = make_step(cfg, model, data_loader, optimizer, self._is_due)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = RunCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            kept=cfg.MODEL.FOCAL_DET.CHECKPOINTS_KEPT,
            record=record,
            resumed=checkpoint,
            trainer=weakref.proxy(self),
        )
        self.metric_history = MetricHistory()
        self.checkpointer.add_checkpointable("metrics", self.metric_history)
        self.metrics_file = MetricsFile(Path(cfg.OUTPUT_DIR) / "metrics.json")
        self.tensorboard = TensorBoardFile(Path(cfg.OUTPUT_DIR))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.keep_best = KeepBest(self.checkpointer, ap_name(cfg))
        self.validation_loss = ValidationLoss(cfg, cfg.TEST.EVAL_PERIOD) if cfg.MODEL.FOCAL_DET.VAL_LOSS else None
        self.writers: list[EventWriter] = []  # of the main process
        self.register_hooks(self.build_hooks())
        for words in (
            levers_line(cfg, unwrapped(model)),
            retention_words(self.checkpointer.kept, self.max_iter, cfg.SOLVER.CHECKPOINT_PERIOD),
        ):
            if words:
                logging.getLogger(__name__).info(words)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        """The model on its device; says its size instead of printing every layer."""
        model: torch.nn.Module = build_model(cfg)
        parameters = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        logging.getLogger(__name__).info(
            f"{cfg.MODEL.META_ARCHITECTURE}: {parameters / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of them trained"
        )
        return model

    def resume_or_load(self, resume: bool = True) -> None:
        """Detectron2's; a run that goes on takes its lr and the like from the configuration, and the rest as saved.

        If the head is left as it was initialised, its first loss will be checked.
        """
        model = unwrapped(self.model)
        head = model.head if isinstance(model, FocalRetinaNet) else torch.nn.Module()
        before = copy.deepcopy(head.state_dict())
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        base_lrs = self.scheduler.base_lrs
        super().resume_or_load(resume)
        if self.start_iter > 0:
            self.scheduler.base_lrs = base_lrs
            for group, of_config, lr in zip(
                self.optimizer.param_groups, settings, self.scheduler.get_lr(), strict=True
            ):
                group.update({**of_config, "lr": lr})
            lay_out_as_parameters(self.optimizer)
            if isinstance(self.data_loader, TrainLoader):
                self.data_loader.start = self.start_iter
        is_fresh = all(torch.equal(before[name], value) for name, value in head.state_dict().items())
        if isinstance(model, FocalRetinaNet) and is_fresh:
            self.register_hooks([CheckFirstLoss(model.criterion, self.cfg.MODEL.RETINANET.PRIOR_PROB)])

    def before_train(self) -> None:
        """Detectron2's; of a run that goes on, first what its last step may not have come to after it was saved."""
        super().before_train()
        if self.start_iter == 0:
            self.tensorboard.go_on_after(-1)  # a start before this one may have ended before its first checkpoint
            return
        last = self.start_iter - 1
        self.iter = self.storage.iter = last  # which it stays if there is nothing left to train
        self.metric_history.recall(self.storage)
        if self.start_iter >= self.max_iter and Path(self.checkpointer.get_checkpoint_file()).name != f"{FINAL}.pth":
            self.checkpointer.save(FINAL, iteration=last)  # it was killed between its last two checkpoints
        is_done = False
        if comm.is_main_process():
            is_done = self.metrics_file.has_beyond(last, ap_name(self.cfg))
            self.metrics_file.go_on_after(last if is_done else last - 1)
            self.tensorboard.go_on_after(self.metrics_file.written)
        is_done = comm.all_gather(is_done)[0]  # evaluating is for all ranks or none
        for hook in () if is_done else self._after_saving:
            hook.after_step()

    def after_train(self) -> None:
        """Detectron2's; after a fault only what was measured is written, and nothing evaluated."""
        if not isinstance(sys.exc_info()[1], Exception):
            super().after_train()
            return
        for hook in self._hooks:
            if isinstance(hook, PeriodicWriter):
                hook.after_train()

    def state_dict(self) -> dict[str, Any]:
        """Detectron2's; after the training, too, with the last iteration that was done, where it counts one more."""
        return {**super().state_dict(), "iteration": min(self.iter, self.max_iter - 1)}

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """See `focal_det.engine.train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """Detectron2's, which a signal ends; see `stoppable`."""
        return stoppable(super().build_test_loader(cfg, dataset_name))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Detectron2's, with one kernel for the update of all parameters if MODEL.FOCAL_DET.SPEED.FUSED_SGD."""
        optimizer: torch.optim.Optimizer = super().build_optimizer(cfg, model)
        if cfg.MODEL.FOCAL_DET.SPEED.FUSED_SGD:
            for group in optimizer.param_groups:
                group.update(fused=True, foreach=False)
        return optimizer

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """COCO's AP, AP50, AP75, by size and class; never from a cached conversion. See `SubmissionEvaluator`."""
        return SubmissionEvaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Detectron2's; and every AP that is nan is explained in the log."""
        results: dict[str, Any] = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            json_files = {name: MetadataCatalog.get(name).get("json_file") for name in cfg.DATASETS.TEST}
            known = {name: path for name, path in json_files.items() if path is not None}
            for line in nan_lines(results, known):
                logging.getLogger(__name__).info(line)
        return results

    @classmethod
    def draw(cls, cfg: CfgNode, model: torch.nn.Module) -> None:
        """Draw detections on the main process; see `draw_detections`."""
        if comm.is_main_process():
            sheet = draw_detections(cfg, unwrapped(model), DatasetMapper(cfg, is_train=False), Path(cfg.OUTPUT_DIR))
            if sheet:
                logging.getLogger(__name__).info(f"Ground truth beside detections: {sheet}")

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks and ours: what changes the state or measures the step, what saves, and what follows.

        What follows does not change what is saved, and is done after a resume if the step did not come to it.
        """
        of_detectron2 = [hook for hook in super().build_hooks() if hook is not None]
        evaluate = next(hook for hook in of_detectron2 if isinstance(hook, EvalHook))
        # Not its writer, which loses all but the last of the evaluations between two writes.
        first = [
            hook for hook in of_detectron2 if not isinstance(hook, EvalHook | PeriodicCheckpointer | PeriodicWriter)
        ]
        saving = [hook for hook in of_detectron2 if isinstance(hook, PeriodicCheckpointer)]
        model = unwrapped(self.model)
        if isinstance(model, FocalRetinaNet) and comm.is_main_process():
            first.append(LogAssignment(model.criterion))
        scaled = isinstance(self._trainer, AMPTrainer)  # such gradients may overflow, and are then left out
        check = CheckNumbers(self.cfg, self._is_due, gradients=not scaled)
        check.follow(self.model)
        self._trainer.register_hooks([check])
        self._after_saving: list[HookBase] = [
            evaluate,
            *([self.validation_loss] if self.validation_loss else []),
            self.keep_best,
            DrawDetections(self.cfg.VIS_PERIOD),
            *([WriteMetrics(self.writers, WRITE_PERIOD, self.cfg.TEST.EVAL_PERIOD)] if self.writers else []),
        ]
        return [*first, *saving, StopOnSignal(self.checkpointer), *self._after_saving]

    def build_writers(self) -> list[EventWriter]:
        """The log line, metrics.json and TensorBoard's file."""
        pictures, folder = pictures_of(self._trainer.data_loader), Path(self.cfg.OUTPUT_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        keep_best = self.keep_best
        self.writers = [
            LogLine(
                self.max_iter,
                iterations_per_epoch=pictures / self.cfg.SOLVER.IMS_PER_BATCH if pictures else None,
                best=lambda: keep_best.best,
                device=next(self.model.parameters()).device,
            ),
            self.tensorboard,
            self.metrics_file,  # last: what it has, a run that goes on takes for written by all
        ]
        return self.writers
