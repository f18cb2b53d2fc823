"""The device, bfloat16 and Triton's kernels are fitted to the machine, with a warning for each change."""

import pytest
import torch
from detectron2.config import get_cfg

from focal_det import environment as devices
from focal_det.defaults import add_focal_det_config
from focal_det.environment import check_interface, choose_device
from focal_det.errors import InputError
from focal_det.losses import triton_loss

pytestmark = pytest.mark.detectron2


@pytest.mark.parametrize(
    ("gpus", "device", "asked", "chosen", "warning", "problem"),
    [
        (0, "cuda", 1, "cpu", "NO GPU HERE", None),
        (0, "cuda", 2, "cpu", "in 2 processes", None),
        (0, "cpu", 1, "cpu", None, None),
        (0, "cpu", 5, "cpu", "5 processes share the 4 cores", None),
        (0, "cpu", 33, "cpu", None, "ask for at most 4"),
        (2, "cuda", 2, "cuda", None, None),
        (2, "cuda", 3, "cuda", None, "2 are visible"),
        (2, "cpu", 1, "cpu", None, None),
        (2, "cpu", 2, "cpu", None, None),
        (1, "cuda", 0, "cuda", None, "at least 1"),
    ],
)
def test_devices_are_chosen_loudly_or_refused(monkeypatch, gpus, device, asked, chosen, warning, problem):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(devices, "num_cores", lambda: 4)
    cfg = get_cfg()
    add_focal_det_config(cfg)
    cfg.MODEL.DEVICE = device
    fitted, found = choose_device(cfg, asked)
    assert chosen == fitted.MODEL.DEVICE
    assert device == cfg.MODEL.DEVICE
    assert [warning in w for w in found.warnings] == ([True] if warning else [])
    assert [problem in p for p in found.errors] == ([True] if problem else [])


@pytest.mark.parametrize(("has", "enabled"), [(True, True), (False, False)])
def test_bfloat16_falls_back_to_float32_and_says_so(monkeypatch, has, enabled):
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: has)
    cfg = get_cfg()
    add_focal_det_config(cfg)
    cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = "cpu", True, "bfloat16"
    cfg, found = choose_device(cfg, 1)
    assert enabled == cfg.SOLVER.AMP.ENABLED
    assert ["float32" in warning for warning in found.warnings] == ([] if enabled else [True])
    assert found.errors == []


SPEED = "MODEL.FOCAL_DET.SPEED."
BFLOAT16 = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16")


def test_without_bfloat16_it_detects_in_float32_and_says_so(tiny_cfg, monkeypatch):
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: False)
    cfg = tiny_cfg(SPEED + "BFLOAT16_INFERENCE", "True")
    cfg, found = choose_device(cfg, 1)
    assert cfg.MODEL.FOCAL_DET.SPEED.BFLOAT16_INFERENCE is False
    assert [warning for warning in found.warnings if "detecting in float32" in warning]


def test_without_a_gpu_the_kernels_are_off_with_a_warning(tiny_cfg):
    cfg = tiny_cfg(SPEED + "TRITON", "True")
    cfg, found = choose_device(cfg, 1)
    assert found.errors == []
    assert cfg.MODEL.FOCAL_DET.SPEED.TRITON is False
    assert [warning for warning in found.warnings if "SPEED.TRITON" in warning]


def test_without_a_gpu_nothing_is_captured_and_a_warning_says_so(tiny_cfg):
    cfg, found = choose_device(tiny_cfg(SPEED + "CUDA_GRAPHS", "True"), 1)
    assert cfg.MODEL.FOCAL_DET.SPEED.CUDA_GRAPHS is False
    assert [warning for warning in found.warnings if "SPEED.CUDA_GRAPHS is on, but a processor has none" in warning]


def test_an_interface_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,eth77")
    with pytest.raises(InputError, match=r"GLOO_SOCKET_IFNAME names the network interface eth77, which .* has lo"):
        check_interface()
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    check_interface()


@pytest.mark.parametrize(("capability", "kept"), [((9, 0), True), ((7, 5), False)])
def test_the_launcher_of_several_ranks_asks_for_no_context(tiny_cfg, monkeypatch, capability, kept):
    def use(*_):
        raise AssertionError("CUDA is used before the ranks start")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name in ("_lazy_init", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, use)
    monkeypatch.setattr(devices, "compute_capability", lambda: capability)
    monkeypatch.setattr(triton_loss.importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cfg, found = choose_device(tiny_cfg("MODEL.DEVICE", "cuda", SPEED + "TRITON", "True", *BFLOAT16), 2)
    assert kept == cfg.MODEL.FOCAL_DET.SPEED.TRITON
    assert kept == cfg.SOLVER.AMP.ENABLED
    assert found.errors == []
    assert len(found.warnings) == (0 if kept else 2)
