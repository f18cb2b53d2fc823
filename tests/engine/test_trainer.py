"""The trainer as a whole: its memory, its state, the same result with validation and without, and its optimizer."""

import gc
import json
import weakref

import pytest
import torch
from detectron2.utils.env import seed_all_rng
from torch import nn

from focal_det.engine.trainer import Trainer

pytestmark = pytest.mark.detectron2


def trained(tiny_cfg, shapes, folder, *overrides):
    words = [
        *("SOLVER.MAX_ITER", "5", "TEST.EVAL_PERIOD", "2", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.001"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0", "SEED", "3"),
        *("MODEL.FOCAL_DET.DRAW_IMAGES", "0", "MODEL.FOCAL_DET.NORMALIZER", "ema", "OUTPUT_DIR", str(folder)),
    ]
    cfg = tiny_cfg(*words, *overrides)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = shapes[:1], shapes[1:]
    cfg.freeze()
    folder.mkdir()
    seed_all_rng(3)
    trainer = Trainer(cfg)
    trainer.train()
    return trainer, [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_a_released_trainer_releases_its_model(tiny_cfg, shapes, tmp_path):
    """Else models would pile up in a process until Python looks for cycles, which counts objects and not gigabytes."""
    gc.disable()
    try:
        trainer, _ = trained(tiny_cfg, shapes, tmp_path / "run")
        model = weakref.ref(trainer.model)
        del trainer
        assert model() is None
    finally:
        gc.enable()


def test_a_training_is_the_same_to_the_bit_with_validation_and_without(tiny_cfg, shapes, tmp_path, lines):
    trainer, metrics = trained(tiny_cfg, shapes, tmp_path / "with")
    said = [line for line in lines if line.startswith("val/loss_cls ")]
    without, plain = trained(tiny_cfg, shapes, tmp_path / "without", "MODEL.FOCAL_DET.VAL_LOSS", "False")
    # after 2 and 4 of 5 iterations, and at the end; a writer's iterations count from 0, the end's is the number of all
    assert [line["iteration"] for line in metrics if "val/total_loss" in line] == [1, 3, 5]
    assert len(said) == 3
    assert said[0].endswith(" over 5 images of shapes_val_5_64px")
    assert not any("val/total_loss" in line for line in plain)
    # the state of a hook is kept under its class's name, so one of ours with a state could not be renamed
    assert set(trainer.state_dict()["hooks"]) == {"LRScheduler"}
    states = trainer.model.state_dict(), without.model.state_dict()
    assert all(value.equal(states[1][name]) for name, value in states[0].items())
    last = [line for line in metrics if "lr" in line][-1]
    assert last["epoch"] == 5 * 2 / 8
    assert last["grad_norm"] > 0
    assert len([line for line in lines if line.startswith("iteration ")]) == 2  # one of each training
    assert any((tmp_path / "with").glob("events.out.tfevents.*"))


SPEED = "MODEL.FOCAL_DET.SPEED."


def test_the_fused_update_is_the_same(tiny_cfg):
    updated = []
    for value in ("False", "True"):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 8, 3)
        optimizer = Trainer.build_optimizer(tiny_cfg(SPEED + "FUSED_SGD", value), model)
        assert isinstance(optimizer, torch.optim.SGD)
        assert all(group["fused"] is (True if value == "True" else None) for group in optimizer.param_groups)
        for step in range(3):
            optimizer.zero_grad()
            model(torch.full((1, 3, 9, 9), float(step))).square().sum().backward()
            optimizer.step()
        updated.append(model.weight.detach().clone())
    torch.testing.assert_close(*updated)


@pytest.mark.parametrize(("saved", "wanted"), [("False", "True"), ("True", "False")])
def test_a_resumed_run_updates_in_its_own_way(tiny_cfg, tmp_path, monkeypatch, saved, wanted):
    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(lambda cls, cfg: []))

    def trainer(value):
        return Trainer(tiny_cfg(SPEED + "FUSED_SGD", value, "OUTPUT_DIR", str(tmp_path)))

    trainer(saved).checkpointer.save("model_0000003", iteration=3)
    second = trainer(wanted)
    ways = [(group["fused"], group["foreach"]) for group in second.optimizer.param_groups]
    second.resume_or_load(resume=True)
    assert [(group["fused"], group["foreach"]) for group in second.optimizer.param_groups] == ways
    assert second.start_iter == 1
