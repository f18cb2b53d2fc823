"""What an exception means: a lost connection to another rank, a killed loader worker, or a fault of this rank."""

import pytest
import torch
from torch.utils.data import dataloader

from focal_det.distributed.failures import failure_message, is_lost_connection, what_helps
from focal_det.errors import TrainingError


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3"), True),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), True),
        (TrainingError("gloomy.png: no such file"), False),
        (OSError(5, "Connection lost", "/nfs/NCCL/a.png"), False),
        (ValueError("Connection"), False),
    ],
)
def test_only_what_pytorch_says_of_a_peer_is_a_lost_connection(error, is_so):
    assert is_lost_connection(error) == is_so


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_where_memory_was_short_smaller_steps_help(error):
    assert "fewer images at once (SOLVER.IMS_PER_BATCH" in what_helps(error)
    assert what_helps(RuntimeError("integers are too small")) == ""


class Images:
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, place):
        raise self.error


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_connection_to_a_loaders_worker_is_not_taken_for_one_to_a_rank(error):
    """What is met if the worker is killed while it gives an image away, as it is more often than not."""

    def _try_get_data():
        raise error

    assert hasattr(dataloader._MultiProcessingDataLoaderIter, "_try_get_data")
    with pytest.raises(type(error)) as caught:
        _try_get_data()
    assert failure_message(caught.value).startswith(f"a worker of its loader was killed ({type(error).__name__}")
    assert not is_lost_connection(caught.value)
    with pytest.raises(type(error)) as caught:
        next(iter(dataloader.DataLoader(Images(type(error)("/nfs/a.png")))))
    assert failure_message(caught.value) == f"{type(error).__name__}: /nfs/a.png"
