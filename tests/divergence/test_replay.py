"""A step that was not finite, repeated: which image, which module, which precision, or the weights before it."""

from itertools import cycle

import pytest
import torch
from detectron2.modeling import build_model

from focal_det.cli.main import main
from focal_det.data import train_loader
from focal_det.data.train_loader import TrainLoader
from focal_det.divergence.check import NonFiniteCheck
from focal_det.divergence.dump import read_divergence, write_divergence
from focal_det.divergence.replay import replay
from focal_det.engine.train_step import DeferredMetrics

pytestmark = [pytest.mark.detectron2, pytest.mark.usefixtures("few_layers")]


def replayed(path, capsys):
    assert main(["replay", str(path)]) == 0
    return capsys.readouterr().out.split("verdict: ")


def test_the_batch_of_each_rank_is_repeated(kept, capsys):
    def corrupt(model, batch):
        batch[1]["instances"].gt_boxes.tensor[2, 2] = float("inf")

    steps, verdict = replayed(kept(corrupt, ranks=2), capsys)
    assert "all 1 images of rank 0" in steps
    assert "all 1 images of rank 1" in steps
    assert verdict.startswith("image 2 of 2, 1.jpg: ")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_loss_that_draws_classes_draws_those_of_the_training_again(tiny_cfg, batch_of, tmp_path, monkeypatch, ranks):
    """As each rank's loader seeds its step; of two ranks one file has the batches of both."""
    loss, classes = "MODEL.FOCAL_DET.LOSS.", 40
    drawing = (loss + "NAME", "FederatedFocalLoss", loss + "FED_NUM_CLASSES", "9", loss + "CLASS_IMAGES", [5] * classes)
    cfg = tiny_cfg("OUTPUT_DIR", str(tmp_path), "SEED", "7", "MODEL.RETINANET.NUM_CLASSES", str(classes), *drawing)
    model, images = build_model(cfg).train(), batch_of((2, 3, 1), size=(64, 64))
    with torch.no_grad():
        model.head.cls_score.bias.normal_()  # so that the loss tells which classes count
    shares, losses = [], []
    for rank in range(ranks):
        monkeypatch.setattr(train_loader.comm, "get_rank", lambda rank=rank: rank)
        loader = TrainLoader(images, cycle(range(3)), lambda x: x, seed=7, batch_size=1 + rank, by_orientation=False)
        loader.start = 1
        shares.append(next(iter(loader)))
        losses.append({name: value.item() for name, value in model(shares[-1]).items()})
    monkeypatch.setattr(train_loader.comm, "get_rank", lambda: 0)
    path = write_divergence(cfg, model, shares, {}, [], iteration=1, is_first=True)
    torch.manual_seed(99)
    found = {}
    replay(read_divergence(path), lambda title, outcomes: found.update({title: dict(outcomes)["float32"].losses}))
    again = [found[title] for title in found if title.startswith("all ")]
    assert again == [pytest.approx(loss, rel=1e-6) for loss in losses]


def test_a_run_without_a_seed_draws_anew_and_says_so(kept, capsys):
    assert main(["replay", str(kept())]) == 0
    assert "warning: SEED is -1: what the step drew at random" in capsys.readouterr().err


def test_a_step_that_is_finite_here_is_reported(kept, capsys):
    steps, verdict = replayed(kept(), capsys)
    assert "image 2: 1.jpg, 64x64, 3 boxes" in steps
    assert verdict.startswith("finite here; in the training it was loss_cls 1, loss_box_reg inf")


def test_a_box_that_is_neither_object_nor_background_is_replayed_too(kept, capsys):
    """As of what a tile's border cuts off."""

    def ignore(model, batch):
        batch[1]["instances"].gt_classes[0] = -1

    steps, verdict = replayed(kept(ignore), capsys)
    assert "image 2: 1.jpg, 64x64, 3 boxes" in steps
    assert verdict.startswith("finite here; ")


def test_an_image_with_a_bad_box_is_named(kept, capsys):
    def corrupt(model, batch):
        batch[1]["instances"].gt_boxes.tensor[2, 2] = float("inf")

    verdict = replayed(kept(corrupt), capsys)[1]
    assert verdict.startswith("image 2 of 2, 1.jpg: ")
    assert "box 2 is not finite" in verdict
    assert "0.jpg" not in verdict


def test_the_first_module_that_overflows_is_named(kept, capsys):
    def corrupt(model, batch):
        model.head.bbox_pred.weight.data.fill_(3e38)

    steps, verdict = replayed(kept(corrupt), capsys)
    assert "first non-finite module: head.bbox_pred" in steps
    assert verdict.startswith("no image, since noise in their place gives the same: ")
    assert "first in the output of head.bbox_pred. It is the weights" in verdict
    assert "the largest of which is 3e+38, in head.bbox_pred.weight; SOLVER.BASE_LR is " in verdict


def test_what_half_precision_alone_cannot_hold_is_reported(kept, capsys):
    def corrupt(model, batch):
        model.head.bbox_pred.weight.data.fill_(2e4)  # beyond 65504 when some are added

    amp = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16")
    verdict = replayed(kept(corrupt, *amp), capsys)[1]
    assert verdict.startswith("not finite in float16 only: no image, since noise in their place gives the same: ")
    assert verdict.endswith("2e+04, in head.bbox_pred.weight; SOLVER.AMP.ENABLED False computes in float32\n")


def test_weights_that_were_not_finite_before_are_told_apart(kept, capsys):
    def corrupt(model, batch):
        model.head.cls_score.bias.data[0] = float("nan")

    verdict = replayed(kept(corrupt), capsys)[1]
    assert verdict.startswith("the weights were not finite before this step: 1 of ")
    assert "first head.cls_score.bias" in verdict


def test_gradients_whose_norm_alone_is_not_finite_are_reported(kept, capsys):
    """For a training ends there: it looks at their norm, and the square of 1e22 is beyond float32."""

    def corrupt(model, batch):
        model.head.bbox_pred.weight.data.fill_(1e22)

    verdict = replayed(kept(corrupt), capsys)[1]
    assert "gives the same: the gradient of all parameters together is not finite. It is the weights" in verdict


@pytest.mark.parametrize(("lr", "norm"), [(1e3, "GN"), (1.0, "FrozenBN")])
def test_where_the_learning_rate_blew_the_weights_up_no_image_is_blamed(tiny_cfg, batch_of, tmp_path, capsys, lr, norm):
    torch.manual_seed(0)
    cfg = tiny_cfg("OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", str(lr), "MODEL.RESNETS.NORM", norm)
    model = build_model(cfg).train()
    batches = [batch_of((2, 3), size=(64, 64), seed=seed) for seed in range(5)]
    trainer = DeferredMetrics(model, batches, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9))
    check = NonFiniteCheck(cfg, lambda iteration: True)
    trainer.register_hooks([check])
    with pytest.raises(FloatingPointError, match="became infinite or NaN"):
        trainer.train(0, 5)
    assert all(p.isfinite().all() for p in model.parameters())
    steps, verdict = replayed(next((tmp_path / "diverged").iterdir()), capsys)
    assert "for comparison: generated noise, 64x64, 1 boxes" in steps
    assert verdict.startswith("no image, since noise in their place gives the same: ")
    largest = max(p.abs().max().item() for p in model.parameters())
    assert f"the largest of which is {largest:.3g}, in " in verdict
    assert f"SOLVER.BASE_LR is {lr:g}: lower it" in verdict
    assert len(verdict.splitlines()) == 1


def test_bad_boxes_are_reported_beside_bad_weights(kept, capsys):
    def corrupt(model, batch):
        model.head.bbox_pred.weight.data.fill_(3e38)
        batch[1]["instances"].gt_boxes.tensor[2, 2] = 1e9

    first, second = replayed(kept(corrupt), capsys)[1].splitlines()
    assert first.startswith("no image, ")
    assert second == "also, image 2 of 2, 1.jpg: box 2 lies outside the image"
