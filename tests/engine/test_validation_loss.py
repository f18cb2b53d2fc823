"""The losses over the test set: what they are, when they are measured, and that the training is not touched."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from focal_det.distributed.heartbeat import READING, Progress
from focal_det.engine import validation_loss as validation
from focal_det.engine.validation_loss import ValidationLoss, validation_losses

pytestmark = [pytest.mark.detectron2, pytest.mark.usefixtures("few_layers")]


@pytest.mark.parametrize("mode", ["global", "image", "ema"])
def test_validation_losses_are_those_of_all_images_at_once(tiny_cfg, batch_of, mode):
    batch = batch_of((4, 0, 9))
    torch.manual_seed(0)
    model = build_model(tiny_cfg("MODEL.FOCAL_DET.NORMALIZER", mode))
    found = validation_losses(model, [[image] for image in batch])
    torch.manual_seed(0)
    # a batch's losses, of "global" over its number of assigned anchors; the moving average has no part in it
    whole = build_model(tiny_cfg("MODEL.FOCAL_DET.NORMALIZER", "image" if mode == "image" else "global"))
    expected = {f"val/{name}": loss.item() for name, loss in whole(batch).items()}
    assert found == pytest.approx({**expected, "val/total_loss": sum(expected.values())}, rel=1e-5)


def test_validation_leaves_the_training_as_it_was(tiny_cfg, batch_of, shapes):
    cfg = tiny_cfg("MODEL.FOCAL_DET.NORMALIZER", "ema", "DATALOADER.NUM_WORKERS", "0")
    cfg.DATASETS.TEST = shapes[1:]
    model = build_model(cfg)
    sum(model(batch_of((4, 3))).values()).backward()
    model.head.cls_subnet.eval()  # a part that somebody holds fixed stays so
    criterion = model.criterion
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    num_assigned = criterion.num_assigned.clone()
    losses = ValidationLoss(cfg, 0).measure(model)
    assert set(losses) == {"val/loss_cls", "val/loss_box_reg", "val/total_loss"}
    assert model.criterion is criterion
    assert criterion.normalizer.ema != 100  # it has moved in training, and not since
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(p.grad.equal(gradients[name]) for name, p in model.named_parameters())
    assert criterion.num_assigned.equal(num_assigned)
    assert model.training


def test_images_are_evenly_spread_and_bounded(monkeypatch, tiny_cfg, shapes):
    monkeypatch.setattr(validation, "IMAGES", 2)
    cfg = tiny_cfg("DATALOADER.NUM_WORKERS", "0")
    cfg.DATASETS.TEST = shapes[1:]
    hook = ValidationLoss(cfg, 0)
    hook.measure(build_model(cfg))
    assert [record["image_id"] for record in hook._records] == [1, 3]  # ids from 1: of five the first and the third


def test_reading_the_images_is_no_hang_and_no_death(monkeypatch, tiny_cfg, shapes):
    cfg, phases = tiny_cfg("DATALOADER.NUM_WORKERS", "0"), []
    cfg.DATASETS.TEST = shapes[1:]
    progress = Progress()
    progress.begin()
    read = validation.read_evaluated_records
    monkeypatch.setattr(
        validation, "read_evaluated_records", lambda *args: (phases.append(progress.heartbeat["phase"]), read(*args))[1]
    )
    ValidationLoss(cfg, 0).measure(build_model(cfg))
    assert phases == [READING]


@pytest.mark.parametrize(
    ("words", "annotations", "reason"),
    [
        ((), [], "data set unscored has no annotated objects"),
        (("MODEL.META_ARCHITECTURE", "RetinaNet"), [{}], "it is FocalRetinaNet's, and MODEL.META_ARCHITECTURE is"),
    ],
)
def test_where_there_is_no_validation_loss_one_line_says_why(tiny_cfg, lines, words, annotations, reason):
    cfg = tiny_cfg(*words)
    cfg.DATASETS.TEST = ("unscored",)
    DatasetCatalog.register("unscored", lambda: [{"file_name": "a.png", "annotations": annotations}])
    try:
        hook = ValidationLoss(cfg, 0)
        model = build_model(cfg)
        assert hook.measure(model) == hook.measure(model) == {}
    finally:
        DatasetCatalog.remove("unscored")
    assert len(lines) == 1
    assert lines[0].startswith(f"No validation loss: {reason}")


def test_the_first_set_with_objects_is_measured(monkeypatch, tiny_cfg, lines, shapes):
    monkeypatch.setattr(validation, "IMAGES", 1)
    cfg = tiny_cfg("DATALOADER.NUM_WORKERS", "0")
    cfg.DATASETS.TEST = ("bare", shapes[1])
    DatasetCatalog.register("bare", lambda: [{"file_name": "a.png"}])
    try:
        assert len(ValidationLoss(cfg, 0).measure(build_model(cfg))) == 3
    finally:
        DatasetCatalog.remove("bare")
    assert lines[-1].endswith(f"over 1 image of {shapes[1]}")


@pytest.mark.parametrize(("period", "times"), [(0, [9]), (4, [3, 7, 9]), (5, [4, 9])])
def test_validation_goes_with_the_evaluations(monkeypatch, period, times):
    hook, at = ValidationLoss(None, period), []
    monkeypatch.setattr(hook, "act", lambda: at.append(hook.trainer.iter))
    for iteration in range(10):
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=10)
        hook.after_step()
    hook.after_train()
    assert at == times
