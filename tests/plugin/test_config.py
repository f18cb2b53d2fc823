"""Every key that focal_det adds changes something, and every wrong key or value is named with its mending."""

import ast
import re
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import nn

from focal_det.config import add_focal_det_config
from focal_det.engine.checks import config_problems
from focal_det.engine.config_file import UNSET_NUM_CLASSES, leaves, load_config
from focal_det.engine.loss_keys import without_unread_keys
from focal_det.errors import InputError
from focal_det.modeling.dense_losses import FocalLoss
from focal_det.modeling.head import RetinaNetHead
from focal_det.registries import DENSE_HEAD_REGISTRY, DENSE_LOSS_REGISTRY

ROOT = Path(__file__).parents[2]


class WideHead(RetinaNetHead):
    """A head of somebody else's."""


class ZeroLoss(nn.Module):
    """A loss of somebody else's."""

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
    (LOSS + "ALPHA", "0.5", {"loss_cls"}, LOSS + "NAME", "BalancedCrossEntropyLoss"),
    (LOSS + "GAMMA", "4.0", {"loss_cls"}, LOSS + "NAME", "FocalLossStar"),
    (LOSS + "BETA", "0.0", {"loss_cls"}, LOSS + "NAME", "FocalLossStar"),
    (LOSS + "MARGIN", "0.995", {"loss_cls"}, LOSS + "NAME", "HingeLoss"),
    (LOSS + "BATCH_SIZE", "4", {"loss_cls", "loss_box_reg"}, LOSS + "NAME", "OHEMLoss"),
    (LOSS + "NMS_THRESH", "0.1", {"loss_cls", "loss_box_reg"}, LOSS + "NAME", "OHEMLoss"),
    (LOSS + "BATCH_SIZE", "4", {"loss_cls", "loss_box_reg"}, LOSS + "NAME", "OHEMOneToThreeLoss"),
    (LOSS + "NMS_THRESH", "0.1", {"loss_cls", "loss_box_reg"}, LOSS + "NAME", "OHEMOneToThreeLoss"),
    ("MODEL.FOCAL_DET.SCALES_PER_OCTAVE", "2", {"loss_cls", "loss_box_reg"}),
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
    *("HEAD_NAME", "DRAW_IMAGES", "DRAW_SCORE_THRESH"),  # below, and in test_engine.py
    *("VAL_LOSS", "CHECKPOINTS_KEPT"),  # in test_running.py and test_checkpoints.py
    *(
        "SPEED.CHANNELS_LAST",
        "SPEED.FOLD_NORMS",
        "SPEED.TRITON",
        "SPEED.COMPILE",
        "SPEED.FUSED_SGD",
        "SPEED.BFLOAT16_INFERENCE",
    ),  # in test_speed.py
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
    groups = ("LOSS", "SPEED")
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


# Of each loss the keys it reads, and what they make of it.
CONSTANTS = {
    "CrossEntropyLoss": ({}, lambda loss: loss.formula[1:] == ("cross_entropy", (1, 1), 0, 0)),
    "BalancedCrossEntropyLoss": ({"ALPHA": 0.3}, lambda loss: loss.formula[1:] == ("cross_entropy", (0.3, 0.7), 0, 0)),
    "FocalLossStar": (
        {"GAMMA": 4.0, "BETA": -0.5},
        lambda loss: loss.formula[1:] == ("focal_star", (1, 1), 4.0, -0.5),
    ),
    "HingeLoss": ({"MARGIN": 0.8}, lambda loss: loss.formula[1:] == ("hinge", (1, 1), 0, 0.8)),
    "OHEMLoss": (
        {"BATCH_SIZE": 32, "NMS_THRESH": 0.7},
        lambda loss: (loss.batch_size, loss.nms_threshold) == (32, 0.7),
    ),
    "OHEMOneToThreeLoss": (
        {"BATCH_SIZE": 32, "NMS_THRESH": 0.7},
        lambda loss: (loss.batch_size, loss.nms_threshold) == (32, 0.7),
    ),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_registered_loss_reads_its_constants_and_only_they_are_saved(tiny_cfg, name):
    constants, holds = CONSTANTS[name]
    overrides = [word for key, value in constants.items() for word in (LOSS + key, str(value))]
    cfg = tiny_cfg(LOSS + "NAME", name, *overrides)
    loss = DENSE_LOSS_REGISTRY.get(name)(cfg)
    assert holds(loss)
    assert set(without_unread_keys(cfg).MODEL.FOCAL_DET.LOSS) == {"NAME", *constants}
    assert set(loss.reads) == {LOSS + key for key in constants}


def test_the_focal_loss_reads_its_constants_where_detectron2_has_them(tiny_cfg):
    loss = FocalLoss(tiny_cfg("MODEL.RETINANET.FOCAL_LOSS_ALPHA", "-1", "MODEL.RETINANET.FOCAL_LOSS_GAMMA", "0.5"))
    assert loss.formula[1:] == ("focal", (1, 1), 0.5, 0)


def test_every_registered_loss_is_tested():
    assert {name for name, _ in DENSE_LOSS_REGISTRY} == {*CONSTANTS, "FocalLoss"}


# A key, a value, the loss that is chosen, what that loss reads, and the losses that read the key.
FOREIGN = [
    (LOSS + "ALPHA", "0.5", "FocalLoss", " and ".join(FocalLoss.reads), "BalancedCrossEntropyLoss"),
    (LOSS + "ALPHA", "0.75", "CrossEntropyLoss", "no key", "BalancedCrossEntropyLoss"),  # its default, but meant
    (LOSS + "NMS_THRESH", "0.7", "FocalLossStar", f"{LOSS}GAMMA and {LOSS}BETA", "OHEMLoss or OHEMOneToThreeLoss"),
    ("MODEL.RETINANET.FOCAL_LOSS_GAMMA", "2.0", "HingeLoss", f"{LOSS}MARGIN", "FocalLoss"),  # likewise
]
OURS = ["MODEL.META_ARCHITECTURE", "FocalRetinaNet"]


@pytest.mark.parametrize(("key", "value", "name", "reads", "readers"), FOREIGN)
def test_a_key_of_another_loss_is_refused(key, value, name, reads, readers):
    assert problems_of("", [*OURS, LOSS + "NAME", name, key, value]) == [
        f"command line: {key} is {value}, but the loss is {name}, which reads {reads}: "
        f"remove it, or set {LOSS}NAME to {readers}"
    ]


def write_layers(folder, **layers):
    """One file on top of the other, the last on top of all; its path."""
    below = ""
    for name, text in layers.items():
        (folder / f"{name}.yaml").write_text(below + text)
        below = f"_BASE_: {name}.yaml\n"
    return folder / f"{name}.yaml"


BASE = "MODEL: {META_ARCHITECTURE: FocalRetinaNet}\n"


def loss_layer(**keys):
    return yaml.safe_dump({"MODEL": {"FOCAL_DET": {"LOSS": keys}}})


def test_a_key_of_another_loss_in_a_file_is_refused_where_it_stands(tmp_path):
    base = BASE.replace("}", ", RETINANET: {FOCAL_LOSS_GAMMA: 1.0, FOCAL_LOSS_ALPHA: '0.25'}}")
    path = write_layers(tmp_path, base=base, top=loss_layer(BETA=1.0))
    assert [problem.split(",")[0] for problem in problems_of(path)] == [f"{path}: {LOSS}BETA is 1.0"]
    path = write_layers(tmp_path, base=BASE, middle=loss_layer(NAME="HingeLoss", BETA=1.0), top="SEED: 1\n")
    assert [problem.split(",")[0] for problem in problems_of(path)] == [
        f"{tmp_path / 'middle.yaml'}: {LOSS}BETA is 1.0"
    ]


def test_a_layer_that_names_another_loss_leaves_the_constants_below_it_behind(tmp_path):
    base = BASE + "SOLVER: {BASE_LR: 0.5}\n"
    path = write_layers(
        tmp_path,
        base=base,
        hinge=loss_layer(NAME="HingeLoss", MARGIN=0.4),
        ohem=loss_layer(NAME="OHEMLoss", BATCH_SIZE=512),
        one_to_three=loss_layer(NAME="OHEMOneToThreeLoss"),
    )
    loss = load_config(path).MODEL.FOCAL_DET.LOSS
    assert (loss.NAME, loss.MARGIN, loss.BATCH_SIZE) == ("OHEMOneToThreeLoss", 0.5, 512)  # both miners read the last
    path.write_text(BASE.replace("}", ", RETINANET: {FOCAL_LOSS_GAMMA: 1.0}}"))
    cfg = load_config(path, [LOSS + "NAME", "HingeLoss", LOSS + "MARGIN", "0.3"])
    assert (cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA, cfg.MODEL.FOCAL_DET.LOSS.MARGIN) == (2.0, 0.3)


def test_a_file_may_leave_the_loss_of_its_constants_to_the_command_line(tmp_path):
    path = write_layers(tmp_path, base=BASE, top=loss_layer(NAME="HingeLoss", MARGIN=0.4))
    assert load_config(path, [LOSS + "NAME", "HingeLoss"]).MODEL.FOCAL_DET.LOSS.MARGIN == 0.4


@pytest.mark.parametrize("name", [*CONSTANTS, "FocalLoss"])
def test_a_saved_configuration_can_be_read_again_and_given_another_loss(tiny_cfg, tmp_path, name):
    saved = tiny_cfg(LOSS + "NAME", name)
    path = tmp_path / "c.yaml"
    path.write_text(without_unread_keys(saved).dump())
    assert yaml.safe_load(load_config(path).dump()) == yaml.safe_load(saved.dump())
    assert load_config(path, [LOSS + "NAME", "HingeLoss", LOSS + "MARGIN", "0.7"]).MODEL.FOCAL_DET.LOSS.MARGIN == 0.7


def test_detectron2s_detector_has_a_loss_of_its_own(tmp_path):
    overrides = ["MODEL.META_ARCHITECTURE", "RetinaNet"]
    assert problems_of("", [*overrides, LOSS + "NAME", "OHEMLoss"]) == [
        f"command line: {LOSS}NAME is OHEMLoss, but MODEL.META_ARCHITECTURE RetinaNet has a loss of its own: "
        "remove it, or set MODEL.META_ARCHITECTURE to FocalRetinaNet"
    ]
    saved = without_unread_keys(load_config("", [*overrides, "MODEL.RETINANET.FOCAL_LOSS_GAMMA", "3.0"]))
    (tmp_path / "c.yaml").write_text(saved.dump())
    assert load_config(tmp_path / "c.yaml").MODEL.RETINANET.FOCAL_LOSS_GAMMA == 3.0


def test_detectron2s_detector_has_no_levers():
    overrides = ["MODEL.META_ARCHITECTURE", "RetinaNet"]
    (problem,) = problems_of("", [*overrides, "MODEL.FOCAL_DET.SPEED.COMPILE", "True"])
    assert problem.startswith("command line: MODEL.FOCAL_DET.SPEED.COMPILE is True, but MODEL.META_ARCHITECTURE")
    load_config("", [*overrides, "MODEL.FOCAL_DET.SPEED.FUSED_SGD", "True"])  # the trainer reads this one


def test_a_loss_of_ones_own_may_set_any_key(monkeypatch):
    monkeypatch.setitem(DENSE_LOSS_REGISTRY._obj_map, "ZeroLoss", ZeroLoss)
    cfg = load_config("", [*OURS, LOSS + "NAME", "ZeroLoss", LOSS + "BETA", "3", LOSS + "MARGIN", "7"])
    assert (cfg.MODEL.FOCAL_DET.LOSS.BETA, cfg.MODEL.FOCAL_DET.LOSS.MARGIN) == (3.0, 7.0)
    assert config_problems(cfg, num_processes=1, training=False)[-1].startswith("--eval-only")
    assert without_unread_keys(cfg).MODEL.FOCAL_DET.LOSS == cfg.MODEL.FOCAL_DET.LOSS


def test_adding_keys_touches_only_the_given_configuration():
    add_focal_det_config(get_cfg())
    assert "FOCAL_DET" not in get_cfg().MODEL


# --- reading files and overrides ------------------------------------------------------------------------------------


def test_overrides_win_over_the_file_and_the_file_over_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {BASE_LR: 0.5, MAX_ITER: 7}\nSEED: 3\n")
    (tmp_path / "top.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 8}\n")
    cfg = load_config(tmp_path / "top.yaml", ["SEED", "4"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SEED) == (0.5, 8, 4)


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["DATASETS.TEST", "my_set"], "TEST", ("my_set",)),
        (["DATASETS.TEST", "('my_set')"], "TEST", ("my_set",)),
        (["DATASETS.TEST", "('a', 'b')"], "TEST", ("a", "b")),
    ],
)
def test_a_single_name_is_a_list_of_one(overrides, key, value):
    assert load_config("", overrides).DATASETS[key] == value


def test_numbers_are_read_as_the_key_needs_them(tmp_path):
    (tmp_path / "c.yaml").write_text("SOLVER: {BASE_LR: 1e-3, STEPS: '(5, 6)'}\nOUTPUT_DIR: 12\n")
    cfg = load_config(tmp_path / "c.yaml", ["SOLVER.MOMENTUM", "1"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS, cfg.OUTPUT_DIR) == (0.001, (5, 6), "12")
    assert load_config("", ["OUTPUT_DIR", "2024_01_01"]).OUTPUT_DIR == "2024_01_01"
    assert isinstance(cfg.SOLVER.MOMENTUM, float)


def test_classes_that_nobody_set_are_left_to_the_data():
    assert load_config("").MODEL.RETINANET.NUM_CLASSES == UNSET_NUM_CLASSES
    assert load_config("", ["MODEL.RETINANET.NUM_CLASSES", "80"]).MODEL.RETINANET.NUM_CLASSES == 80


def problems_of(path, overrides=()):
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    return caught.value.problems


def test_every_wrong_key_and_value_comes_at_once_with_its_place(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("MODEL: {RETINANET: {NUM_CLASES: 3, NUM_CONVS: many}}\nSOLVER: 5\nVERSION: 1\n")
    found = problems_of(path, ["NUM_CLASSES", "3", "SEED", "two", "NO.SUCH", "1"])
    assert found == [
        f"{path}: unknown key MODEL.RETINANET.NUM_CLASES; did you mean MODEL.RETINANET.NUM_CLASSES?",
        f"{path}: MODEL.RETINANET.NUM_CONVS is 'many', but takes an integer such as 4",
        f"{path}: SOLVER is a group of keys, but is set to 5; set one of its keys, such as SOLVER.LR_SCHEDULER_NAME",
        f"{path}: VERSION is 1, but only configurations of version 2 are read",
        "command line: unknown key NUM_CLASSES; did you mean MODEL.RETINANET.NUM_CLASSES?",
        "command line: SEED is 'two', but takes an integer such as -1",
        "command line: unknown key NO.SUCH",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BASE_LR", "None"),
        ("SOLVER.STEPS", "('a', 3)"),
        ("MODEL.RETINANET.IOU_THRESHOLDS", "['a', 'b']"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[32, 64]"),
        ("DATASETS.TEST", "(1, 2)"),
        ("SOLVER.AMP.ENABLED", "1"),
    ],
)
def test_values_of_the_wrong_kind_are_named(key, value):
    (problem,) = problems_of("", [key, value])
    assert problem.startswith(f"command line: {key} is ")
    assert "but takes " in problem


def test_an_empty_value_in_a_file_is_named(tmp_path):
    (tmp_path / "c.yaml").write_text("MODEL: {WEIGHTS: }\n")
    assert "MODEL.WEIGHTS is None, but takes a text" in problems_of(tmp_path / "c.yaml")[0]


def test_a_key_without_a_value_is_named():
    assert "'SEED' is left over" in problems_of("", ["SOLVER.BASE_LR", "1", "SEED"])[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A: !!python/object/apply:os.getcwd []", "only plain data is allowed"),
        ("A: [1, 2", "not YAML"),
        ("- 1\n- 2\n", "not a mapping"),
        ("", "not a mapping"),
        ("_BASE_: [c2.yaml, 3]\n", "_BASE_ is 3; name a file"),
        ("_BASE_: c.yaml\n", "lead back to themselves"),
        ("\x00", "c.yaml"),
    ],
)
def test_files_that_are_no_configuration_are_named(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    (tmp_path / "c2.yaml").write_text("SEED: 1\n")
    (problem,) = problems_of(path)
    assert problem.startswith(f"config file {path}: ")
    assert message in problem


def test_a_value_that_python_refuses_to_read_is_a_text():
    for value in ("{[]: 1}", "-" * 5000 + "1"):
        assert "but takes a number" in problems_of("", ["SOLVER.GAMMA", value])[0]


def test_a_name_with_a_nul_is_no_file(tmp_path):
    (tmp_path / "c.yaml").write_text('_BASE_: "a\\0b"\n')
    assert "its name holds a NUL character" in problems_of(tmp_path / "c.yaml")[0]


def test_a_faulty_base_is_named_with_the_file_that_names_it(tmp_path):
    path = write_layers(tmp_path, low="- 1\n", top="SEED: 1\n")
    assert problems_of(path) == [f"config file {tmp_path}/low.yaml, _BASE_ of {path}: not a mapping of keys to values"]
    (tmp_path / "low.yaml").unlink()
    assert problems_of(path) == [f"config file {tmp_path}/low.yaml, _BASE_ of {path}: no such file"]


def test_of_several_bases_the_last_wins_and_each_may_have_bases(tmp_path):
    lowest = write_layers(tmp_path, lowest="SEED: 1\nOUTPUT_DIR: low\n", one="SEED: 2\n")
    (tmp_path / "two.yaml").write_text("VIS_PERIOD: 7\n")
    (tmp_path / "top.yaml").write_text(f"_BASE_: [{lowest}, two.yaml]\nVIS_PERIOD: 8\n")
    cfg = load_config(tmp_path / "top.yaml")
    assert (cfg.SEED, cfg.OUTPUT_DIR, cfg.VIS_PERIOD) == (2, "low", 8)


def test_a_missing_file_is_named(tmp_path):
    assert problems_of(tmp_path / "no.yaml") == [f"config file {tmp_path / 'no.yaml'}: no such file"]


# --- values that cannot work ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.META_ARCHITECTURE", "FocalRetinaNett"),
        ("MODEL.BACKBONE.NAME", "resnet"),
        ("MODEL.FOCAL_DET.HEAD_NAME", "Head"),
        ("MODEL.FOCAL_DET.LOSS.NAME", "focal"),
        ("MODEL.FOCAL_DET.NORMALIZER", "batch"),
        ("MODEL.FOCAL_DET.SCALES_PER_OCTAVE", "0"),
        ("MODEL.FOCAL_DET.DRAW_IMAGES", "-1"),
        ("MODEL.FOCAL_DET.DRAW_SCORE_THRESH", "1.5"),
        ("MODEL.FOCAL_DET.CHECKPOINTS_KEPT", "-1"),
        ("MODEL.RETINANET.NORM", "GNN"),
        ("MODEL.RESNETS.NORM", "BatchNorm"),
        ("MODEL.FPN.NORM", "GNN"),
        ("MODEL.RESNETS.DEPTH", "20"),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", "256"),
        ("MODEL.RETINANET.BBOX_REG_WEIGHTS", "(1., 1.)"),
        ("MODEL.RETINANET.PRIOR_PROB", "0.0"),
        ("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", "-0.1"),
        ("MODEL.RETINANET.SCORE_THRESH_TEST", "1.0"),
        ("MODEL.RETINANET.NMS_THRESH_TEST", "1.1"),
        ("MODEL.RETINANET.TOPK_CANDIDATES_TEST", "0"),
        ("MODEL.RETINANET.IOU_THRESHOLDS", "[0.5, 0.4]"),
        ("TEST.DETECTIONS_PER_IMAGE", "0"),
        ("INPUT.FORMAT", "GREY"),
        ("INPUT.MIN_SIZE_TRAIN", "()"),
        ("INPUT.MAX_SIZE_TRAIN", "0"),
        ("INPUT.MAX_SIZE_TRAIN", "700"),
        ("INPUT.MIN_SIZE_TEST", "-5"),
        ("INPUT.MAX_SIZE_TEST", "700"),
        ("MODEL.PIXEL_STD", "[0, 1, 1]"),
        ("MODEL.PIXEL_STD", "[1.0, 1.0]"),
        ("MODEL.PIXEL_MEAN", "[100.0]"),
        ("MODEL.BACKBONE.FREEZE_AT", "-1"),
        ("MODEL.FPN.OUT_CHANNELS", "-4"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[]]"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0, 0.0]]"),
        ("MODEL.RETINANET.NUM_CONVS", "101"),
        ("DATALOADER.SAMPLER_TRAIN", "Sampler"),
        ("DATALOADER.NUM_WORKERS", "100000"),
        ("SOLVER.GAMMA", "0.0"),
        ("SOLVER.GAMMA", "1.5"),
        ("MODEL.DEVICE", "meta"),
        ("MODEL.DEVICE", "cuda:x"),
        ("MODEL.DEVICE", "gpu"),
        ("MODEL.RETINANET.NUM_CLASSES", "0"),
        ("SOLVER.AMP.DTYPE", "half"),
        ("SOLVER.LR_SCHEDULER_NAME", "Cosine"),
        ("SOLVER.WARMUP_ITERS", "-1"),
        ("SOLVER.CHECKPOINT_PERIOD", "0"),
        ("TEST.AUG.ENABLED", "True"),
        ("SOLVER.IMS_PER_BATCH", "15"),
        ("SOLVER.MAX_ITER", "0"),
        ("SOLVER.STEPS", "(80, 60)"),
        ("SOLVER.BASE_LR", "0.0"),
        ("SOLVER.AMP.ENABLED", "True"),
        ("DATASETS.TRAIN", "()"),
        ("DATASETS.TEST", "()"),
        ("MODEL.WEIGHTS", "nowhere.pth"),
        ("OUTPUT_DIR", "setup.py/output"),
    ],
)
def test_a_value_that_cannot_work_is_named(tiny_cfg, key, value):
    assert config_problems(tiny_cfg(), num_processes=2, training=True) == []
    found = config_problems(tiny_cfg(key, value), num_processes=2, training=True)
    assert len(found) == 1
    assert found[0].startswith(f"{key} is ")
    assert re.search("must|allowed are|name a|set it|give a|need", found[0])  # the mending


def test_gradients_are_clipped_at_something(tiny_cfg):
    clipped = ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.0"]
    assert config_problems(tiny_cfg(*clipped), num_processes=1, training=True) == []  # which nothing reads
    cfg = tiny_cfg(*clipped, "SOLVER.CLIP_GRADIENTS.ENABLED", "True")
    (problem,) = config_problems(cfg, num_processes=1, training=True)
    assert problem == "SOLVER.CLIP_GRADIENTS.CLIP_VALUE is 0.0; it must be > 0"


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("FocalLoss", "MODEL.RETINANET.FOCAL_LOSS_GAMMA", "-1.0"),
        ("FocalLoss", "MODEL.RETINANET.FOCAL_LOSS_GAMMA", "1e39"),
        ("FocalLoss", "MODEL.RETINANET.FOCAL_LOSS_ALPHA", "1.5"),
        ("FocalLoss", "MODEL.RETINANET.FOCAL_LOSS_ALPHA", "0.0"),
        ("FocalLoss", "MODEL.RETINANET.FOCAL_LOSS_ALPHA", "1.0"),
        ("BalancedCrossEntropyLoss", "ALPHA", "0.0"),
        ("BalancedCrossEntropyLoss", "ALPHA", "1.5"),
        ("FocalLossStar", "GAMMA", "0.0"),
        ("FocalLossStar", "BETA", "1e999"),
        ("HingeLoss", "MARGIN", "0.0"),
        ("HingeLoss", "MARGIN", "1.01"),
        ("HingeLoss", "MARGIN", "1" + "0" * 400),
        ("OHEMLoss", "BATCH_SIZE", "0"),
        ("OHEMOneToThreeLoss", "BATCH_SIZE", "3"),
        ("OHEMLoss", "NMS_THRESH", "1.5"),
        ("OHEMOneToThreeLoss", "NMS_THRESH", "-0.1"),
    ],
)
def test_a_loss_constant_that_cannot_work_is_named(tiny_cfg, name, key, value):
    key = key if "." in key else LOSS + key
    chosen = [LOSS + "NAME", name] if name != "FocalLoss" else []
    found = config_problems(tiny_cfg(*chosen, key, value), num_processes=1, training=True)
    assert len(found) == 1
    assert re.match(rf"{name} cannot be made of .*{key} \S+.*: \w+=\S+ (is outside|must be|has no room)", found[0])


def test_evaluation_needs_weights(tiny_cfg):
    (problem,) = config_problems(tiny_cfg(), num_processes=1, training=False)
    assert problem.endswith("add MODEL.WEIGHTS <checkpoint>")
