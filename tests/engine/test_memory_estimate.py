"""The memory of a step: counted as autograd keeps it, or measured in a process of its own."""

import math
import multiprocessing
from concurrent.futures.process import BrokenProcessPool
from unittest.mock import MagicMock, Mock

import pytest
import torch
from detectron2.modeling import build_model
from torch.multiprocessing.reductions import StorageWeakRef

from focal_det.engine import memory_estimate
from focal_det.engine.memory_estimate import count_step, largest_batch, measure_step
from focal_det.engine.train_step import DeferredMetrics
from focal_det.engine.trainer import Trainer
from focal_det.engine.weight_average import WeightAverage

pytestmark = pytest.mark.detectron2
SIZE = (64, 96)


def kept_by_a_real_pass(cfg, model, images):
    """Bytes that autograd keeps of a forward pass that is computed, and twice its outputs."""
    own = {StorageWeakRef(p.untyped_storage()) for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if StorageWeakRef(storage) not in own:
            kept[StorageWeakRef(storage)] = storage.nbytes()
        return tensor

    dtype = torch.bfloat16 if cfg.SOLVER.AMP.ENABLED else None
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype is not None),
    ):
        outputs = model.network(torch.zeros(images, 3, *SIZE).contiguous(memory_format=model.memory_format))
        kept_bytes = sum(kept.values())
    return kept_bytes + 2 * sum(level.nbytes for part in outputs for level in part)


@pytest.mark.parametrize(
    "options",
    [(), ("MODEL.RESNETS.NORM", "FrozenBN"), ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16")],
)
def test_what_is_counted_is_what_a_pass_keeps(tiny_cfg, options):
    cfg = tiny_cfg(*options)
    model = build_model(cfg).train()
    step = count_step(cfg, model, SIZE)
    weights = 4 * sum(p.numel() for p in model.parameters())
    kept = [kept_by_a_real_pass(cfg, model, images) for images in (1, 2, 3)]
    # weights, gradients and momentum besides; in bfloat16 the kernels keep a few statistics in another format
    assert [step.of(images) - 3 * weights for images in (1, 2, 3)] == pytest.approx(kept, rel=1e-3)
    assert step.per_image > 0


def test_the_average_of_the_weights_is_one_more_copy(tiny_cfg):
    cfg = tiny_cfg()
    model = build_model(cfg)
    plain, cfg.MODEL.FOCAL_DET.EMA.DECAY = count_step(cfg, model, SIZE), 0.9
    with_average = count_step(cfg, model, SIZE)
    assert with_average.fixed - plain.fixed == 4 * sum(p.numel() for p in model.parameters())
    assert with_average.per_image == plain.per_image


def test_a_gpu_without_triton_copies_the_logits(tiny_cfg):
    cfg = tiny_cfg()
    model = build_model(cfg)
    on_cpu = count_step(cfg, model, SIZE)
    cfg.MODEL.DEVICE = "cuda"
    logits = 9 * 3 * sum((64 // s) * (96 // s) or 1 for s in (8, 16, 32)) + 9 * 3 * (1 * 2 + 1 * 1)  # A=9, K=3, P3..P7
    assert count_step(cfg, model, SIZE).per_image - on_cpu.per_image == memory_estimate._COPIES_IN_LOSS * 4 * logits
    cfg.MODEL.FOCAL_DET.SPEED.TRITON = True
    assert count_step(cfg, model, SIZE) == on_cpu
    assert model.training  # as it was


@pytest.mark.parametrize(("room", "most", "expected"), [(0, 99, 0), (1, 99, 1), (7, 99, 4), (8, 99, 8), (99, 12, 8)])
def test_the_largest_batch_is_a_power_of_two_that_fits(room, most, expected):
    tried = []
    assert largest_batch(lambda images: tried.append(images) or images <= room, most) == expected
    assert tried == [2**n for n in range(len(tried))]  # from below: none far beyond what fits is tried


def test_a_step_is_measured_in_a_process_of_its_own(tiny_cfg):
    found = measure_step(tiny_cfg(), (), 1, SIZE)
    assert 50e6 < found.peak < 5e9
    assert found.free == math.inf  # of a processor it is not asked there
    assert multiprocessing.active_children() == []


def test_a_gpu_is_asked_for_its_peak_and_one_that_is_too_small_says_so(tiny_cfg, monkeypatch):
    cfg, build = tiny_cfg(), Trainer.build_model
    on_gpu = cfg.clone()
    on_gpu.MODEL.DEVICE = "cuda"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7000, 9000))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5000)
    monkeypatch.setattr(Trainer, "build_model", lambda _: build(cfg))
    on_gpu.MODEL.FOCAL_DET.EMA.DECAY = 0.9
    averaged = []  # so its memory is there
    monkeypatch.setattr(WeightAverage, "update", lambda self, model: averaged.append(self))
    assert memory_estimate._measure(on_gpu, (), 1, SIZE) == (5000, 7000, "")
    assert len(averaged) == 2

    for error, failure in (
        (torch.OutOfMemoryError("CUDA out of memory"), ""),
        (RuntimeError("CUDA error: out of memory\nCompile with ..."), ""),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), ""),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), ""),
        (MemoryError(), ""),
        (RuntimeError("integers are too small\nCompile with ..."), "integers are too small"),
    ):
        monkeypatch.setattr(Trainer, "build_model", Mock(side_effect=error))
        assert memory_estimate._measure(on_gpu, (), 1, SIZE) == (math.inf, 7000, failure)


def test_a_step_is_measured_in_the_parts_that_it_will_have(tiny_cfg, monkeypatch):
    passed = []

    def run_step(self):
        passed.append((len(next(self._data_loader_iter)), self._parts))

    monkeypatch.setattr(DeferredMetrics, "run_step", run_step)
    memory_estimate._measure(tiny_cfg("MODEL.FOCAL_DET.ACCUMULATION", "3"), (), 2, SIZE)
    assert passed == [(6, 3)] * 2  # 2 images at once


def test_a_process_that_is_killed_as_it_measures_says_nothing_of_what_is_free(tiny_cfg, monkeypatch):
    pool = MagicMock()
    pool.return_value.__enter__.return_value.submit.return_value.result.side_effect = BrokenProcessPool
    monkeypatch.setattr(memory_estimate, "ProcessPoolExecutor", pool)
    assert measure_step(tiny_cfg(), (), 1, SIZE) == (math.inf, None, "")
