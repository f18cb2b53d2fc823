"""The hardware by its name."""

import os

import torch

from focal_det.engine import machine


def test_a_machine_is_its_processor_its_cores_and_the_gpus_that_are_used(monkeypatch):
    monkeypatch.setattr(machine, "processor", lambda: "Fast 9000")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "output_of", lambda *_: "Card 7\nCard 7")
    assert machine.whole_machine(0) == "Fast 9000, 8 cores, 1 thread"
    assert machine.whole_machine(2) == "Fast 9000, 8 cores, 1 thread, 2 x Card 7"
    monkeypatch.setattr(machine, "output_of", lambda *_: "")  # GPUs that do not tell their name
    assert machine.whole_machine(2) == "Fast 9000, 8 cores, 1 thread"
