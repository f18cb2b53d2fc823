"""A plug-in for machines.py: the rank that RAISING_RANK names raises in its 12th step."""

import os

from detectron2.utils import comm

from focal_det.engine.trainer import Trainer

_run_step = Trainer.run_step


def run_step(self: Trainer) -> None:
    """Do a step, or raise."""
    if os.environ.get("RAISING_RANK") == str(comm.get_rank()) and self.iter == 12:
        raise ValueError("this rank was told to raise")
    _run_step(self)


Trainer.run_step = run_step
