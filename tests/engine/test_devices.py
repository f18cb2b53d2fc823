"""Which GPU a process gets, played without one."""

from types import SimpleNamespace

import pytest
import torch

from focal_det.engine.devices import gpu_id, gpu_of
from focal_det.errors import InputError


def test_each_process_its_gpu_or_the_one_that_it_sees():
    assert [gpu_of(rank, 4) for rank in range(4)] == [0, 1, 2, 3]
    assert [gpu_of(rank, 1) for rank in range(4)] == [0] * 4


def test_more_processes_than_gpus_are_refused():
    with pytest.raises(InputError, match="local rank 4 has no GPU, this machine shows 4: start at most 4"):
        gpu_of(4, 4)


def test_a_gpu_without_a_name_is_not_known(monkeypatch):
    seen = [SimpleNamespace(uuid="1-2"), SimpleNamespace()]
    monkeypatch.setattr(torch.cuda, "get_device_properties", seen.__getitem__)
    assert [gpu_id(0), gpu_id(1)] == ["1-2", ""]
