"""The start-up check: the first class loss is what the prior implies, and a head that ignores the prior is noticed."""

import json
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from focal_det.assigners.assignment import pad_objects
from focal_det.distributed.accumulation import losses_and_gradients
from focal_det.engine.initial_loss import InitialLossCheck
from focal_det.engine.trainer import Trainer
from focal_det.modeling.head import logit_of

pytestmark = pytest.mark.detectron2


def first_step(model, batch, prior, steps=1):
    """What the check puts into the metrics in the first of some steps."""
    hook = InitialLossCheck(model.criterion, prior)
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(storage=storage)
        hook.before_train()
        for _ in range(steps):
            model(batch)
        assert len(storage.histories()["start_cls"].values()) == 1
        return {name: value for name, (value, _) in storage.latest().items()}


def labels_of(model, instances):
    """(R,) of one image, as the criterion assigns them."""
    levels = list(model.backbone(torch.zeros(1, 3, 96, 128)).values())
    anchors = [boxes.tensor for boxes in model.anchor_generator(levels)]
    objects = pad_objects([instances.gt_boxes.tensor], [instances.gt_classes])
    return model.criterion.assign(anchors, *objects).labels[0]


@pytest.mark.parametrize("prior", [0.01, 0.5])
def test_the_first_loss_is_that_of_the_prior(tiny_cfg, batch_of, caplog, prior):
    model, batch = build_model(tiny_cfg("MODEL.RETINANET.PRIOR_PROB", str(prior))), batch_of((3, 0))
    with caplog.at_level(logging.INFO, "focal_det"):
        found = first_step(model, batch, prior, steps=3)
    # An assigned anchor is one positive, FL(pi), and K - 1 negatives, FL(1 - pi); background is K negatives
    labels = torch.cat([labels_of(model, x["instances"]) for x in batch])
    assigned, kept = ((labels >= 0) & (labels < 3)).sum().item(), (labels >= 0).sum().item()
    positive, negative = 0.25 * (1 - prior) ** 2 * -math.log(prior), 0.75 * prior**2 * -math.log(1 - prior)
    expected = (assigned * positive + (3 * kept - assigned) * negative) / assigned
    assert found["start_cls_of_prior"] == pytest.approx(expected, rel=1e-5)
    assert found["start_cls"] == pytest.approx(expected, rel=0.25)
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_the_parts_of_the_first_batch_count_together(tiny_cfg, batch_of):
    model, batch, found = build_model(tiny_cfg()), batch_of((3, 0)), []
    for parts in (1, 2):
        hook = InitialLossCheck(model.criterion, 0.01, parts)
        with EventStorage() as storage:
            hook.trainer = SimpleNamespace(storage=storage)
            hook.before_train()
            losses_and_gradients(model, batch, parts)
            found.append({name: value for name, (value, _) in storage.latest().items()})
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_the_logit_of_a_prior_is_finite_for_the_smallest_too():
    assert logit_of(0.5) == 0
    assert logit_of(0.01) == pytest.approx(-math.log(99))
    assert logit_of(1e-320) == pytest.approx(-320 * math.log(10), rel=1e-3)


def test_a_head_that_ignores_the_prior_is_noticed(tiny_cfg, batch_of, caplog):
    model = build_model(tiny_cfg())
    torch.nn.init.zeros_(model.head.cls_score.bias)
    with caplog.at_level(logging.INFO, "focal_det"):
        found = first_step(model, batch_of((3, 2)), 0.01)
    assert found["start_cls"] > 5 * found["start_cls_of_prior"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "MODEL.RETINANET.PRIOR_PROB 0.01 implies" in record.message
    assert "does the head apply it" in record.message


@pytest.mark.parametrize(
    ("first", "has_objects", "level"),
    [
        (1.9, True, "INFO"),
        (2.1, True, "WARNING"),
        (0.51, True, "INFO"),
        (0.49, True, "WARNING"),
        (float("nan"), True, "WARNING"),
        (9.0, False, "INFO"),
    ],
)
def test_more_than_a_factor_of_two_is_a_warning(caplog, first, has_objects, level):
    with caplog.at_level(logging.INFO, "focal_det"):
        InitialLossCheck(torch.nn.Module(), 0.01)._report(first, 1.0, has_objects=has_objects)
    (record,) = caplog.records
    assert record.levelname == level
    assert ("not compared" in record.message) is not has_objects


def test_the_check_leaves_the_normaliser_as_it_was(tiny_cfg, batch_of):
    cfg, batch = tiny_cfg("MODEL.FOCAL_DET.NORMALIZER", "ema"), batch_of((3, 2))
    averages = []
    for checked in (False, True):
        torch.manual_seed(0)
        model = build_model(cfg)
        if checked:
            first_step(model, batch, 0.01, steps=2)
        else:
            model(batch), model(batch)
        averages.append(model.criterion.normalizer.ema.item())
    assert averages[0] == averages[1]


def test_only_a_head_that_starts_anew_is_checked(tiny_cfg, tmp_path, monkeypatch):
    cfg = tiny_cfg("OUTPUT_DIR", str(tmp_path))
    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(lambda cls, cfg: []))
    checks = []
    for _ in range(2):
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        checks.append(sum(isinstance(hook, InitialLossCheck) for hook in trainer._hooks))
        with torch.no_grad():
            trainer.model.head.cls_score.weight.add_(1)
        trainer.checkpointer.save("trained")
        cfg.MODEL.WEIGHTS = str(tmp_path / "trained.pth")
    assert checks == [1, 0]


def test_a_run_reports_it(tmp_path, train_net):
    done = train_net(
        *("--config-file", "configs/quickstart.yaml", "OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_ITER", 1),
        *("SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", 2, "DATASETS.TRAIN", "shapes_train_8_64px"),
        *("DATASETS.TEST", "shapes_val_4_64px", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64),
        *("MODEL.FOCAL_DET.LOSS.NAME", "OHEMLoss", "MODEL.FOCAL_DET.DRAW_IMAGES", 0),
    )
    assert done.returncode == 0, done.stderr
    assert "MODEL.RETINANET.PRIOR_PROB 0.01 implies" in (tmp_path / "run/log.txt").read_text()
    first = json.loads((tmp_path / "run/metrics.json").read_text().splitlines()[0])
    assert first["start_cls"] == pytest.approx(first["start_cls_of_prior"], rel=0.5)
