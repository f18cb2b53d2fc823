"""Checkpoints of a small run, as a training would leave them."""

from pathlib import Path

import torch
from torch import nn

from focal_det.checkpoint.checkpointer import RunCheckpointer

OPTIMIZER = {"state": {0: {"momentum_buffer": torch.full((3,), 0.5)}}, "param_groups": [{"params": [0]}]}


class Steps:
    """Stands for the trainer: what a checkpoint holds of it."""

    def __init__(self, iteration):
        self.iteration = iteration

    def state_dict(self):
        return {"iteration": self.iteration, "_trainer": {"optimizer": OPTIMIZER}}

    def load_state_dict(self, state):
        self.iteration = state["iteration"]


def saver(folder, iteration, kept=2):
    """Of a run after an iteration, from 0, all of whose weights are the number of iterations done."""
    model = nn.Linear(2, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(iteration + 1.0)
    checkpointer = RunCheckpointer(model, str(folder), kept=kept, trainer=Steps(iteration))
    checkpointer.written.names = {path.name for path in Path(folder).glob("model_0*.pth")}
    return checkpointer


def save(folder, iteration, name=None):
    saver(folder, iteration).save(name or f"model_{iteration:07d}", iteration=iteration)


def save_best(folder, iteration):
    saver(folder, iteration).save_best(iteration=iteration, best={"AP": 1.0, "iteration": iteration})
