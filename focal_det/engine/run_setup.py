"""What every process does first: log, record the configuration, seed."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from .loss_keys import without_unread_keys


def set_up_run(cfg: CfgNode, *, training: bool) -> None:
    """Detectron2's `default_setup`, but with environment and configuration in files instead of on the screen.

    Writes `log.txt`, and `config.yaml` and `environment.txt`, to OUTPUT_DIR; an evaluation writes the latter two to
    `inference/`, so that the training's stay what they were.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("fvcore", "detectron2", "focal_det"):
        setup_logger(str(folder), distributed_rank=comm.get_rank(), name=name, abbrev_name=name)
    if comm.is_main_process():
        record = folder if training else folder / "inference"
        record.mkdir(exist_ok=True)
        (record / "config.yaml").write_text(without_unread_keys(cfg).dump())
        (record / "environment.txt").write_text(collect_env_info() + "\n")
        logging.getLogger("focal_det").info(f"Resolved configuration: {record / 'config.yaml'}")
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    torch.backends.cudnn.benchmark = training and cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION and torch.cuda.is_available():
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
        torch.backends.cudnn.allow_tf32 = cfg.FLOAT32_PRECISION != "highest"
