"""Each row of the paper resolves to what it says, and starts and trains from its own configuration."""

import math
import os

import pytest
import torch

from focal_det.config.validate import check_config
from focal_det.data.catalog import prepare_shapes, register_datasets
from focal_det.engine.trainer import Trainer
from focal_det.modeling.head import logit_of
from focal_det.paper.cost import gpu_hours
from focal_det.paper.runs import SweepOptions, plan_table, row_config
from focal_det.paper.tables import SCALES, load_tables
from focal_det.registries import DENSE_LOSS_REGISTRY

pytestmark = pytest.mark.detectron2

LOSS = "MODEL.FOCAL_DET.LOSS."
BOX_LOSS = "MODEL.FOCAL_DET.BOX_LOSS."
ROWS = {row.path: row for table in load_tables().values() for row in table.rows.values()}


@pytest.fixture
def options(tmp_path):
    def make(scale, *overrides, seeds=(1,), **others):
        return SweepOptions(scale=scale, seeds=seeds, out=tmp_path / "out", overrides=overrides, **others)

    return make


def value_of(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


R50 = {"MODEL.RESNETS.DEPTH": 50, "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl"}
R101 = {"MODEL.RESNETS.DEPTH": 101, "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-101.pkl"}
AT_600 = {"INPUT.MIN_SIZE_TRAIN": (600,), "INPUT.MIN_SIZE_TEST": 600}
SCHEDULE = {
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.MAX_ITER": 90000,
    "SOLVER.STEPS": (60000, 80000),
}
SPLIT = {
    "DATASETS.TRAIN": ("coco_2014_train", "coco_2014_valminusminival"),
    "DATASETS.TEST": ("coco_2014_minival",),
}
PAPERS = {  # section 4 and 4.1
    "MODEL.META_ARCHITECTURE": "FocalRetinaNet",
    "MODEL.RETINANET.IOU_THRESHOLDS": [0.4, 0.5],
    "MODEL.RETINANET.NUM_CONVS": 4,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.05,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 1000,
    "MODEL.RETINANET.NMS_THRESH_TEST": 0.5,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",  # with P6 from C5
    "INPUT.RANDOM_FLIP": "horizontal",
    # the project's defaults where the paper is silent
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.11,
    "MODEL.FOCAL_DET.NORMALIZER": "global",
    "MODEL.FOCAL_DET.MATCH_BEST_ANCHOR": True,
}
ANCHORS = {"MODEL.FOCAL_DET.SCALES_PER_OCTAVE": 3, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]]}
PRIOR = {"MODEL.RETINANET.PRIOR_PROB": 0.01}
ABLATION = {**R50, **AT_600, **SCHEDULE, **SPLIT, **ANCHORS, **PRIOR}


def focal(gamma, alpha):
    return {
        LOSS + "NAME": "FocalLoss",
        "MODEL.RETINANET.FOCAL_LOSS_GAMMA": gamma,
        "MODEL.RETINANET.FOCAL_LOSS_ALPHA": alpha,
    }


def balanced(alpha):
    return {LOSS + "NAME": "BalancedCrossEntropyLoss", LOSS + "ALPHA": alpha}


def star(gamma, beta):
    return {LOSS + "NAME": "FocalLossStar", LOSS + "GAMMA": gamma, LOSS + "BETA": beta}


def ohem(batch, nms, name="OHEMLoss"):
    return {LOSS + "NAME": name, LOSS + "BATCH_SIZE": batch, LOSS + "NMS_THRESH": nms}


def anchors(scales, ratios):
    aspect_ratios = [[1.0]] if ratios == 1 else [[0.5, 1.0, 2.0]]
    return {"MODEL.FOCAL_DET.SCALES_PER_OCTAVE": scales, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": aspect_ratios}


def expected_rows():
    """What the paper says of each row, written out from the row's meaning and not from tables.yaml."""
    for alpha in (".10", ".25", ".50", ".75", ".90", ".99", ".999"):
        yield f"table1a/alpha_{alpha}", ABLATION | balanced(float(alpha))
    yield "table1b/gamma_0", ABLATION | balanced(0.75)
    for gamma, alpha in ((".1", 0.75), (".2", 0.75), (".5", 0.5), ("1", 0.25), ("2", 0.25), ("5", 0.25)):
        yield f"table1b/gamma_{gamma}", ABLATION | focal(float(gamma), alpha)
    for scales, ratios in ((1, 1), (2, 1), (3, 1), (1, 3), (2, 3), (3, 3), (4, 3)):
        yield f"table1c/scales_{scales}_ratios_{ratios}", ABLATION | focal(2, 0.25) | anchors(scales, ratios)
    for nms in (".7", ".5"):
        for batch in (128, 256, 512):
            yield f"table1d/ohem_{batch}_{nms}", ABLATION | R101 | ohem(batch, float(nms))
    for batch in (128, 256, 512):
        yield f"table1d/ohem_1_3_{batch}_.5", ABLATION | R101 | ohem(batch, 0.5, "OHEMOneToThreeLoss")
    yield "table1d/fl", ABLATION | R101 | focal(2, 0.25)
    test_dev = {"DATASETS.TEST": ("coco_2014_minival", "coco_2017_test-dev")}
    for depth, backbone in ((50, R50), (101, R101)):
        for scale in (400, 500, 600, 700, 800):
            size = {"INPUT.MIN_SIZE_TRAIN": (scale,), "INPUT.MIN_SIZE_TEST": scale}
            yield f"table1e/depth_{depth}_scale_{scale}", ABLATION | backbone | size | test_dev | focal(2, 0.25)
    final = {
        "SOLVER.MAX_ITER": 135000,
        "SOLVER.STEPS": (90000, 120000),
        "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
        "INPUT.MIN_SIZE_TEST": 800,
    }
    yield "table2/R_101", ABLATION | R101 | final | test_dev | focal(2, 0.25)
    resnext = {
        "MODEL.RESNETS.DEPTH": 101,
        "MODEL.RESNETS.NUM_GROUPS": 32,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl",
    }
    yield "table2/X_101_32x8d", ABLATION | resnext | final | test_dev | focal(2, 0.25)
    yield "table3/ce", ABLATION | balanced(0.75)
    yield "table3/fl", ABLATION | focal(2, 0.25)
    yield "table3/fl_star_2_1", ABLATION | star(2, 1)
    yield "table3/fl_star_4_0", ABLATION | star(4, 0)
    ce = {LOSS + "NAME": "CrossEntropyLoss"}
    yield "section5_1/ce", ABLATION | ce
    yield "section5_1/ce_no_prior", ABLATION | ce | {"MODEL.RETINANET.PRIOR_PROB": 0.5}
    yield "section5_1/fl_alpha_.5", ABLATION | focal(2, 0.5)
    yield "section5_1/hinge", ABLATION | {LOSS + "NAME": "HingeLoss", LOSS + "MARGIN": 0.5}
    yield (
        "section5_1/ce_no_prior_no_warmup",
        ABLATION | ce | {"MODEL.RETINANET.PRIOR_PROB": 0.5, "SOLVER.WARMUP_ITERS": 0},
    )
    for prior in (".001", ".1"):
        yield f"section5_1/ce_prior_{prior}", ABLATION | ce | {"MODEL.RETINANET.PRIOR_PROB": float(prior)}
    for prior in (".001", ".1"):
        yield f"section5_1/fl_prior_{prior}", ABLATION | focal(2, 0.25) | {"MODEL.RETINANET.PRIOR_PROB": float(prior)}
    yield "section5_1/fl_no_prior", ABLATION | focal(2, 0.25) | {"MODEL.RETINANET.PRIOR_PROB": 0.5}
    yield "section5_1/fl_no_alpha", ABLATION | focal(2, -1)
    yield "section5_1/fl_normalizer_image", ABLATION | focal(2, 0.25) | {"MODEL.FOCAL_DET.NORMALIZER": "image"}
    for gamma in ("0.5", "1", "2", "4", "8"):
        for beta in (-1, 0, 1, 2):
            yield f"figure7/gamma_{gamma}_beta_{beta}", ABLATION | star(float(gamma), beta)
    for gamma in ("0", ".1", ".2", ".5", "1", "2", "5"):
        for alpha in (".10", ".25", ".50", ".75", ".90", ".99", ".999"):
            loss = focal(float(gamma), float(alpha)) if float(gamma) else balanced(float(alpha))
            yield f"alpha_gamma/gamma_{gamma}_alpha_{alpha}", ABLATION | loss
    yield from ((f"section4/{name}", ABLATION | focal(2, 0.25) | keys) for name, keys in parts_of_the_detector())
    yield from ((f"heirs/{name}", ABLATION | keys) for name, keys in later_losses())


def later_losses():
    yield "fl", focal(2, 0.25)
    one_anchor = anchors(1, 1) | {"MODEL.ANCHOR_GENERATOR.SIZES": [[64], [128], [256], [512], [1024]]}
    yield "fl_one_anchor", focal(2, 0.25) | one_anchor
    atss = one_anchor | {"MODEL.FOCAL_DET.ASSIGNER.NAME": "ATSSAssigner", "MODEL.FOCAL_DET.ASSIGNER.TOPK": 9}
    yield "fl_atss", focal(2, 0.25) | atss
    giou = atss | {"MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "giou", BOX_LOSS + "FACTOR": 2.0}
    yield "fl_atss_giou", focal(2, 0.25) | giou
    qfl = {LOSS + "NAME": "QualityFocalLoss", LOSS + "GAMMA": 2.0, BOX_LOSS + "WEIGHTING": "score"}
    yield "qfl", giou | qfl
    vfl = {LOSS + "NAME": "VarifocalLoss", LOSS + "ALPHA": 0.75, LOSS + "GAMMA": 2.0, BOX_LOSS + "WEIGHTING": "iou"}
    yield "vfl", giou | vfl
    yield (
        "asymmetric",
        {LOSS + "NAME": "AsymmetricLoss", LOSS + "GAMMA_POS": 0.0, LOSS + "GAMMA_NEG": 4.0, LOSS + "PROB_SHIFT": 0.05},
    )
    yield "class_balanced", {LOSS + "NAME": "ClassBalancedFocalLoss", LOSS + "CB_BETA": 0.9999}
    yield "federated", {LOSS + "NAME": "FederatedFocalLoss", LOSS + "FED_NUM_CLASSES": 50}


def parts_of_the_detector():
    by_subsampling = {"MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone"}
    stages = ["res2", "res3", "res4", "res5"]
    from_c2 = {"MODEL.RESNETS.OUT_FEATURES": stages, "MODEL.FPN.IN_FEATURES": stages}
    levels, sizes = "MODEL.RETINANET.IN_FEATURES", "MODEL.ANCHOR_GENERATOR.SIZES"
    yield "papers", {}
    yield "class_specific_boxes", {"MODEL.FOCAL_DET.HEAD_NAME": "ClassSpecificBoxHead"}
    yield "shared_subnet", {"MODEL.FOCAL_DET.HEAD_NAME": "SharedSubnetHead"}
    yield "one_conv", {"MODEL.RETINANET.NUM_CONVS": 1}
    yield (
        "p6_subsampled_no_p7",
        by_subsampling | {levels: ["p3", "p4", "p5", "p6"], sizes: [[32], [64], [128], [256]]},
    )
    six = {levels: [f"p{level}" for level in range(2, 8)], sizes: [[2 ** (level + 2)] for level in range(2, 8)]}
    yield "with_p2", from_c2 | six
    yield "fpn_p2_to_p6", by_subsampling | from_c2 | {levels: [f"p{level}" for level in range(2, 7)]}
    all_on_one = [[round(32 * 2 ** (k / 3), 1) for k in range(15)]]
    yield (
        "last_layer",
        by_subsampling
        | {"MODEL.FPN.IN_FEATURES": ["res5"], levels: ["p5"], sizes: all_on_one}
        | {"MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator"},
    )


EXPECTED = dict(expected_rows())


def test_every_row_is_expected_and_there():
    assert list(EXPECTED) == list(ROWS)


@pytest.mark.parametrize("path", EXPECTED)
def test_a_row_is_what_it_says(path):
    cfg = row_config(ROWS[path], "full")
    for key, value in (PAPERS | EXPECTED[path]).items():
        assert value_of(cfg, key) == value, key
    longest = 1333 if ROWS[path].table == "table2" else round(cfg.INPUT.MIN_SIZE_TEST * 5 / 3)
    assert cfg.INPUT.MAX_SIZE_TRAIN == cfg.INPUT.MAX_SIZE_TEST == longest


@pytest.mark.parametrize("path", EXPECTED)
def test_a_miniature_keeps_what_its_row_is_about(path):
    cfg = row_config(ROWS[path], "mini")
    kept = {
        key: value
        for key, value in EXPECTED[path].items()
        if key.startswith((LOSS, "MODEL.RETINANET.", "MODEL.FOCAL_DET.")) or "ASPECT" in key or "WARMUP" in key
    }
    kept.pop(LOSS + "FED_NUM_CLASSES", None)  # of three classes
    for key, value in kept.items():
        assert value_of(cfg, key) == value, key
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NUM_GROUPS) in ((18, 1), (34, 1))
    assert check_config(with_classes(cfg), num_processes=1, training=True).errors == []


def with_classes(cfg):
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.OUTPUT_DIR = "output/none"
    return cfg


def distinct_rows():
    """Of rows with the same configuration at full scale the first, since the others are the same training.

    Without those of alpha_gamma, which differ from those of Tables 1a and 1b in a constant alone.
    """
    seen = {}
    for path, row in ROWS.items():
        if row.table == "alpha_gamma":
            continue
        text = repr(sorted(EXPECTED[path].items(), key=lambda item: item[0]))
        seen.setdefault(text, row)
    return list(seen.values())


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Generate two sets that no other test registers, since a name is registered once with its folder."""
    names = (TRAINED_ON, TESTED_ON)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tmp_path_factory.mktemp("datasets")))
        prepare_shapes(names)
        register_datasets(names, ())


TRAINED_ON, TESTED_ON = "shapes_train_3_64px", "shapes_val_3_64px"


# Of a training of a row all but this is its own: the data, their size, the weights, which would have to be downloaded.
TRAINED_WITH = {
    **{"DATASETS.TRAIN": TRAINED_ON, "DATASETS.TEST": TESTED_ON, "MODEL.WEIGHTS": "", "MODEL.DEVICE": "cpu"},
    **{"SOLVER.MAX_ITER": "1", "SOLVER.STEPS": "()", "SOLVER.IMS_PER_BATCH": "2", "DATALOADER.NUM_WORKERS": "0"},
    **{"INPUT.MIN_SIZE_TRAIN": "(64,)", "INPUT.MIN_SIZE_TEST": "64", "MODEL.FOCAL_DET.DRAW_IMAGES": "0"},
    **{"MODEL.RETINANET.NUM_CLASSES": "3", "SOLVER.WARMUP_FACTOR": "1.0"},  # whose first step rounds to nothing
}
OF_A_LOSS = [LOSS + name for name in ("ALPHA", "GAMMA", "BETA", "MARGIN", "BATCH_SIZE", "NMS_THRESH")]
OF_A_LOSS += ["MODEL.RETINANET.FOCAL_LOSS_ALPHA", "MODEL.RETINANET.FOCAL_LOSS_GAMMA"]


def trained_rows():
    """Of rows that differ in a number of their loss alone the first, since the others run the same code."""
    if os.environ.get("FOCAL_DET_TRAIN_EVERY_ROW") == "1":
        return distinct_rows()
    seen = {}
    for row in distinct_rows():
        kind = {k: v for k, v in EXPECTED[row.path].items() if k not in OF_A_LOSS and k not in TRAINED_WITH}
        seen.setdefault(repr(sorted(kind.items(), key=lambda item: item[0])), row)
    return list(seen.values())


def counted(row):
    """What the start of a row counts in its training set, and fewer classes than there are."""
    return {
        "class_balanced": [LOSS + "CLASS_BOXES", "[9, 5, 1]"],
        "federated": [LOSS + "CLASS_IMAGES", "[9, 5, 1]", LOSS + "FED_NUM_CLASSES", "2"],
    }.get(row.name, [])


@pytest.mark.parametrize("row", distinct_rows(), ids=lambda row: row.path)
def test_a_rows_loss_has_a_gradient_at_the_start(row):
    cfg = row_config(row, "full", ["MODEL.RETINANET.NUM_CLASSES", "3", *counted(row)])
    loss = DENSE_LOSS_REGISTRY.get(cfg.MODEL.FOCAL_DET.LOSS.NAME)(cfg)
    logits = torch.full((40, 3), logit_of(cfg.MODEL.RETINANET.PRIOR_PROB), dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0, 1, 2, -1] + [3] * 36)
    corners = torch.arange(40.0)[:, None] * 10
    if hasattr(loss, "select"):
        labels = loss.select(logits, labels, torch.cat([corners, corners, corners + 9, corners + 9], dim=1))
    quality = [torch.full((40,), 0.5, dtype=torch.float64)] if getattr(loss, "takes_quality", False) else []
    value = loss(logits, labels, *quality)
    value.backward()
    assert 0 < value < math.inf
    assert logits.grad.isfinite().all()
    assert (logits.grad[:3].diagonal() < 0).all()  # towards each object's class


@pytest.mark.usefixtures("few_layers")
@pytest.mark.parametrize("row", trained_rows(), ids=lambda row: row.path)
def test_a_row_starts_and_trains(sets, tmp_path, monkeypatch, row):
    cfg = row_config(row, "full", [*(word for pair in TRAINED_WITH.items() for word in pair), *counted(row)])
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    assert check_config(cfg, num_processes=1, training=True).errors == []
    cfg.freeze()
    torch.manual_seed(0)
    monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, cfg, model: {}))
    trainer = Trainer(cfg)
    monkeypatch.setattr(trainer.checkpointer, "save", lambda *_, **__: None)  # some 300 MB for each row
    trainer.resume_or_load(resume=False)
    before = trainer.model.head.cls_score.bias.detach().clone()
    trainer.train()
    assert trainer.iter == 1
    losses = trainer.storage.latest()
    assert math.isfinite(losses["total_loss"][0])
    assert not torch.equal(before, trainer.model.head.cls_score.bias)


def test_rows_of_one_configuration_share_their_training(options):
    table = load_tables()["table3"]
    plan = plan_table(table, list(table.rows.values()), options("mini", seeds=(1, 2)))
    assert [run.name for run in plan.runs] == [
        *("table1a/alpha_.75 seed 1", "table1b/gamma_2 seed 1", "table3/fl_star_2_1 seed 1"),
        "table3/fl_star_4_0 seed 1",
        *("table1a/alpha_.75 seed 2", "table1b/gamma_2 seed 2", "table3/fl_star_2_1 seed 2"),
        "table3/fl_star_4_0 seed 2",
    ]
    assert plan.rows["fl"][2] is plan.runs[5]


@pytest.mark.parametrize("scale", SCALES)
def test_an_override_by_hand_reaches_every_row_and_its_command(options, scale):
    table = load_tables()["table1d"]
    plan = plan_table(table, list(table.rows.values()), options(scale, "SOLVER.BASE_LR", "0.5"))
    assert {run.config["SOLVER.BASE_LR"] for run in plan.runs} == {0.5}
    assert all("SOLVER.BASE_LR 0.5" in " ".join(run.arguments) for run in plan.runs)


def test_gpu_hours_follow_depth_pixels_and_schedule():
    def hours(path):
        return gpu_hours(row_config(ROWS[path], "full"))

    # .205 s x (600^2 / mean of 640^2 ... 800^2) x 90000 x 8 / 3600
    mean = sum(side**2 for side in (640, 672, 704, 736, 768, 800)) / 6
    assert hours("table1b/gamma_2") == pytest.approx(0.205 * 600**2 / mean * 90000 * 8 / 3600)
    assert hours("table1d/fl") / hours("table1b/gamma_2") == pytest.approx(0.291 / 0.205)
    assert hours("table2/R_101") == pytest.approx(0.291 * 135000 * 8 / 3600)
    assert hours("table2/X_101_32x8d") / hours("table2/R_101") == pytest.approx(0.638 / 0.286)
    assert gpu_hours(row_config(ROWS["table1b/gamma_2"], "mini")) is None
