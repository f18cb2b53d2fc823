"""The space that the checkpoints of a run need."""

import pytest
import torch

from focal_det.checkpoint import disk_space
from focal_det.checkpoint.compatibility import build_cpu_model

pytestmark = pytest.mark.detectron2


def test_a_checkpoint_is_as_large_as_was_said(tiny_cfg, tmp_path):
    cfg = tiny_cfg("SOLVER.MAX_ITER", "10", "SOLVER.CHECKPOINT_PERIOD", "4", "OUTPUT_DIR", str(tmp_path))
    model = build_cpu_model(cfg)
    said = disk_space.checkpoint_bytes(model)
    momentum = [torch.zeros_like(p) for p in model.parameters() if p.requires_grad]
    torch.save({"model": model.state_dict(), "optimizer": momentum}, tmp_path / "model_0000003.pth")
    written = (tmp_path / "model_0000003.pth").stat().st_size
    assert 0 <= written - said < 0.02 * said + 100_000  # names and places
    # At 4 and 8, the best, and the last at 10; the first is there.
    assert disk_space.checkpoints_to_come(cfg) == 3
    cfg.SOLVER.MAX_ITER, cfg.MODEL.FOCAL_DET.CHECKPOINTS_KEPT = 100, 3
    assert disk_space.checkpoints_to_come(cfg) == 3 + 2 - 1
    # an average doubles the weights in each, and its own two files take the room of one more
    cfg.MODEL.FOCAL_DET.EMA.DECAY = 0.9
    (tmp_path / "model_best_ema.pth").touch()
    assert disk_space.checkpoints_to_come(cfg) == 3 + 3 - 1
    weights = sum(value.numel() for value in model.state_dict().values())
    assert disk_space.checkpoint_bytes(model, has_average=True) == said + 4 * weights


@pytest.mark.parametrize(("free", "kind"), [(500, None), (499, "warning"), (399, "error")])
def test_checkpoints_that_the_disk_does_not_hold(tiny_cfg, tmp_path, monkeypatch, free, kind):
    monkeypatch.setattr(disk_space, "free_bytes", lambda folder: free * 10**6)
    cfg = tiny_cfg("SOLVER.MAX_ITER", "10", "SOLVER.CHECKPOINT_PERIOD", "4", "OUTPUT_DIR", str(tmp_path))
    found = disk_space.check_disk(cfg, 100 * 10**6)  # four of 100 MB
    assert (bool(found.warnings), bool(found.errors)) == (kind == "warning", kind == "error")
    told = "4 checkpoints of 100 MB need 400 MB, and 100 MB while one is written"
    assert all(told in line for line in found.warnings + found.errors)
