"""What every process does first: log, record the configuration, seed."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..files import write_text_whole
from .config_changes import Change
from .environment import source_version
from .loss_keys import without_unread_keys
from .machine import whole_machine


def set_up_run(cfg: CfgNode, *, training: bool, changes: Sequence[Change] = ()) -> None:
    """Detectron2's `default_setup`, but with environment and configuration in files instead of on the screen.

    Writes `log.txt`, and `config.yaml`, `config_changes.json` and `environment.txt`, to OUTPUT_DIR; an evaluation
    writes the latter three to `inference/`, so that the training's stay what they were.

    Args:
        changes: of the configuration from its defaults.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("fvcore", "detectron2", "focal_det"):
        logger = setup_logger(str(folder), distributed_rank=comm.get_rank(), name=name, abbrev_name=name)
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.addFilter(_has_no_trace)
    if comm.is_main_process():
        record = folder if training else folder / "inference"
        record.mkdir(exist_ok=True)
        write_text_whole(record / "config.yaml", without_unread_keys(cfg).dump())
        write_text_whole(
            record / "config_changes.json", json.dumps([change._asdict() for change in changes], indent=1) + "\n"
        )
        num_gpus = comm.get_world_size() if cfg.MODEL.DEVICE.startswith("cuda") else 0
        environment = (
            f"focal_det {source_version()}",
            f"hardware  {whole_machine(num_gpus)}",
            collect_env_info(),
        )
        write_text_whole(record / "environment.txt", "\n".join(environment) + "\n")
        log = logging.getLogger("focal_det")
        log.info(f"Resolved configuration: {record / 'config.yaml'}")
        log.info(f"{len(changes)} keys differ from their defaults: {record / 'config_changes.json'}")
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    torch.backends.cudnn.benchmark = training and cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION and torch.cuda.is_available():
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
        torch.backends.cudnn.allow_tf32 = cfg.FLOAT32_PRECISION != "highest"


def log_file(cfg: CfgNode) -> Path:
    """This process's log."""
    rank = comm.get_rank()
    return Path(cfg.OUTPUT_DIR) / (f"log.txt.rank{rank}" if rank else "log.txt")


def _has_no_trace(record: logging.LogRecord) -> bool:
    """Of what goes to the screen: a trace stands in the log, and the last line says what happened."""
    return not record.exc_info
