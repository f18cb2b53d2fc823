"""The detector in Detectron2's LazyConfig: few arguments, the keys' defaults, a training by Detectron2's own loops."""

from inspect import signature
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling import build_model

from focal_det.assigners.iou import assign_by_iou
from focal_det.config.load import load_config
from focal_det.modeling.assigners import IoUAssigner
from focal_det.modeling.criterion import DenseCriterion
from focal_det.modeling.dense_losses import HingeLoss

pytestmark = pytest.mark.detectron2

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def small():
    cfg = LazyConfig.load(str(CONFIGS / "lazy" / "retinanet_R_50_FPN_1x.py"))
    backbone, cfg.model.num_classes = cfg.model.backbone, 3
    del backbone.bottom_up.stages.stride_in_1x1
    backbone.bottom_up.stages.depth, backbone.top_block.in_channels, backbone.out_channels = 18, 512, 16
    return cfg


def test_what_is_left_out_has_the_defaults_of_the_keys(tiny_cfg, small):
    cfg = load_config(CONFIGS / "retinanet_R_50_FPN_1x.yaml", ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    cfg.merge_from_list(
        ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 16]
    )
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    lazy, keys = instantiate(small.model), build_model(cfg)
    assert str(lazy) == str(keys)
    assert lazy.decoding == keys.decoding
    kept = ("in_features", "num_classes", "memory_format", "bfloat16_inference")
    assert [getattr(lazy, name) for name in kept] == [getattr(keys, name) for name in kept]
    assert type(lazy.runner) is type(keys.runner)
    kept = ("smooth_l1_beta", "box_weights", "num_classes", "box_loss", "box_factor", "box_weighting")
    assert [getattr(lazy.criterion, name) for name in kept] == [getattr(keys.criterion, name) for name in kept]
    assert lazy.criterion.assigner is assign_by_iou
    options = vars(keys.criterion.assigner).items()
    assert type(keys.criterion.assigner) is IoUAssigner
    assert options <= {x.name: x.default for x in signature(assign_by_iou).parameters.values()}.items()
    assert lazy.criterion.normalizer.mode == keys.criterion.normalizer.mode
    assert lazy.criterion.class_loss.formula[1:5] == keys.criterion.class_loss.formula[1:5]
    assert lazy.head.cls_score.bias.equal(keys.head.cls_score.bias)
    assert lazy.anchor_generator.offset == keys.anchor_generator.offset
    for own, other in zip(lazy.anchor_generator.cell_anchors, keys.anchor_generator.cell_anchors, strict=True):
        assert own.equal(other)
    assert lazy.pixel_mean.equal(keys.pixel_mean)
    assert lazy.pixel_std.equal(keys.pixel_std)


def test_the_training_has_the_keys_of_the_yaml_file(small):
    cfg = load_config(CONFIGS / "retinanet_R_50_FPN_1x.yaml")
    assert small.train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert small.model.backbone.bottom_up.freeze_at == cfg.MODEL.BACKBONE.FREEZE_AT
    optimizer = small.optimizer
    assert (optimizer.lr, optimizer.momentum) == (cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM)
    assert optimizer.weight_decay == cfg.SOLVER.WEIGHT_DECAY
    assert small.train.max_iter == cfg.SOLVER.MAX_ITER
    assert tuple(small.lr_multiplier.scheduler.milestones) == (*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER)
    assert small.dataloader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="Detectron2's AMPTrainer needs a GPU")


@pytest.mark.parametrize("trainer", [SimpleTrainer, pytest.param(AMPTrainer, marks=NEEDS_GPU)])
def test_detectron2s_trainers_train_it(small, batch_of, trainer):
    model = instantiate(small.model).to("cuda" if trainer is AMPTrainer else "cpu")
    small.optimizer.params.model = model
    small.optimizer.lr = 0.001
    before = model.head.cls_score.weight.clone()
    loop = trainer(model, [batch_of((2, 1), size=(64, 64))] * 2, instantiate(small.optimizer))
    loop.train(0, 2)
    assert loop.storage.latest()["total_loss"][0] > 0
    assert not model.head.cls_score.weight.equal(before)


def test_other_parts_are_named_as_lazy_calls(small, batch_of):
    small.model.criterion = L(DenseCriterion)(
        num_classes="${..num_classes}", class_loss=L(HingeLoss)(margin=0.5), box_weights=[10.0, 10.0, 5.0, 5.0]
    )
    small.model.decoding = {"max_detections": 7}
    model = instantiate(small.model)
    assert type(model.criterion.class_loss) is HingeLoss
    assert model.decoding == {
        **{"score_thresh": 0.05, "topk_per_level": 1000, "nms_thresh": 0.5, "max_detections": 7},
        "box_weights": (10.0, 10.0, 5.0, 5.0),
    }
    assert all(loss.isfinite() for loss in model(batch_of((2,), size=(64, 64))).values())
