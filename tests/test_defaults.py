"""Every key that focal_det adds changes something, and has a place in the documentation."""

import ast
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import nn

from focal_det import defaults as keys_of_ours
from focal_det.config.layers import leaves
from focal_det.config.load import load_config
from focal_det.defaults import add_focal_det_config, with_own_keys
from focal_det.modeling.head import RetinaNetHead
from focal_det.registries import DENSE_HEAD_REGISTRY, DENSE_LOSS_REGISTRY

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[1]


class WideHead(RetinaNetHead):
    """A head of one's own."""


class ZeroLoss(nn.Module):
    """A loss of one's own."""

    def __init__(self, cfg):
        super().__init__()

    def forward(self, logits, labels):
        return logits.sum() * 0


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(DENSE_HEAD_REGISTRY._obj_map, "WideHead", WideHead)
    monkeypatch.setitem(DENSE_LOSS_REGISTRY._obj_map, "ZeroLoss", ZeroLoss)


def losses_of(cfg, batch, seed=0):
    torch.manual_seed(seed)
    return {name: loss.item() for name, loss in build_model(cfg)(batch).items()}


LOSS = "MODEL.FOCAL_DET.LOSS."
# Key, another value, which losses of a batch it changes, and what else is set both times. The rest of the keys have
# tests of their own below.
CHANGING = [
    (LOSS + "NAME", "ZeroLoss", {"loss_cls"}),
    (LOSS + "NAME", "CrossEntropyLoss", {"loss_cls"}),
    (LOSS + "NAME", "BalancedCrossEntropyLoss", {"loss_cls"}),
    (LOSS + "NAME", "FocalLossStar", {"loss_cls"}),
    (LOSS + "NAME", "HingeLoss", {"loss_cls"}),
    (LOSS + "NAME", "OHEMLoss", {"loss_cls", "loss_box_reg"}),
    (LOSS + "NAME", "OHEMOneToThreeLoss", {"loss_cls", "loss_box_reg"}),
    (LOSS + "NAME", "QualityFocalLoss", {"loss_cls"}),
    (LOSS + "NAME", "VarifocalLoss", {"loss_cls"}),
    (LOSS + "ALPHA", "0.5", {"loss_cls"}, LOSS + "NAME", "BalancedCrossEntropyLoss"),
    (LOSS + "GAMMA", "4.0", {"loss_cls"}, LOSS + "NAME", "FocalLossStar"),
    (LOSS + "GAMMA", "1.0", {"loss_cls"}, LOSS + "NAME", "QualityFocalLoss"),
    (LOSS + "ALPHA", "0.5", {"loss_cls"}, LOSS + "NAME", "VarifocalLoss"),
    (LOSS + "GAMMA", "1.0", {"loss_cls"}, LOSS + "NAME", "VarifocalLoss"),
    (LOSS + "BETA", "0.0", {"loss_cls"}, LOSS + "NAME", "FocalLossStar"),
    (LOSS + "MARGIN", "0.995", {"loss_cls"}, LOSS + "NAME", "HingeLoss"),
    (LOSS + "BATCH_SIZE", "4", {"loss_cls", "loss_box_reg"}, LOSS + "NAME", "OHEMLoss"),
    (LOSS + "NMS_THRESH", "0.1", {"loss_cls", "loss_box_reg"}, LOSS + "NAME", "OHEMLoss"),
    (LOSS + "BATCH_SIZE", "4", {"loss_cls", "loss_box_reg"}, LOSS + "NAME", "OHEMOneToThreeLoss"),
    (LOSS + "NMS_THRESH", "0.1", {"loss_cls", "loss_box_reg"}, LOSS + "NAME", "OHEMOneToThreeLoss"),
    *(
        (LOSS + key, value, {"loss_cls"}, LOSS + "NAME", "AsymmetricLoss", "MODEL.RETINANET.PRIOR_PROB", "0.1")
        for key, value in (("GAMMA_POS", "1.0"), ("GAMMA_NEG", "2.0"), ("PROB_SHIFT", "0.0"))
    ),
    *(
        (LOSS + key, value, {"loss_cls"}, LOSS + "NAME", "ClassBalancedFocalLoss", LOSS + "CLASS_BOXES", "[9, 5, 1]")
        for key, value in (("CB_BETA", "0.5"), ("CLASS_BOXES", "[9, 5, 2]"))
    ),
    ("MODEL.FOCAL_DET.SCALES_PER_OCTAVE", "2", {"loss_cls", "loss_box_reg"}),
    ("MODEL.FOCAL_DET.ASSIGNER.NAME", "ATSSAssigner", {"loss_cls", "loss_box_reg"}),
    (
        "MODEL.FOCAL_DET.ASSIGNER.TOPK",
        "30",
        {"loss_cls", "loss_box_reg"},
        "MODEL.FOCAL_DET.ASSIGNER.NAME",
        "ATSSAssigner",
    ),
    ("MODEL.FOCAL_DET.BOX_LOSS.FACTOR", "2.0", {"loss_box_reg"}),
    ("MODEL.FOCAL_DET.BOX_LOSS.WEIGHTING", "iou", {"loss_box_reg"}),
    ("MODEL.FOCAL_DET.BOX_LOSS.WEIGHTING", "score", {"loss_box_reg"}),
    ("MODEL.FOCAL_DET.MATCH_BEST_ANCHOR", "False", {"loss_cls", "loss_box_reg"}),
    ("MODEL.FOCAL_DET.NORMALIZER", "ema", {"loss_cls", "loss_box_reg"}),
    ("MODEL.FOCAL_DET.NORMALIZER", "image", {"loss_cls", "loss_box_reg"}),
    ("MODEL.RETINANET.FOCAL_LOSS_GAMMA", "1.0", {"loss_cls"}),
    ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", "0.5", {"loss_cls"}),
    ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", "-1", {"loss_cls"}),
    ("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", "1.0", {"loss_box_reg"}),
    ("MODEL.RETINANET.BBOX_REG_WEIGHTS", "(10., 10., 5., 5.)", {"loss_box_reg"}),
    ("MODEL.RETINANET.IOU_THRESHOLDS", "[0.2, 0.3]", {"loss_cls", "loss_box_reg"}),
    ("MODEL.RETINANET.PRIOR_PROB", "0.1", {"loss_cls"}),
    ("MODEL.RETINANET.NUM_CONVS", "2", {"loss_cls", "loss_box_reg"}),
]
OWN_TESTS = {
    *("LOSS.FED_NUM_CLASSES", "LOSS.FED_FREQ_POWER", "LOSS.CLASS_IMAGES"),  # in tests/modeling/test_heir_losses.py
    *("HEAD_NAME", "DRAW_IMAGES", "DRAW_SCORE_THRESH"),  # below, and in tests/engine
    *("VAL_LOSS", "CHECKPOINTS_KEPT"),  # in tests/engine/test_trainer.py
    *("EMA.DECAY", "PATIENCE", "PATIENCE_METRIC"),  # in tests/engine/test_resume.py
    "TRACKERS",  # in tests/tracking/test_trackers.py
    "ACCUMULATION",  # in tests/distributed/test_accumulation.py
    "WEIGHTS_CLASSES",  # in tests/checkpoint/test_class_rows.py
    "PLUGINS",  # in test_plugins.py
    *(
        "SPEED.CHANNELS_LAST",
        "SPEED.FOLD_NORMS",
        "SPEED.TRITON",
        "SPEED.COMPILE",
        "SPEED.FUSED_SGD",
        "SPEED.BFLOAT16_INFERENCE",
    ),  # in tests/engine/test_speed_options.py
    *("AUGMENT.SCALE_JITTER", "AUGMENT.ROTATION", "AUGMENT.BRIGHTNESS", "AUGMENT.CONTRAST", "AUGMENT.SATURATION"),
    *("AUGMENT.LIGHTING", "AUGMENT.NAMES"),  # in tests/data/test_augmentation.py
    *("TILES.SIZE", "TILES.OVERLAP"),  # in tests/engine/test_model_detector.py
    *("SPEED.CUDA_GRAPHS", "SPEED.PAD_TO"),  # in tests/modeling/test_captured.py and test_levels.py
}


@pytest.mark.parametrize(("key", "value", "changed", "both"), [(*row[:3], row[3:]) for row in CHANGING])
@pytest.mark.usefixtures("registered")
def test_a_key_changes_what_it_says(tiny_cfg, batch_of, key, value, changed, both):
    batch = batch_of((8, 12))
    before, after = losses_of(tiny_cfg(*both), batch), losses_of(tiny_cfg(*both, key, value), batch)
    assert {name for name in before if before[name] != after[name]} == changed


@pytest.mark.usefixtures("registered")
def test_the_head_is_the_one_that_is_named(tiny_cfg):
    assert type(build_model(tiny_cfg("MODEL.FOCAL_DET.HEAD_NAME", "WideHead")).head) is WideHead


def test_no_key_is_without_a_test():
    cfg = get_cfg()
    add_focal_det_config(cfg)
    tested = {row[0].removeprefix("MODEL.FOCAL_DET.") for row in CHANGING if "FOCAL_DET" in row[0]}
    groups = ("LOSS", "ASSIGNER", "BOX_LOSS", "SPEED", "AUGMENT", "TILES", "EMA")
    keys = {f"{group}.{key}" for group in groups for key in cfg.MODEL.FOCAL_DET[group]} | set(cfg.MODEL.FOCAL_DET)
    assert keys - set(groups) == tested | OWN_TESTS


def test_the_page_of_keys_has_every_key_and_the_defaults_of_the_ten():
    page = (ROOT / "docs" / "configuration.md").read_text()
    cfg = get_cfg()
    ours = dict(leaves(cfg))
    add_focal_det_config(cfg)
    assert [key for key in dict(leaves(cfg)) if key not in ours and f"**`{key}`**" not in page] == []
    used = dict(leaves(load_config(ROOT / "configs" / "Base-RetinaNet-FPN.yaml")))
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == 10
    for keys, defaults, _ in rows:
        for key, default in zip(keys.strip("| ").split(", "), defaults.split("; "), strict=True):
            assert used[key.strip("`")] == ast.literal_eval(default), key


@pytest.mark.parametrize(
    ("key", "value", "holds"),
    [
        ("MODEL.RETINANET.SCORE_THRESH_TEST", "0.5", lambda found: (found.scores > 0.5).all()),
        ("TEST.DETECTIONS_PER_IMAGE", "7", lambda found: len(found) == 7),
        ("MODEL.RETINANET.TOPK_CANDIDATES_TEST", "3", lambda found: 3 <= len(found) <= 15),
        ("MODEL.RETINANET.NMS_THRESH_TEST", "0.0", lambda found: no_overlap(found)),
    ],
)
def test_inference_keys_change_what_they_say(tiny_cfg, batch_of, key, value, holds):
    results = []
    for options in ((), (key, value)):
        torch.manual_seed(1)
        model = build_model(tiny_cfg(*options)).eval()
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter.normal_(std=0.03)
            model.head.cls_score.bias.fill_(-1.0)
            results.append(model(batch_of((0,)))[0]["instances"])
    before, after = results
    assert not holds(before)
    assert holds(after)


def no_overlap(found):
    boxes, classes = found.pred_boxes.tensor, found.pred_classes
    shared = torch.min(boxes[:, None, 2:], boxes[:, 2:]) - torch.max(boxes[:, None, :2], boxes[:, :2])
    overlapping = (shared > 1e-3).all(dim=2) & (classes[:, None] == classes) & ~torch.eye(len(boxes), dtype=torch.bool)
    return not overlapping.any()


def test_a_configuration_without_our_keys_has_the_defaults_and_its_owner_is_told_once(caplog):
    cfg, full = get_cfg(), get_cfg()
    add_focal_det_config(full)
    cfg.freeze()
    keys_of_ours._say_once.cache_clear()
    assert with_own_keys(cfg) == with_own_keys(cfg) == full
    assert "FOCAL_DET" not in cfg.MODEL
    assert with_own_keys(full) is full
    (record,) = caplog.records
    assert "focal_det.add_focal_det_config(cfg)" in record.message


@pytest.mark.parametrize("loss", [name for name, _ in DENSE_LOSS_REGISTRY])
def test_every_loss_is_made_of_a_configuration_without_our_keys(loss):
    logits, labels = torch.randn(9, 3), torch.tensor([0, 1, 2, 3, 3, 3, 3, 3, -1])
    cfg, full = get_cfg(), get_cfg()
    add_focal_det_config(full)
    if loss in ("ClassBalancedFocalLoss", "FederatedFocalLoss"):  # which need counts of the classes for it
        with pytest.raises(ValueError, match=r"LOSS\.CLASS_\w+ has 0 numbers, and there are 3 classes: a training"):
            DENSE_LOSS_REGISTRY.get(loss)(cfg)(logits, labels)
        return
    made = [DENSE_LOSS_REGISTRY.get(loss)(c) for c in (cfg, full)]
    quality = [torch.full((9,), 0.5)] if getattr(made[0], "takes_quality", False) else []
    bare, same = (one(logits, labels, *quality) for one in made)
    assert bare == same > 0


def test_adding_keys_touches_only_the_given_configuration():
    add_focal_det_config(get_cfg())
    assert "FOCAL_DET" not in get_cfg().MODEL
